"""Stage one: run the teacher once over the prepared images and their views, and store its targets.

`run` opens the stores, lists the blocks that are missing, and hands them to an executor, which fills each with a `BlockFiller`.
"""

from pathlib import Path

import numpy as np

from pipeline.errors import OtherStore, StoreError
from pipeline.files import write_json
from pipeline.identity import join_names
from pipeline.progress import Progress, say
from pipeline.stopping import Stopped
from pipeline.store import executors, plan
from pipeline.store.files import InUse, locked
from pipeline.store.store import runs
from pipeline.teacher import cache
from pipeline.teacher.experiment import Experiment
from pipeline.teacher.fill import BlockFiller, Spec, every_pass, open_to_fill


def run(
    experiment: Experiment,
    *,
    report: Path,
    device: str,
    batch: int,
    workers: int = 1,
    threads: int | None = None,
    scheduler: str | None = None,
    share: tuple[int, int] = (0, 1),
) -> str:
    """Fills every (block, view) not marked as done, in fixed batches, and writes the report that training depends on.

    The report holds the identity and a digest of just the rows asked for here: no time, host or version. `share` (i, n)
    is the blocks whose number leaves the remainder i on division by n; who finds nothing missing any more writes the
    report. Raises StoreError if the prepared store is missing or holds other pixels than an existing cache was made
    from, or if the teacher answers with NaN or constants.
    """
    views, context = experiment.config.views, experiment.context
    experiment.check_views()
    pixels, images = experiment.pixels, experiment.images
    experiment.load_teacher()  # refused before a store is made for it
    remark_on_adoption(experiment)
    named = experiment.targets
    every = every_pass(named)
    store = open_to_fill(experiment, every)
    in_use = InUse(store.folder)  # noqa: F841  # until this returns
    asked_for = set(np.unique(store.rows_of(experiment.ids) // store.block_rows).tolist())

    def missing() -> list[plan.Task]:
        """All views of a block in a row, so that its images are read once."""
        found = plan.tasks(
            {
                (view, pass_.folder): sorted(asked_for.intersection(store.missing(pass_, view)))
                for view in range(views.count)
                for pass_ in every
            }
        )
        return sorted(found, key=lambda task: (task.block, task.view))

    tasks = [task for task in missing() if task.block % share[1] == share[0] % share[1]]
    spec = Spec(
        experiment=experiment.anywhere(),
        batch=batch,
        store=store.folder.absolute(),
        passes=frozenset(pass_.folder for pass_ in every),
        rows=pixels.digest_of(images, range(1), [experiment.sample]),
    )
    with Progress("teacher", sum(store.images.count_in(task.block) for task in tasks), "views") as progress:
        try:
            for count in executors.processes(
                tasks, BlockFiller, spec, device=device, workers=workers, num_threads=threads, scheduler=scheduler
            ):
                progress.advance(count)
        except Stopped as stopped:
            stopped.said = f"{store.folder}: {progress.done} of the {progress.total} views that were missing are filled"
            raise
    left = missing()
    if left:
        return (
            f"{store.folder}: {len(tasks)} blocks filled now; {len(left)} of {len(asked_for) * views.count} are "
            f"still missing ({blocks(left)}); {report} is written by the share that finds none"
        )
    store.finalise()
    with locked(store.folder):  # two shares may end at the same moment
        write_json(
            report,
            {
                "identity": store.identity,
                "images": len(images),
                "views": views.count,
                "targets": {
                    name: {"pass": pass_.folder, "digest": store.digest_of(images, range(views.count), [cache.MATRIX, pass_])}
                    for name, (_, pass_) in named.items()
                },
            },
        )
    row = sum(plan.row_bytes(pass_) for pass_ in every)
    answers_bytes = 2 * context.num_classes * int(np.prod(context.size))
    return (
        f"{store.folder}: {len(images)} images x {views.count} views, {row} bytes each "
        f"({answers_bytes / row:.0f}x less than float16 probability maps), {len(tasks)} blocks filled now"
    )


def remark_on_adoption(experiment: Experiment) -> None:
    """Says so before the teacher runs, where a cache is there that differs in the teacher's code alone."""
    try:
        experiment.find_cache()
    except OtherStore as error:
        if remark := cache.may_be_adopted(error.apart, experiment.config.path):
            say(f"{error.folder}: differs only in {join_names(error.apart)}; {remark}")
    except StoreError:  # there is none, or one that will be refused
        pass


def blocks(tasks: list[plan.Task]) -> str:
    """Their numbers in words: "blocks 0-3, 7"."""
    numbers = sorted({task.block for task in tasks})
    return "blocks " + join_names([f"{first}-{last}" if first < last else f"{first}" for first, last in runs(numbers)])
