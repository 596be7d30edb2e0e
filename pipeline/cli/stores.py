"""`pipeline verify`, `inspect` and `cache`: check and manage stores on disk."""

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
    help="Number of random views for which the teacher computes the targets again, to compare them with the cache.",
)
@click.option(
    "--repair", is_flag=True, help="Repair damaged stores first. With a configuration, damaged blocks are computed again."
)
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Images per forward pass of the teacher.")
@options.workers
def verify(what, overrides, root, device, recompute, repair, batch, workers):
    """Check that stores are complete and undamaged.

    With FOLDER, the folder or URL of one store, reads that store alone, without the teacher, and prints the range of its values.

    With CONFIG, reads the prepared store and the target cache, and also checks that both were made from this configuration. With
    --recompute, also runs the teacher and prints the error of each target next to the declared error, and the effect of the error
    on each loss and its gradient.

    Writes nothing without --repair. The exit code is 1 if anything is wrong.

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
@click.option("--id", "image_id", metavar="IMAGE", help="ID of an image whose record is drawn.")
@click.option("--view", type=click.IntRange(min=0), default=0, show_default=True, help="Number of the view to draw.")
@click.option("--out", type=click.Path(path_type=Path), default="record.png", show_default=True, help="Path of the figure.")
def inspect(config, overrides, root, image_id, view, out):
    """Summarise a target cache, or draw one of its records.

    Reads the prepared store and the target cache. Prints what the cache was made from and what it contains. With --id, draws the
    record of that image beside the image and writes the figure to --out.

    \b
    $ pipeline inspect configs/demo.yaml
    $ pipeline inspect configs/demo.yaml --id driver_roads_s0_5e377128/train_0000.MP4/00000 --view 1
    """
    from stages import inspect as stage

    cfg = options.load(config, overrides)
    click.echo(stage.run(options.experiment(cfg, root), image_id=image_id, view=view, out=out))


@main.group("cache", cls=Commands)
def cache():
    """List, copy and remove stores.

    Reads and writes the prepared stores and target caches below a root, without a configuration.

    \b
    $ pipeline cache list
    """


@cache.command("list")
@options.root
def cache_list(root):
    """List all stores under the root.

    Prints the kind, the contents, the missing parts and the size of each store. Writes nothing.

    \b
    $ pipeline cache list
    """
    from stages import cache as stage

    click.echo(stage.run(root=root))


@cache.command("pull")
@click.argument("source", metavar="URL")
@click.argument("root", metavar="DEST")
@click.option("--views", type=click.IntRange(min=1), help="Number of views to copy, from the first. Default: all views.")
def cache_pull(source, root, views):
    """Copy a store, or all stores below a root.

    Reads URL, a store or a root, and writes to the root DEST. Each of the two may be a folder or a URL. Every file is checked
    against its checksum. If the copy is interrupted, run the command again to resume; the part already copied can be used.

    \b
    $ pipeline cache pull s3://bucket/cache/roads/targets-0123456789ab cache
    """
    from stages import cache as stage

    with options.stoppable():
        click.echo(stage.pull(source=options.as_path(source), root=options.as_path(root), num_views=views))
        options.say_next("cache", "list", (), options.as_path(root))


@cache.command("rm")
@click.argument("folder")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def cache_rm(folder, yes):
    """Remove a store.

    Prints the path, the number of files and the size of the store, and asks for confirmation. FOLDER must be a complete store and
    contain nothing else. A symbolic link, or a folder that contains one, is an error.

    \b
    $ pipeline cache rm cache/roads/targets-0123456789ab
    """
    from stages import cache as stage

    folder = options.as_path(folder)
    found = stage.check_is_store(folder)
    if not yes:
        click.confirm(f"Remove {folder} ({found.num_files} files, {byte_size(found.num_bytes)})?", abort=True)
    click.echo(stage.remove(folder=folder))
