"""A handful of frames in the layout of every dataset, as small as the readers allow, and a configuration of each."""

import os
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from pipeline.datasets import cityscapes
from pipeline.datasets.folder import EXAMPLE
from pipeline.synth import apolloscape, llamas
from pipeline.synth.settings import Settings

ROOT = Path(__file__).parents[2]
CITIES = {"train": "aachen", "val": "lindau"}


def roads(root: Path) -> dict:
    return dict(name="roads", root=str(root), train=3, val=0, test=4, size=[118, 328], seed=2, difficulty=0.0)


def apolloscape_frames(root: Path) -> dict:
    counts = {"road02/Record001": 3, "road04/Record015": 2, "road05": 1}
    apolloscape.write(root, Settings(size=(136, 170), seed=2, difficulty=0.0), counts)
    return dict(
        name="apolloscape", root=str(root), roads=["road02", "road04"], val=["road04/Record015"], crop_top=51, size=[136, 170]
    )


def llamas_frames(root: Path) -> dict:
    counts = {"train/images-a": 3, "valid/images-b": 1, "valid/images-c": 3, "test/images-d": 1}
    llamas.write(root, Settings(size=(180, 319), seed=2, difficulty=0.0), counts)
    return dict(name="llamas", root=str(root), protocol="paper", size=[180, 319], crop_top=71)


def blocks(rng, values, size):
    """Blocky values, so that resizing keeps most of them."""
    coarse = rng.choice(values, (-(-size[0] // 8), -(-size[1] // 8)))
    return np.kron(coarse, np.ones((8, 8), int))[: size[0], : size[1]].astype(np.uint8)


def cityscapes_frames(root: Path) -> dict:
    rng = np.random.default_rng(3)
    for split, city in CITIES.items():
        for number in range(3 if split == "train" else 2):
            stem = f"{split}/{city}/{city}_000000_{number:06d}"
            image, ids = rng.integers(0, 256, (60, 117, 3)), blocks(rng, [*cityscapes.OFFICIAL_IDS, 0, 4], (60, 117))
            for path, picture in (
                (root / "leftImg8bit" / f"{stem}_leftImg8bit.png", image),
                (root / "gtFine" / f"{stem}_gtFine_labelIds.png", ids),
            ):
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture.astype(np.uint8)).save(path)
    return dict(name="cityscapes", root=str(root), size=[60, 117])


def folder_frames(root: Path) -> dict:
    rng = np.random.default_rng(4)
    for name in ("images/train", "images/test", "labels/train", "labels/test"):
        (root / name).mkdir(parents=True)
    (root / "classes.yaml").write_text(EXAMPLE.replace("crop_top: 0", "crop_top: 9"))
    for name in ("train/0", "train/1", "test/0", "test/1"):
        Image.fromarray(rng.integers(0, 256, (61, 90, 3)).astype(np.uint8)).save(root / f"images/{name}.png")
        label = blocks(rng, [0, 1, 2, 255], (61, 90))
        label[:9] = 0
        Image.fromarray(label).save(root / f"labels/{name}.png")
    Image.fromarray(np.zeros((61, 90, 3), np.uint8)).save(root / "images/test/unlabelled.png")
    return dict(name="folder", root=str(root))


def camvid_frames(root: Path) -> dict:
    """Real frames, where there are any: the first three of a split."""
    real = Path(os.environ["CAMVID_ROOT"])
    root.mkdir()
    for split in ("train", "val", "test"):
        for folder in (split, f"{split}annot"):
            (root / folder).symlink_to((real / folder).resolve())
        lines = (real / f"{split}.txt").read_text().splitlines()[:3]
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return dict(name="camvid", root=str(root))


# how to write it, the split to score, a size that is no multiple of 8, the size that leaves every pixel as it is
LAYOUTS = {
    "roads": (roads, "test", [60, 250], [70, 328]),
    "apolloscape": (apolloscape_frames, "val", [43, 85], [85, 170]),
    "llamas": (llamas_frames, "test", [55, 160], [109, 319]),
    "cityscapes": (cityscapes_frames, "val", [31, 60], [60, 117]),
    "folder": (folder_frames, "test", [26, 45], [52, 90]),
    "camvid": (camvid_frames, "test", [90, 122], [360, 480]),
}


def write(name: str, folder: Path) -> Path:
    """The configuration, beside the frames in `folder`."""
    frames, split, size, _ = LAYOUTS[name]
    raw = yaml.safe_load((ROOT / "configs/demo.yaml").read_text())
    raw |= dict(dataset=frames(folder / "data"), evaluate=dict(split=split), students=dict(erfnet=dict(width=4)))
    raw["teacher"] = dict(name="erfnet", width=16, dropout=[0.0, 0.0], checkpoint=None, backbone=None, precision="fp32")
    raw["prepare"]["size"] = size
    raw["views"]["mirror"] = False
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path
