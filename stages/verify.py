"""Check a store, or a config's stores, and mend what can be; on request, cached rows and losses against the live teacher."""

import dataclasses

import torch

from pipeline.config import term_name
from pipeline.errors import StoreError
from pipeline.models.base import set_precision
from pipeline.store import Reader, Store
from pipeline.store.files import AnyPath, append_history, locked
from pipeline.store.verification import Values, gaps, repair, table, unvouched, verify
from pipeline.teacher import cache, parity
from pipeline.teacher.experiment import Experiment
from pipeline.teacher.fill import every_pass
from pipeline.training.loading import CachedTargets, Loader


def run(experiment: Experiment, *, recompute: int, device: str, batch: int, workers: int) -> str:
    """Returns what was found, in words and tables. Raises StoreError listing every fault: damage, gaps, or rows of another
    teacher. `recompute` rows, chosen at random, are answered again by the teacher."""
    config, views = experiment.config, experiment.config.views
    pixels, images, ids, identity = experiment.pixels, experiment.images, experiment.ids, experiment.identity
    store = experiment.find_cache()
    faults = [*verify(pixels, workers=workers), *verify(store, workers=workers)]
    if faults:
        raise StoreError("\n".join(faults))
    named = experiment.targets
    passes = [(cache.MATRIX, False), *((pass_, cache.by_labels(identity, target)) for target, pass_ in named.values())]
    store.check(images, range(views.count), passes, any_code=recompute > 0)
    lines = [
        f"{store.folder}: whole and undamaged: {len(ids)} images x {views.count} views, {len(named)} targets",
        *unvouched(pixels),
        *unvouched(store),
    ]
    if not recompute:
        return "\n".join(lines)

    set_precision(config.teacher.precision)
    samples = experiment.samples()
    teacher = experiment.online_targets(config.targets, samples, batch=batch, device=device)
    cached = CachedTargets(Reader(store, [pass_ for pass_, _ in passes], ids, views.count), cache.MATRIX, named)
    positions, numbers = parity.choose(len(ids), views.count, recompute)

    errors = parity.recomputed(teacher, cached, positions, numbers, batch=batch, precision=config.teacher.precision)
    lines += ["", parity.table(errors)]

    # one batch of each method, seen by a fresh student, with stored and with online rows
    differences = []
    for method, terms in config.methods.items():
        wanted = {name: named[name] for term in terms for name in term.reads}
        if not wanted:
            continue
        for student, plugin in config.students.items():
            torch.manual_seed(0)
            network = experiment.build(plugin).to(device)
            own = experiment.student_context(plugin)
            loader = Loader.of(
                experiment,
                samples,
                dataclasses.replace(config.training, fresh_views=False),
                seed=0,
                device=device,
                cached=dataclasses.replace(cached, targets=wanted),
            )
            read = loader.batch(0)
            here, epochs = loader.positions(0)
            matrices = cached.matrices(here, loader.views_at(here, epochs))
            answered = read.with_rows(dataclasses.replace(teacher, targets=wanted).answered(here, matrices))
            network.train(len(read.images_B3HW) > 1)  # of one image a pyramid's cell has no variance
            output = network(read.images_B3HW)
            for i, term in enumerate(terms):
                loss = experiment.loss(term, own).to(device)
                if loss.needs_scan:
                    loss.scan(loader.scan())
                differences.append(parity.loss_error(f"{student} {method} {term_name(terms, i)}", loss, output, read, answered))
    lines += ["", parity.loss_table(differences)]
    wrong = [error.target for error in errors if not error.holds]
    if wrong:
        raise StoreError(
            "\n".join(
                [f"{store.folder}: rows of {', '.join(wrong)} are not this teacher's within what is declared", parity.table(errors)]
            )
        )
    if changed := store.other_code(pass_ for pass_, _ in passes):
        with locked(store.folder):
            store.vouch_for_code(changed)
            append_history(store.folder, "code", passes=[pass_.folder for pass_ in changed])
        lines += [
            "",
            f"{store.folder}: the code of {', '.join(pass_.folder for pass_ in changed)} has changed since, and {recompute} rows "
            f"agree: taken as theirs",
        ]
    return "\n".join(lines)


def check_folder(*, folder: AnyPath, mend: bool, deep: bool, workers: int) -> tuple[str, list[str]]:
    """A store by itself, without its teacher: what it holds, in words and tables, and every fault and gap of it. With `mend`,
    first what can be mended without a teacher. Not `deep`: names, marks and sizes alone, and no row is read. Raises StoreError if
    it can't be opened at all."""
    store = Store.open(folder)
    lines = repair(store, workers=workers) if mend else []
    values: dict[tuple[str, str], Values] = {}
    faults, notes = verify(store, deep, values, workers), unvouched(store)
    filled = sum(
        store.mark_path(view, pass_, block).exists() for view, pass_ in store.stored_groups() for block in range(store.num_blocks)
    )
    lines += [
        f"{folder}: {store.kind} of {store.card.get('dataset', folder.parent.name)}, {len(store.row_of)} images, "
        f"{filled} of {store.num_blocks * len(store.stored_groups())} blocks filled, {len(faults)} faults"
        + ("" if deep else "; rows were not read"),
        *notes,
    ]
    return "\n".join([*lines, "", table(values)] if values else lines), faults + gaps(store)


def mend(experiment: Experiment, *, workers: int) -> tuple[list[str], set[str]]:
    """Mends what can be without the teacher. Returns what was done, and the kinds of store with blocks to fill again."""
    passes = every_pass(experiment.targets)
    stores = [
        (experiment.find_prepared(), [experiment.sample], 1),
        (experiment.find_cache(), passes, experiment.config.views.count),
    ]
    done, unfilled = [], set()
    for store, passes, num_views in stores:
        done += repair(store, passes, workers)
        if any(store.missing(pass_, view) for pass_ in passes for view in range(num_views)):
            unfilled.add(store.kind)
    return done, unfilled
