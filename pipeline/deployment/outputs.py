"""What `pipeline predict` can write of an answer, each kind in a folder of its name. `name` is the frame's.

overlay      <name>.jpg          the frame with its classes painted over it; of a video, one <video>.mp4
ids          <name>.png          8-bit grey: the dataset's own ids where it has such, else train ids
colours      <name>.png          the same in the classes' colours
lanes        <name>.lines.txt    points of each lane, as CULane's evaluator reads them; of LLAMAS one lanes.json
submission   (pipeline/metrics)  what the dataset's evaluator or server reads
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pipeline.datasets.base import DatasetBase
from pipeline.deployment.media import Pictures, Video
from pipeline.errors import ConfigError, DatasetError
from pipeline.metrics import base as metrics
from pipeline.metrics import culane, llamas
from pipeline.metrics.base import Answer, MetricBase
from pipeline.paths import below
from pipeline.scoring.predict import Sample, overlay

JPEG = (cv2.IMWRITE_JPEG_QUALITY, 92, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)  # thin lines


class Writer:
    """Writes below `out`, frame by frame: `write` in any thread and order, `follow` in one thread and in order of the frames."""

    def __init__(self, out: Path, kinds: Sequence[str], dataset: DatasetBase, shown: Pictures | Video):
        """Raises ConfigError on a kind that this dataset, or a video, has not."""
        self.out, self.kinds, self.dataset, self.metric = out, kinds, dataset, metrics.of(dataset)
        video = isinstance(shown, Video)
        if "lanes" in kinds and not dataset.lanes:
            raise ConfigError("--as lanes: this dataset's classes are no lanes; take overlay, ids or colours")
        if "submission" in kinds and (video or not self.metric.has_files):
            raise ConfigError(
                f"--as submission: no evaluator reads files of {'a video' if video else 'this dataset'}; take ids or colours"
            )
        self.film: Film | None = None
        if isinstance(shown, Video) and "overlay" in kinds:
            self.film = Film(below(out, f"overlay/{shown.path.stem}.mp4", DatasetError), shown.fps)
        lanes_file = "lanes" in kinds and self.metric.lanes_in_one_file
        pictures = None if isinstance(shown, Video) else shown
        self.ids = submission_ids(pictures, self.metric) if pictures and ("submission" in kinds or lanes_file) else {}
        self.rows: dict[str, list[np.ndarray]] = {}

    def write(self, pair: tuple[Sample, Answer]) -> "Rest":
        (name, image, _), answer = pair
        rest = Rest(name)
        for kind in self.kinds:
            folder = self.out / kind
            if kind == "submission":
                self.metric.write(folder, self.ids[name], answer)
            elif kind == "overlay":
                painted = overlay(image, answer.classes_HW, self.dataset)
                if self.film is None:
                    save(folder, f"{name}.jpg", painted[:, :, ::-1], *JPEG)
                else:
                    rest.painted = painted
            elif kind == "ids":
                own = getattr(self.dataset, "prediction_ids", None)
                save(folder, f"{name}.png", answer.classes_HW if own is None else own(answer.classes_HW))
            elif kind == "colours":
                save(folder, f"{name}.png", np.array(self.dataset.colours, np.uint8)[answer.classes_HW][:, :, ::-1])
            elif self.metric.lanes_in_one_file:
                rest.rows = [llamas.rows(lane, len(image)) for lane in culane.lanes(answer, self.dataset)]
            else:
                culane.write_answer(folder, name, answer, self.dataset)
        return rest

    def follow(self, rest: "Rest") -> None:
        if rest.painted is not None and self.film is not None:
            self.film.add(rest.painted)
        if rest.rows is not None:
            self.rows[self.ids.get(rest.name, rest.name)] = rest.rows

    def close(self) -> None:
        if self.film is not None:
            self.film.close()
        if self.rows:
            llamas.write_rows(self.out / "lanes" / "lanes.json", self.rows)


@dataclass
class Rest:
    """What is not a file of its own frame."""

    name: str
    painted: np.ndarray | None = None  # [H, W, 3] RGB, of a video
    rows: list[np.ndarray] | None = None  # of LLAMAS's lanes


class Film:
    """The overlays of a video as an MP4 at the same rate, without sound; it has its name once it is whole."""

    def __init__(self, path: Path, fps: float):
        self.path, self.partial, self.fps = path, path.with_name(f".{path.name}"), fps
        self.writer: cv2.VideoWriter | None = None

    def add(self, image: np.ndarray) -> None:
        if self.writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.writer = cv2.VideoWriter(str(self.partial), cv2.VideoWriter.fourcc(*"mp4v"), self.fps, image.shape[1::-1])
            assert self.writer.isOpened()
        self.writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        if self.writer is not None:
            self.writer.release()
            self.partial.replace(self.path)


def save(folder: Path, name: str, pixels: np.ndarray, *options: int) -> None:
    """Grey or BGR. Raises DatasetError if the name leads out of the folder."""
    path = below(folder, name, DatasetError)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, np.ascontiguousarray(pixels), options)[1].tobytes())


def submission_ids(shown: Pictures, metric: MetricBase) -> dict[str, str]:
    """The id that the dataset's evaluator knows each picture by. Raises DatasetError where two would be one."""
    ids = {name: metric.image_id(path, shown.root) for name, path in shown.paths.items()}
    first: dict[str, str] = {}
    for name, image_id in ids.items():
        if (other := first.setdefault(image_id, name)) != name:
            raise DatasetError(
                f"{shown.paths[name]}: is {image_id!r} to the evaluator, as {shown.paths[other]} is; show the "
                f"network one of their folders at a time"
            )
    return ids
