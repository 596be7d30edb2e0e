"""Looking after what stage one stored."""

from pathlib import Path

import click

from pipeline.cli import options
from pipeline.cli.group import Commands, main
from pipeline.progress import byte_size


@main.command("verify")
@click.argument("what", metavar="CONFIG|FOLDER")
@options.overriding
@options.root
@options.device
@click.option(
    "--recompute",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Let the teacher answer N random views again and compare.",
)
@click.option("--repair", is_flag=True, help="First mend what is damaged: with a config, its bad blocks are filled again.")
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Images a teacher pass takes at a time.")
@options.workers
def verify(what, overrides, root, device, recompute, repair, batch, workers):
    """Check the stores on disk: whole, undamaged, and made from what the file says. Offline equals online?

    Given the folder or URL of a store, checks it by itself, without its teacher, and prints the range of its values. Given a
    config, reads both its stores; with --recompute also runs the teacher, and prints the error of every target against what it
    declares, and what it changes in each loss and its gradient. Exit code 1 if anything is wrong.

    \b
    $ pipeline verify configs/demo.yaml --recompute 32
    $ pipeline verify cache/roads/targets-0123456789ab
    """
    from pipeline.errors import StoreError
    from stages import verify as stage

    folder = options.as_path(what)
    if "://" in what or folder.is_dir():
        if recompute:
            raise click.UsageError("--recompute needs the config: a store by itself knows no teacher")
        text, faults = stage.check_folder(folder=folder, mend=repair, workers=workers)
        click.echo(text)
        if faults:
            raise StoreError("\n".join(faults))
        return
    cfg = options.load(folder, overrides)
    experiment = options.experiment(cfg, root)
    if repair:
        done, unfilled = stage.mend(experiment, workers=workers)
        for line in done:
            click.echo(line, err=True)
        with options.stoppable():
            if "prepared" in unfilled:
                from stages import prepare as fill

                fill.run(
                    dataset=cfg.dataset,
                    prepare=cfg.prepare,
                    root=root,
                    workers=workers,
                    report=Path("reports/prepare") / f"{cfg.name}.json",
                )
            if "targets" in unfilled:
                from stages import cache_teacher

                click.echo(
                    cache_teacher.run(
                        experiment, report=Path("reports/cache") / f"{cfg.name}.json", device=options.pick(device), batch=batch
                    ),
                    err=True,
                )
    click.echo(
        stage.run(
            experiment,
            recompute=recompute,
            device=options.pick(device),
            batch=batch,
            workers=workers,
        )
    )


@options.command("inspect")
@options.root
@click.option("--id", "image_id", metavar="IMAGE", help="Draw this image's record.")
@click.option("--view", type=click.IntRange(min=0), default=0, show_default=True, help="Which of its views.")
@click.option("--out", type=click.Path(path_type=Path), default="record.png", show_default=True, help="Where the figure goes.")
def inspect(config, overrides, root, image_id, view, out):
    """Look at a cache: what it was made from and holds, or one record drawn beside its image.

    \b
    $ pipeline inspect configs/demo.yaml
    """
    from stages import inspect as stage

    cfg = options.load(config, overrides)
    click.echo(stage.run(options.experiment(cfg, root), image_id=image_id, view=view, out=out))


@main.group("cache", cls=Commands)
def cache():
    """Stores under the root: list them, bring one from elsewhere, remove one.

    \b
    $ pipeline cache list
    """


@cache.command("list")
@options.root
def cache_list(root):
    """Every store under the root: what it is, holds, lacks, and weighs.

    \b
    $ pipeline cache list
    """
    from stages import cache as stage

    click.echo(stage.run(root=root))


@cache.command("pull")
@click.argument("source", metavar="URL")
@click.argument("root", metavar="DEST")
@click.option("--views", type=click.IntRange(min=1), help="Only the first so many views.")
def cache_pull(source, root, views):
    """Copy a store, or all stores below a root, into the root DEST. Either may be a folder or a URL.

    Every file is compared with its checksum on the way. Broken off, it goes on where it stopped; what has come can be used.

    \b
    $ pipeline cache pull s3://bucket/cache/roads/targets-0123456789ab cache
    """
    from stages import cache as stage

    with options.stoppable():
        click.echo(stage.pull(source=options.as_path(source), root=options.as_path(root), num_views=views))
        options.say_next("cache", "list", (), options.as_path(root))


@cache.command("rm")
@click.argument("folder")
@click.option("--yes", is_flag=True, help="Do not ask.")
def cache_rm(folder, yes):
    """Remove a store. Shows its path, files and bytes, and asks first.

    A link, a folder that holds one, and a folder that is no whole store, or holds anything beside one, are refused.

    \b
    $ pipeline cache rm cache/roads/targets-0123456789ab
    """
    from stages import cache as stage

    folder = options.as_path(folder)
    found = stage.check_is_store(folder)
    if not yes:
        click.confirm(f"Remove {folder} ({found.num_files} files, {byte_size(found.num_bytes)})?", abort=True)
    click.echo(stage.remove(folder=folder))
