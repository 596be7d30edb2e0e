"""`pipeline verify`, `inspect` and `cache`: check and manage stores on disk."""

from pathlib import Path

import click

from pipeline.cli import options
from pipeline.cli.group import Commands, main
from pipeline.progress import byte_size


@main.command("verify")
@click.argument("what", metavar="CONFIG|FOLDER")
@options.overriding
@options.teacher_name
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
@click.option("--structure", is_flag=True, help="With FOLDER: check names, markers and sizes of all files, and read no rows.")
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Images per forward pass of the teacher.")
@options.workers
def verify(what, overrides, teacher_name, root, device, recompute, repair, structure, batch, workers):
    """Check that stores are complete and undamaged.

    With FOLDER, the folder or URL of one store, reads that store alone, without the teacher, and prints the range of its values.

    With CONFIG, reads the prepared store and the target cache, and also checks that both were made from this configuration. With
    --recompute, also runs the teacher and prints the error of each target next to the declared error, and the effect of the error
    on each loss and its gradient.

    Without --repair, writes nothing but the index of a large store that has none. The exit code is 1 if anything is
    wrong.

    \b
    $ pipeline verify configs/demo.yaml --recompute 32
    $ pipeline verify cache/roads/targets-0123456789ab
    """
    from pipeline.errors import StoreError
    from stages import verify as stage

    folder = options.as_path(what)
    alone = "://" in what or folder.is_dir()
    if structure and (repair or not alone):
        raise click.UsageError("--structure takes the folder of a store, and no --repair, which reads every row")
    if alone:
        if recompute:
            raise click.UsageError("--recompute needs the config: a store by itself knows no teacher")
        text, faults = stage.check_folder(folder=folder, mend=repair, deep=not structure, workers=workers)
        click.echo(text)
        if faults:
            raise StoreError("\n".join(faults))
        return
    cfg = options.load(folder, overrides)
    experiments = options.experiments(cfg, root, teacher_name)
    for name, experiment in experiments.items() if repair else ():
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

                report = Path("reports/cache") / f"{options.of_teacher(cfg, name)}.json"
                click.echo(cache_teacher.run(experiment, report=report, device=options.pick(device), batch=batch), err=True)
    wrong = []
    for name, experiment in experiments.items():
        try:
            found = stage.run(experiment, recompute=recompute, device=options.pick(device), batch=batch, workers=workers)
            click.echo(options.headed(name, found, experiments))
        except StoreError as error:  # of one teacher: the others' caches are looked at all the same
            wrong.append(f"teacher {name}: {error}" if len(experiments) > 1 else str(error))
    if wrong:
        raise StoreError("\n".join(wrong))


@options.command("inspect")
@options.teacher_name
@options.root
@click.option("--id", "image_id", metavar="IMAGE", help="ID of an image whose record is drawn.")
@click.option("--view", type=click.IntRange(min=0), default=0, show_default=True, help="Number of the view to draw.")
@click.option("--out", type=click.Path(path_type=Path), default="record.png", show_default=True, help="Path of the figure.")
def inspect(config, overrides, teacher_name, root, image_id, view, out):
    """Summarise a target cache, or draw one of its records.

    Reads the prepared store and the target cache. Prints what the cache was made from and what it contains. With --id, draws the
    record of that image beside the image and writes the figure to --out.

    \b
    $ pipeline inspect configs/demo.yaml
    $ pipeline inspect configs/demo.yaml --id driver_roads_s0_5e377128/train_0000.MP4/00000 --view 1
    """
    from stages import inspect as stage

    cfg = options.load(config, overrides)
    experiments = options.experiments(cfg, root, teacher_name if image_id is None else options.one_teacher(cfg, teacher_name))
    for name, experiment in experiments.items():
        click.echo(options.headed(name, stage.run(experiment, image_id=image_id, view=view, out=out), experiments))


@main.group("cache", cls=Commands)
def cache():
    """List, share and remove stores.

    Reads and writes the prepared stores and target caches below a root.

    \b
    $ pipeline cache list
    """


configs = click.option(
    "--configs",
    type=click.Path(path_type=Path),
    default=Path("configs"),
    show_default=True,
    metavar="FOLDER",
    help="Folder of the configurations and studies that may ask for stores.",
)
RUNS = Path("runs")


@cache.command("list")
@options.root
@configs
def cache_list(root, configs):
    """List all stores under the root.

    Prints the kind, the teacher, the contents, the missing parts, the date of the last change and the size of each store, and which
    configurations, studies and unfinished runs of this folder ask for it. Writes nothing.

    \b
    $ pipeline cache list
    """
    from stages import cache as stage

    click.echo(stage.run(root=root, configs=configs, runs=RUNS))


@cache.command("gc")
@options.root
@configs
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def cache_gc(root, configs, dry_run, yes):
    """Remove the stores that nothing here asks for.

    Shows the stores under the root that no configuration or study below --configs and no unfinished run in runs/ asks for, and asks
    for confirmation before it removes them. Where it cannot be told what a configuration asks for, because the dataset or the
    teacher's weights are not here, the stores in question stay. A store that is being filled stays, too. Overrides by --set and the
    configurations of other people are not known here: do not use this command on a root that others use, too.

    \b
    $ pipeline cache gc --dry-run
    """
    from pipeline.progress import say
    from stages import cache as stage

    found = stage.leftovers(root=root, configs=configs, runs=RUNS)
    for remark in found.remarks:
        say(remark)
    if not found.lines and not found.halves:
        click.echo(f"{root}: nothing to remove")
        return
    click.echo("\n".join([*stage.table_of(found.lines, [])] if found.lines else []))
    for path in found.halves:
        click.echo(f"{path}: left by an interrupted removal")
    if dry_run:
        click.echo(f"{byte_size(found.num_bytes)} would be removed")
        return
    if not yes:
        click.confirm(f"Remove these {len(found.lines)} stores ({byte_size(found.num_bytes)})?", abort=True)
    click.echo(stage.gc(found))


@cache.command("pull")
@click.argument("source", metavar="URL")
@click.argument("root", metavar="DEST")
@click.option("--views", type=click.IntRange(min=1), help="Number of views to copy, from the first. Default: all views.")
def cache_pull(source, root, views):
    """Copy a store, or all stores below a root.

    Reads URL, a store or a root, and writes to the root DEST. Each of the two may be a folder or a URL. Every file is checked
    against its checksum. If the copy is interrupted, run the command again to resume; the part already copied can be used. The
    first run with a copied store compares the images here with the store's digests, whatever the times of their files.

    \b
    $ pipeline cache pull s3://bucket/cache/roads/targets-0123456789ab cache
    """
    from stages import cache as stage

    with options.stoppable():
        click.echo(stage.pull(source=options.as_path(source), root=options.as_path(root), num_views=views))
        options.say_next("cache", "list", (), options.as_path(root))


@cache.command("merge")
@click.argument("into", metavar="A")
@click.argument("source", metavar="B")
def cache_merge(into, source):
    """Merge stores that hosts without a common disk have filled.

    Copies into A the blocks that B has and A lacks. Each is a store, or a root with stores below, as a folder or a URL. Both must
    have the same identity. Where both hold a block with other bytes, list other images in a block, or used other code for a
    target, the conflicts are named, and nothing is changed. If the copy is interrupted, run the command again.

    \b
    $ pipeline cache merge cache/roads/targets-0123456789ab other/cache/roads/targets-0123456789ab
    """
    from stages import cache as stage

    with options.stoppable():
        click.echo(stage.merge(into=options.as_path(into), source=options.as_path(source)))


def terms(function):
    """The six entries of a card."""
    for part, what in (("teacher", "teacher's weights"), ("data", "data")):
        for key, text in (("terms", "Terms of use"), ("citation", "Citation"), ("licence", "Licence")):
            function = click.option(f"--{part}-{key}", metavar="TEXT", help=f"{text} of the {what}.")(function)
    return function


@cache.command("card")
@click.argument("folder")
@terms
def cache_card(folder, **texts):
    """Show or write the card of a store.

    The card says under which terms the data and the teacher may be used. It is printed by `pipeline inspect`, copied with the
    store, and demanded by `pipeline cache publish`. It is not part of the store's identity. An empty TEXT removes an entry.

    \b
    $ pipeline cache card cache/roads/targets-0123456789ab --data-licence CC-BY-4.0
    """
    from stages import cache as stage

    changes: dict[str, dict[str, str]] = {}
    for name, text in texts.items():
        if text is not None:
            part, _, key = name.partition("_")
            changes.setdefault(part, {})[key] = text
    click.echo(stage.card(folder=options.as_path(folder), changes=changes))


@cache.command("publish")
@click.argument("folders", nargs=-1, required=True, metavar="FOLDER...")
@click.option("--out", required=True, metavar="DEST", help="Folder or URL to write to.")
def cache_publish(folders, out):
    """Write stores to a folder that can be published.

    Copies complete stores to DEST/<dataset>/<store>, and writes DEST/README.md, a card with the terms of use in the form that
    dataset hubs read, and DEST/SHA256SUMS. Any bucket or hub can hold the folder, and `pipeline cache pull` copies from it. The
    card of each store must be complete (`pipeline cache card`), and the store without faults.

    \b
    $ pipeline cache publish cache/roads/targets-0123456789ab --out published
    """
    from stages import cache as stage

    with options.stoppable():
        click.echo(stage.publish(folders=[options.as_path(folder) for folder in folders], out=options.as_path(out)))


@cache.command("adopt")
@click.argument("config", type=click.Path(path_type=Path))
@options.overriding
@options.teacher_name
@options.root
@options.device
@click.option(
    "--recompute",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    metavar="N",
    help="Number of random views for which the teacher computes the targets again, to compare them with the cache.",
)
@click.option("--from", "source", metavar="FOLDER", help="Store to take over. Default: the one that differs least.")
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Images per forward pass of the teacher.")
def cache_adopt(config, overrides, teacher_name, root, device, recompute, source, batch):
    """Take a cache over after a change of the teacher's code.

    The identity of a cache includes the code of its teacher, such as the release of a library. If that has changed and the answers
    have not, this command takes the finished blocks over under the new identity. It runs the teacher on N views of the old cache.
    If the rows of every target agree within the error that the target declares, the new store gets the blocks as hard links, and
    a line in its history; the old store stays. Otherwise the command names the target and its error, and changes nothing.

    \b
    $ pipeline cache adopt configs/demo.yaml --recompute 32
    """
    from stages import adopt as stage

    cfg = options.load(config, overrides)
    name = options.one_teacher(cfg, teacher_name)
    with options.stoppable():
        click.echo(
            stage.run(
                options.experiment(cfg, root).teachers[name],
                source=None if source is None else options.as_path(source),
                recompute=recompute,
                device=options.pick(device),
                batch=batch,
            )
        )
        options.say_next("cache-teacher", config, overrides, root)


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
