"""Show a trained network pictures or a video, and write what it sees. No stage of dvc.yaml."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline import weights
from pipeline.config import Evaluate, Plugin, Prepare, Training
from pipeline.data.frames import crop_name, crop_record, leaves_rows, too_stretched
from pipeline.datasets.base import DatasetBase
from pipeline.deployment import media as footage
from pipeline.deployment.outputs import Writer
from pipeline.errors import DatasetError, PipelineError
from pipeline.files import plain, read_json, write_json
from pipeline.identity import diff, join_names
from pipeline.progress import Progress, say
from pipeline.scoring import load as trained
from pipeline.scoring import predict as prediction
from pipeline.scoring.predict import Sample
from pipeline.threads import map_in_order


def run(
    *,
    dataset: Plugin,
    prepare: Prepare,
    training: Training | None,
    evaluate: Evaluate,
    model: Plugin,
    weights_file: Path | None,
    place: Path,
    out: Path,
    kinds: tuple[str, ...],
    crop_top: int | None,
    device: str,
    batch: int,
    workers: int,
    flip_average: bool = False,
) -> str:
    """Writes the frames of `place`, each at its own resolution, below `out` as `kinds` ask (pipeline/deployment/outputs.py).

    A frame that can't be read doesn't stop the others; at the end DatasetError lists all such. `crop_top` are rows to cut
    at the top, if not the dataset's own. Raises PipelineError if `out` holds anything but an earlier time of the same.
    """
    source = dataset.build()
    if crop_top is not None:
        source.crop_top, source.crop_bottom_rows, source.crop_top_share = crop_top, None, None
    shown = footage.opened(place, source.picture_bits)
    writer = Writer(out, kinds, source, shown)
    network = trained.load(model, source, prepare, training, weights_file, device, flip_average, evaluate.window)
    claim(
        out,
        {
            "input": place.absolute(),
            "dataset": dataset.name,
            "classes": source.classes,
            "model": model,
            "size": prepare.size,
            **crop_record(source),
            **({"fit": prepare.fit} if prepare.fit != "stretch" else {}),
            **evaluate.windows,
            "weights": weights.digest(network.state_dict()),
        },
    )
    bad: list[str] = []
    written = 0
    with (
        ThreadPoolExecutor(workers) as pool,
        ThreadPoolExecutor(1) as follower,
        Progress("predicting", shown.total, shown.unit) as progress,
    ):
        samples = readable(shown.read(pool, workers), source, prepare, bad)
        network = trained.sliding(network, prepare, evaluate)
        pairs = prediction.answered(network, source, samples, prepare.size, device=device, batch=batch, fit=prepare.fit)
        for _ in map_in_order(follower, writer.follow, map_in_order(pool, writer.write, pairs, workers), workers):
            written += 1
            progress.reach(written + len(bad), shown.total)
    writer.close()
    if bad:
        raise DatasetError(
            "\n".join(
                [
                    *bad,
                    f"{place}: {max(len(bad), shown.total - written)} of {shown.total} {shown.unit} can't be shown to the "
                    f"network; mend or remove them; {written} are done, in {out}",
                ]
            )
        )
    others = f"; left {shown.others} other files alone" if shown.others else ""
    return f"{out}: {written} {shown.unit} as {', '.join(kinds)}, {progress.rate:.1f} {shown.unit}/s{others}"


def claim(out: Path, record: dict) -> None:
    """Puts `record` on the folder. Raises PipelineError if it is another's, or holds files of unknown origin."""
    path = out / "predict.json"
    if path.exists():
        if apart := diff(read_json(path), plain(record)):
            raise PipelineError(
                f"{out}: holds predictions of something else ({join_names(apart)}); choose another --out, or remove that folder"
            )
    elif out.exists() and any(out.iterdir()):
        raise PipelineError(f"{out}: holds files that `pipeline predict` did not write; choose another --out")
    write_json(path, plain(record))


def readable(found: Iterable[Sample | DatasetError], source: DatasetBase, prepare: Prepare, bad: list[str]) -> Iterator[Sample]:
    """The frames that can be shown; `bad` gets what is wrong with the others. Says once if one is stretched too far."""
    told = False
    for sample in found:
        if isinstance(sample, DatasetError):
            bad.append(str(sample))
            continue
        rows, columns = sample.image.shape[:2]
        cut = source.rows_cut(rows)
        if not leaves_rows(rows, cut) or rows < (source.crop_bottom_rows or 0):
            bad.append(
                f"{sample.image_id}: has {rows} rows, of which {cut} would be cut at the top ({crop_name(source)}); say how "
                f"many with --crop-top"
            )
            continue
        if not told and (fault := too_stretched((rows - cut, columns), prepare)):
            say(f"{sample.image_id}: {fault}; it is shown stretched, and so are others of its shape")
            told = True
        yield sample
