"""Writes the road set in CULane's official layout, by any number of processes, and goes on where it was stopped.

Unlike in CULane, the test split has labels and flags too, for here they are exact. A frame is complete once its picture
exists: the other files are written before it, each under another name first. Lists are written last.
"""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import cv2

from pipeline.synth.labels import annotate, existence
from pipeline.synth.render import Frame, render
from pipeline.synth.sampling import draw_scene
from pipeline.synth.scene import CATEGORIES
from pipeline.synth.settings import JPEG_QUALITY, Settings

TASK_FRAMES = 10


def write(root: Path, settings: Settings, counts: dict[str, int], workers: int, progress: Callable[[int, int], None]) -> None:
    """Writes what is missing, then the lists. `progress` is told (frames done, frames in all)."""
    tasks = [
        (split, range(first, min(first + TASK_FRAMES, count)))
        for split, count in counts.items()
        for first in range(0, count, TASK_FRAMES)
    ]
    total, records = sum(counts.values()), {}

    def note(done):
        records.update(done)
        progress(len(records), total)

    if workers <= 1:
        for task in tasks:
            note(write_frames(root, settings, *task))
    else:
        # Spawned, not forked: OpenCV's threads do not survive a fork. One thread each: the processes fill the cores.
        with ProcessPoolExecutor(workers, get_context("spawn"), cv2.setNumThreads, (1,)) as pool:
            try:
                for future in as_completed([pool.submit(write_frames, root, settings, *task) for task in tasks]):
                    note(future.result())
            finally:
                pool.shutdown(cancel_futures=True)  # when stopped, the frames in hand are the last
    write_lists(root, settings, counts, records)


def write_frames(root: Path, settings: Settings, split: str, indices: range) -> dict:
    """{(split, index): (existence flags, category)} of frames that are now complete."""
    records = {}
    for index in indices:
        scene, image_id = draw_scene(settings.seed, split, index, settings.difficulty), settings.image_id(split, index)
        if not (root / f"{image_id}.jpg").exists():
            write_frame(root, image_id, render(scene, settings.size))
        records[split, index] = existence(annotate(scene, settings.size)), scene.category
    return records


def write_frame(root: Path, image_id: str, frame: Frame) -> None:
    lines = "".join(" ".join(f"{x:.3f} {y:g}" for x, y in line) + " \n" for line in frame.lines)
    replace_file(root / f"{image_id}.lines.txt", lines.encode())
    replace_file(root / "laneseg_label_w16" / f"{image_id}.png", encoded(".png", frame.label))
    replace_file(
        root / f"{image_id}.jpg",
        encoded(".jpg", cv2.cvtColor(frame.image, cv2.COLOR_RGB2BGR), cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY),
    )


def encoded(suffix: str, picture, *parameters: int) -> bytes:
    done, data = cv2.imencode(suffix, picture, parameters)
    assert done
    return data.tobytes()


def replace_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_bytes(data)
    unfinished.replace(path)


def write_lists(root: Path, settings: Settings, counts: dict[str, int], records: dict) -> None:
    folder = root / "list"
    for split, count in counts.items():
        ids = [settings.image_id(split, index) for index in range(count)]
        flags = [" ".join(map(str, records[split, index][0])) for index in range(count)]
        if ids:
            labelled = [f"/{i}.jpg /laneseg_label_w16/{i}.png {f}" for i, f in zip(ids, flags)]
            write_list(folder / f"{split}_gt.txt", labelled)
            write_list(folder / f"{split}.txt", [f"/{i}.jpg" for i in ids])
        else:  # an earlier set may have had this split
            for name in (f"{split}_gt.txt", f"{split}.txt"):
                (folder / name).unlink(missing_ok=True)
    for k, category in enumerate(CATEGORIES):
        write_list(
            folder / "test_split" / f"test{k}_{category}.txt",
            [
                f"/{settings.image_id('test', index)}.jpg"
                for index in range(counts["test"])
                if records["test", index][1] == category
            ],
        )


def write_list(path: Path, lines: list[str]) -> None:
    replace_file(path, "".join(line + "\n" for line in lines).encode())
