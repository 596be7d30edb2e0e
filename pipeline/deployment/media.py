"""What a trained network can be shown besides a dataset: the pictures below a folder, one picture, or a video.

A frame that can't be read is handed on as the error that says why, so that the others are not lost. Pictures are read as
a dataset's are (datasets/_images.py), turned upright as their EXIF says. A video is turned upright as its file says.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import cv2

from pipeline.datasets._images import read_rgb
from pipeline.datasets.folder import PICTURES, stem, visible_files
from pipeline.errors import DatasetError
from pipeline.paths import path_fault
from pipeline.progress import say
from pipeline.scoring.predict import Sample
from pipeline.threads import map_in_order

VIDEOS = {".mp4", ".m4v", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".ts"}


class Pictures:
    """`paths`: a picture by its name, which is its path below the folder without the ending."""

    unit = "images"

    def __init__(self, place: Path, picture_bits: int | None = None):
        self.picture_bits = picture_bits
        self.root = place if place.is_dir() else place.parent
        files = not_predicted(place) if place.is_dir() else [place]
        pictures = [path for path in files if path.suffix.lower() in PICTURES]
        if not pictures:
            raise DatasetError(
                f"{place}: holds no picture ({' '.join(sorted(PICTURES))}) and is no video; name a folder of "
                f"pictures, a picture or a video"
            )
        self.paths: dict[str, Path] = {}
        for path in pictures:
            other = self.paths.setdefault(stem(path, self.root), path)
            if other is not path:
                raise DatasetError(
                    f"{path}: would be written over {other.name}, which differs only in its ending; give one of them another name"
                )
        self.total, self.others = len(pictures), len(files) - len(pictures)

    def read(self, pool: ThreadPoolExecutor, workers: int) -> Iterator[Sample | DatasetError]:
        """Every picture in order of its name, read ahead by the pool's threads."""

        def one(name):
            if fault := path_fault(name):
                return DatasetError(f"{str(self.paths[name])!r}: its name {fault}; rename it")
            try:
                return Sample(name, read_rgb(self.paths[name], self.picture_bits), None)
            except DatasetError as error:
                return error

        return map_in_order(pool, one, self.paths, 2 * workers)


class Video:
    """Its frames are named <video>/000000, ..."""

    unit = "frames"
    others = 0

    def __init__(self, path: Path):
        self.path = path
        if fault := path_fault(path.stem):
            raise DatasetError(f"{str(path)!r}: its name {fault}; rename it")
        self.capture = cv2.VideoCapture(str(path))
        if not self.capture.isOpened():
            raise DatasetError(f"{path}: cannot be read as a video; convert it with `ffmpeg -i {path.name} out.mp4`")
        self.fps = self.capture.get(cv2.CAP_PROP_FPS) or 25.0
        self.total = max(0, round(self.capture.get(cv2.CAP_PROP_FRAME_COUNT)))  # some formats only estimate it

    def read(self, pool: ThreadPoolExecutor, workers: int) -> Iterator[Sample | DatasetError]:
        """Every frame in order. A video that ends more than a second early is a DatasetError at its end; of one that ends less
        early it is said."""

        def one(number):
            here, image_BGR = self.capture.read()
            if not here:
                return None
            return Sample(f"{self.path.stem}/{number:06d}", cv2.cvtColor(image_BGR, cv2.COLOR_BGR2RGB), None)

        number = 0
        with ThreadPoolExecutor(1) as reader:  # frames come one after the other
            for sample in map_in_order(reader, one, count(), 2 * workers):
                if sample is None:
                    break
                number += 1
                yield sample
        short = f"{self.path}: ends after {number} of the {self.total} frames it promises"
        if number < self.total - self.fps:
            yield DatasetError(f"{short}; fetch it again")
        elif number < self.total:
            say(f"{short}; some formats only estimate their number: if frames are missing, fetch it again")


def not_predicted(place: Path) -> list[Path]:
    """The files below a folder, without what `pipeline predict` wrote there: its folders hold a predict.json."""
    files = visible_files(place)
    written = {path.parent for path in files if path.name == "predict.json"} - {place}
    return [path for path in files if written.isdisjoint(path.parents)]


def opened(place: Path, picture_bits: int | None = None) -> Pictures | Video:
    """`picture_bits` are the dataset's. Raises DatasetError where there is nothing to be shown."""
    if not place.exists():
        raise DatasetError(f"{place}: no such file or folder; name a folder of pictures, a picture or a video")
    return Video(place) if place.is_file() and place.suffix.lower() in VIDEOS else Pictures(place, picture_bits)
