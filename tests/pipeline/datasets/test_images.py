"""Pictures and labels as people's tools write them: read as they were drawn, or refused by name; never read otherwise."""

import io
import os
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.datasets import _png
from pipeline.datasets._images import UNKNOWN, image_size, read_index_png, read_label_png, read_rgb
from pipeline.datasets.apolloscape import Dataset as ApolloScape
from pipeline.datasets.camvid import TRAIN_IDS as CAMVID
from pipeline.datasets.culane import TRAIN_IDS as CULANE
from pipeline.datasets.folder import EXAMPLE
from pipeline.datasets.folder import Dataset as Folder
from pipeline.errors import DatasetError
from pipeline.metrics import llamas

try:
    import oxipng
except ImportError:
    oxipng = None


def imagemagick() -> str | None:
    """The command, if it is ImageMagick's."""
    for name in ("magick", "/usr/bin/convert", "convert"):
        if found := shutil.which(name):
            said = subprocess.run([found, "-version"], capture_output=True, text=True)
            if said.returncode == 0 and "ImageMagick" in said.stdout:
                return found
    return None


def run(*words) -> None:
    subprocess.run(list(map(str, words)), check=True, capture_output=True)


# how a tool rewrites a PNG in its place; None: it is not installed here
TOOLS = {
    "pillow": lambda path: Image.open(path).save(path, optimize=True),
    "few-bits": lambda path: reduced_bits(path),
    "opencv": lambda path: cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_UNCHANGED)),
    "optipng": (lambda path: run("optipng", "-quiet", "-o1", path)) if shutil.which("optipng") else None,
    "pngcrush": (lambda path: run("pngcrush", "-q", "-reduce", "-ow", path)) if shutil.which("pngcrush") else None,
    "oxipng": (lambda path: oxipng.optimize(path, level=1)) if oxipng else None,
    "imagemagick": (lambda path: run(imagemagick(), path, path)) if imagemagick() else None,
    "imagemagick-strip": (lambda path: run(imagemagick(), path, "-strip", path)) if imagemagick() else None,
}
VALUES = [
    [0],
    [3],
    [255],
    [0, 1],
    [0, 255],
    [0, 3, 255],
    [0, 1, 2, 255],
    [0, 3, 4],
    [0, 17, 34],
    [0, 85, 255],
    list(range(12)),
    [0, 200, 204, 221],
    [0, 204, 255],
    [200, 233, 250],
]


def reduced_bits(path: Path) -> None:
    """As Pillow writes few grey levels in few bits; only for values that are scaled ones."""
    values = np.array(Image.open(path))
    for bits in (1, 2, 4):
        step = 255 // (2**bits - 1)
        if (values % step == 0).all() and Image.open(path).mode == "L":
            path.write_bytes(png(values // step, depth=bits))
            return


def drawn(values, size=(40, 64)) -> np.ndarray:
    """Blocks of these values, so that there is something to pack."""
    rng = np.random.default_rng(len(values))
    coarse = rng.choice(values, (size[0] // 8, size[1] // 8))
    coarse.flat[: len(values)] = values
    return np.kron(coarse, np.ones((8, 8), int)).astype(np.uint8)


def rewrite(path: Path, tool: str) -> None:
    if TOOLS[tool] is None:
        pytest.skip(f"{tool} is not installed")
    TOOLS[tool](path)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    values: np.ndarray, depth: int = 8, colour_type: int = 0, extra: bytes = b"", pixels: bytes | None = None, end: bool = True
) -> bytes:
    """Written by hand, without filters: [H, W] or [H, W, C]; `extra` chunks come before the pixels."""
    height, width = values.shape[:2]
    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in values]
    elif depth == 8:
        rows = [row.astype(np.uint8).tobytes() for row in values]
    else:
        bits = np.unpackbits(values.astype(np.uint8)[..., None], axis=2)[..., 8 - depth :]
        rows = [np.packbits(row.ravel()).tobytes() for row in bits]
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows)) if pixels is None else pixels
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return _png.SIGNATURE + chunk(b"IHDR", header) + extra + chunk(b"IDAT", pixels) + (chunk(b"IEND", b"") if end else b"")


def palette_png(numbers: np.ndarray, colours) -> bytes:
    return png(numbers, colour_type=3, extra=chunk(b"PLTE", bytes(np.uint8(colours).tobytes())))


def greys(values) -> list[list[int]]:
    return [[value] * 3 for value in values]


def own_data(root: Path, card: str = EXAMPLE, size=(40, 64)) -> Path:
    """A folder with one picture; the path of its label."""
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    (root / "classes.yaml").write_text(card)
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(root / "images/a.png")
    return root / "labels/a.png"


def card_of(num_classes: int = 16) -> str:
    classes = "".join(f"  - {{name: c{n}, colour: [{n}, 1, 2]}}\n" for n in range(num_classes))
    return f"classes:\n{classes}ignore: [255]\nbackground: null\n"


# Labels


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("values", VALUES, ids=str)
def test_a_rewritten_grey_label_of_an_official_layout_is_read_as_drawn(tmp_path, tool, values):
    label = drawn(values)
    Image.fromarray(label).save(tmp_path / "a.png")
    rewrite(tmp_path / "a.png", tool)
    for table in (CAMVID, CULANE, ApolloScape(root=".", val=[]).official_ids):
        known = np.full(256, UNKNOWN, np.uint8)
        known[np.flatnonzero(table != UNKNOWN) if isinstance(table, np.ndarray) else [*table, 255]] = 0
        if (known[values] != UNKNOWN).all():
            assert np.array_equal(read_index_png(tmp_path / "a.png", known), label)


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("values", [values for values in VALUES if 200 not in values and 204 not in values], ids=str)
def test_a_rewritten_grey_label_of_own_data_is_read_as_drawn_or_refused_until_the_card_says_value(tmp_path, tool, values):
    label, card = drawn(values), card_of(max([0, *(value for value in values if value < 255)]) + 1)
    path = own_data(tmp_path / "data", card)
    Image.fromarray(label).save(path)
    rewrite(path, tool)
    try:
        assert np.array_equal(Folder(root=tmp_path / "data").label("a"), label)
    except DatasetError as error:
        assert "palette: index" in str(error) and "\n" not in str(error)
        assert tool not in ("pillow", "opencv", "pngcrush")
    (tmp_path / "data/classes.yaml").write_text(card + "palette: value\n")
    assert np.array_equal(Folder(root=tmp_path / "data").label("a"), label)


COLOURS = [(0, 0, 0), (255, 0, 0), (0, 0, 255)]  # as EXAMPLE has them


def full_palette(colours=COLOURS) -> np.ndarray:
    padded = np.zeros((256, 3), np.uint8)
    padded[: len(colours)] = colours
    padded[255] = (224, 224, 192)
    return padded


@pytest.mark.parametrize("tool", [tool for tool in TOOLS if tool not in ("opencv", "few-bits")])
@pytest.mark.parametrize("values", [[0, 1, 2], [0, 2], [1, 2], [0, 1, 2, 255], [2, 255]], ids=str)
def test_a_rewritten_palette_in_colour_is_read_as_drawn_or_refused(tmp_path, tool, values):
    path = own_data(tmp_path)
    label = drawn(values)
    path.write_bytes(palette_png(label, full_palette()))
    assert np.array_equal(Folder(root=tmp_path).label("a"), label)
    rewrite(path, tool)
    try:
        found = Folder(root=tmp_path).label("a")
    except DatasetError:
        return
    assert np.array_equal(found, label)


def test_a_palette_whose_order_differs_from_the_other_labels_is_refused_whichever_is_read_first(tmp_path):
    own_data(tmp_path)
    for name in ("b", "c"):
        shutil.copy(tmp_path / "images/a.png", tmp_path / f"images/{name}.png")
    teal, pink = (0, 128, 128), (255, 20, 147)  # colours of no class
    for name, colours in (("a", [teal, pink]), ("b", [pink, teal]), ("c", [teal, pink, (1, 2, 3)])):
        (tmp_path / f"labels/{name}.png").write_bytes(palette_png(drawn([0, 1]), colours))
    for order in ("abc", "cba"):
        dataset = Folder(root=tmp_path)
        for name in order:
            if name == "b":
                with pytest.raises(
                    DatasetError, match=r"b\.png: shows index 0 in the colour \(255, 20, 147\).*a\.png.*palette: index"
                ):
                    dataset.label(name)
            else:
                assert np.array_equal(dataset.label(name), drawn([0, 1]))
    (tmp_path / "classes.yaml").write_text(EXAMPLE + "palette: index\n")
    assert np.array_equal(Folder(root=tmp_path).label("b"), drawn([0, 1]))


def test_a_palette_with_the_colour_of_another_class_is_refused(tmp_path):
    own_data(tmp_path).write_bytes(palette_png(drawn([0, 1]), [COLOURS[1], COLOURS[0]]))
    with pytest.raises(
        DatasetError, match=r"index 0 .*\(255, 0, 0\), but classes\.yaml gives that colour to class 1 \(left line\)"
    ):
        Folder(root=tmp_path).label("a")


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_few_bits_give_their_raw_values(tmp_path, depth):
    numbers = drawn(range(2**depth))
    (tmp_path / "a.png").write_bytes(png(numbers, depth))
    assert np.array_equal(read_index_png(tmp_path / "a.png"), numbers)
    path = own_data(tmp_path / "data", card_of().replace("[255]", "[]"))
    path.write_bytes(png(numbers, depth))
    if depth == 1:  # 255 is no value of this card, so 1 is 1
        assert np.array_equal(Folder(root=tmp_path / "data").label("a"), numbers)
    (tmp_path / "data/classes.yaml").write_text(card_of() + "palette: index\n")
    assert np.array_equal(Folder(root=tmp_path / "data").label("a"), numbers)


def test_one_bit_that_may_be_1_or_255_is_refused_until_the_card_says_which(tmp_path):
    path = own_data(tmp_path)
    path.write_bytes(png(drawn([0, 1]), 1))
    with pytest.raises(DatasetError, match="number 1 is shown as 255: the value is 1 if it was written so, and 255 if"):
        Folder(root=tmp_path).label("a")
    for word, value in (("index", 1), ("value", 255)):
        (tmp_path / "classes.yaml").write_text(f"{EXAMPLE}palette: {word}\n")
        assert np.array_equal(Folder(root=tmp_path).label("a"), np.where(drawn([0, 1]) == 1, value, 0))


@pytest.mark.parametrize("values", [[0, 255], [0, 3, 255], [3], [2, 3]], ids=str)
def test_a_palette_of_greys_that_differ_from_their_indices_is_refused_until_the_card_says_which(tmp_path, values):
    numbers = drawn(range(len(values)))
    path = own_data(tmp_path, card_of())
    path.write_bytes(palette_png(numbers, greys(values)))
    with pytest.raises(DatasetError, match="palette of greys.*palette: index.*palette: value") as caught:
        Folder(root=tmp_path).label("a")
    assert "\n" not in str(caught.value)
    for word, expected in (("index", numbers), ("value", np.uint8(values)[numbers])):
        (tmp_path / "classes.yaml").write_text(f"{card_of()}palette: {word}\n")
        assert np.array_equal(Folder(root=tmp_path).label("a"), expected)


def test_a_palette_that_is_the_ramp_of_greys_needs_no_word(tmp_path):
    path = own_data(tmp_path)
    path.write_bytes(palette_png(drawn([0, 1, 2, 255]), greys(range(256))))
    assert np.array_equal(Folder(root=tmp_path).label("a"), drawn([0, 1, 2, 255]))


def test_values_of_a_palette_in_colour_do_not_exist(tmp_path):
    own_data(tmp_path, EXAMPLE + "palette: value\n").write_bytes(palette_png(drawn([0, 1]), COLOURS))
    with pytest.raises(DatasetError, match="a palette in colour, which says no values"):
        Folder(root=tmp_path).label("a")


def test_the_cards_new_keys_are_checked(tmp_path):
    own_data(tmp_path, EXAMPLE + "palette: colour\npicture_bits: 7\n")
    with pytest.raises(DatasetError, match="'palette' must be index or value, not 'colour', and 'picture_bits' must be a number"):
        Folder(root=tmp_path)


def apollo_label(root: Path, data: bytes) -> np.ndarray:
    image = root / "ColorImage_road02/ColorImage/Record001/Camera 5/a.jpg"
    label = root / "Labels_road02/Label/Record001/Camera 5/a_bin.png"
    for path in (image, label):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 40)).save(image)
    label.write_bytes(data)
    return ApolloScape(root=root, val=[], ignored=255).label("road02/Record001/Camera_5/a")


def test_apolloscapes_palettes_are_read_by_what_they_can_be(tmp_path):
    ids = drawn([0, 200, 204, 255])
    right = apollo_label(tmp_path, png(ids))
    assert np.unique(right).tolist() == [0, 1, 2, 255]
    other = np.random.default_rng(0).integers(0, 256, (256, 3))  # the official files' palette is not the official colours
    assert np.array_equal(apollo_label(tmp_path, palette_png(ids, other)), right)
    numbers = np.searchsorted([0, 200, 204, 255], ids)
    assert np.array_equal(apollo_label(tmp_path, palette_png(numbers, greys([0, 200, 204, 255]))), right)
    official = [(0, 0, 0), (70, 130, 180), (220, 20, 60), (255, 255, 255)]
    assert np.array_equal(apollo_label(tmp_path, palette_png(numbers, official)), right)
    assert np.array_equal(apollo_label(tmp_path, png(np.uint8(official)[numbers], colour_type=2)), right)
    with pytest.raises(DatasetError, match=r"colour \(9, 8, 7\)"):
        apollo_label(tmp_path, palette_png(numbers, [(9, 8, 7), *official[1:]]))


def test_llamas_maps_keep_their_probabilities_however_they_are_packed(tmp_path):
    for values in ([0, 255], [0, 85, 170, 255], list(range(0, 256, 5))):
        for tool in TOOLS:
            path = tmp_path / "map.png"
            Image.fromarray(drawn(values, (80, 128))).save(path)
            if TOOLS[tool] is not None:
                TOOLS[tool](path)
                assert np.array_equal(llamas.read_map(path), drawn(values, (80, 128))), tool


@pytest.mark.parametrize(
    "data, word",
    [
        (lambda label: encoded(label, "JPEG"), "is a JPEG file, whatever its name"),
        (lambda label: encoded(label, "BMP"), "is a BMP file"),
        (lambda label: png(label.astype(int) * 257, 16), "has 16 bits a pixel, and value 257"),
        (lambda label: png(np.dstack([label] * 3), colour_type=2), "'RGB' pixels"),
        (lambda label: png(np.dstack([label] * 2), colour_type=4), "'LA' pixels"),
        (lambda label: encoded(label, "PNG", exif=turned_exif(3)), "EXIF orientation"),
    ],
)
def test_what_can_be_no_label_is_refused_by_content(tmp_path, data, word):
    own_data(tmp_path).write_bytes(data(drawn([0, 1, 2])))
    with pytest.raises(DatasetError, match=rf"a\.png: .*{word}"):
        Folder(root=tmp_path).label("a")


@pytest.fixture
def camvid():
    if "CAMVID_ROOT" not in os.environ:
        pytest.skip("CAMVID_ROOT is not set")
    from pipeline.datasets.camvid import Dataset

    return Dataset(root=os.environ["CAMVID_ROOT"])


@pytest.mark.parametrize("tool", ["optipng", "oxipng", "imagemagick"])
def test_40_real_labels_that_an_optimiser_packed_are_read_as_drawn(camvid, tmp_path, tool):
    ids = camvid.ids("train")
    for image_id in [ids[n] for n in np.linspace(0, len(ids) - 1, 40).astype(int)]:
        source = camvid.files(image_id)[1]
        shutil.copy(source, tmp_path / "a.png")
        rewrite(tmp_path / "a.png", tool)
        assert np.array_equal(read_index_png(tmp_path / "a.png", CAMVID), np.array(Image.open(source)))


def test_real_labels_whose_last_tenth_was_never_written_are_refused(camvid, tmp_path):
    for image_id in camvid.ids("val")[::5]:
        data = camvid.files(image_id)[1].read_bytes()
        lost = len(data) // 10
        (tmp_path / "a.png").write_bytes(data[:-lost] + bytes(lost))
        with pytest.raises(DatasetError, match=r"a\.png: cannot be read"):
            read_index_png(tmp_path / "a.png", CAMVID)


# Pictures


def picture(size=(48, 72)) -> np.ndarray:
    rng = np.random.default_rng(7)
    smooth = cv2.resize(rng.integers(0, 256, (6, 9, 3)).astype(np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC)
    return (smooth // 2 + rng.integers(0, 128, (*size, 3))).astype(np.uint8)


def encoded(pixels: np.ndarray | Image.Image, kind: str, **options) -> bytes:
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def turned_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


JPEGS = {
    "baseline": dict(quality=90),
    "progressive": dict(quality=90, progressive=True),
    "subsampled": dict(quality=75, subsampling=2),
    "restart": dict(quality=90, restart_marker_rows=1),
    "optimised": dict(quality=60, optimize=True),
}


def refused(path: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        read_rgb(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and "; " in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.bmp", "a.tif", "a.webp"])
def test_content_decides_and_not_the_ending(tmp_path, name):
    for kind, options in (("JPEG", {}), ("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", dict(lossless=True))):
        (tmp_path / name).write_bytes(data := encoded(picture(), kind, **options))
        assert np.array_equal(read_rgb(tmp_path / name), np.array(Image.open(io.BytesIO(data)).convert("RGB"))), kind
        assert image_size(tmp_path / name) == (48, 72)
    (tmp_path / name).write_bytes(encoded(picture(), "GIF"))
    assert "not a picture" in refused(tmp_path / name)


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_of_every_kind_have_pillows_pixels_and_may_be_followed_by_anything(tmp_path, kind, mode):
    data = encoded(Image.fromarray(picture()).convert(mode), "JPEG", **JPEGS[kind] | ({} if mode == "RGB" else {"subsampling": -1}))
    for behind in (b"", b"\0" * 100, b"a film " * 1000, data[: len(data) // 2], data):
        (tmp_path / "a.jpg").write_bytes(data + behind)
        assert np.array_equal(read_rgb(tmp_path / "a.jpg"), np.array(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_that_is_cut_off_or_has_a_hole_is_refused_whatever_its_ending(tmp_path, name, kind):
    data = encoded(picture((240, 320)), "JPEG", **JPEGS[kind])
    path, scan = tmp_path / name, data.index(b"\xff\xda") + 14
    for end in np.linspace(0, len(data) - 1, 25).astype(int):
        for tail in (b"", bytes(len(data) - end), b"\xff" * (len(data) - end)):
            path.write_bytes(data[:end] + tail)
            refused(path)
    if kind != "progressive":  # its later scans are read as other detail (docs/datasets.md)
        for start in np.linspace(scan, len(data) - 4200, 20).astype(int):
            path.write_bytes(data[:start] + bytes(4096) + data[start + 4096 :])
            refused(path)


@pytest.mark.parametrize("label", [False, True])
def test_a_png_is_whole_or_refused_whichever_byte_is_wrong(tmp_path, label):
    values = drawn(range(12)) if label else picture()
    read = (lambda path: read_index_png(path)) if label else read_rgb
    data, path = encoded(values, "PNG"), tmp_path / "a.png"
    for behind in (b"", b"\0", b"a film" * 99):
        path.write_bytes(data + behind)
        assert np.array_equal(read(path), values)
    for place in np.linspace(0, len(data) - 1, 60).astype(int):
        for spoilt in (
            data[:place],
            data[:place] + bytes(len(data) - place),
            data[:place] + data[place + 1 :],
            data[:place] + bytes([data[place] ^ 64]) + data[place + 1 :],
        ):
            if spoilt != data:
                path.write_bytes(spoilt)
                with pytest.raises(DatasetError, match=r"a\.png: "):
                    read(path)


@pytest.mark.parametrize(
    "spoil, word",
    [
        (lambda v: png(v, pixels=zlib.compress(bytes(65 * 20))), "its last rows were never written"),
        (lambda v: png(v, pixels=zlib.compress(bytes(65 * 40))[:-4]), "its last rows were never written"),
        (lambda v: png(v, pixels=zlib.compress(bytes(65 * 41))), "more pixels than its header says"),
        (lambda v: png(v, pixels=b"\x78\x9cnonsense"), "its pixels are damaged"),
        (lambda v: png(v, end=False), "it has no end"),
        (lambda v: png(v, extra=chunk(b"QQQQ", b"")), "a decoder that knows QQQQ chunks"),
        (lambda v: png(v, extra=chunk(b"IDAT", b"") + chunk(b"tEXt", b"a\0b")), "do not follow one another"),
        (lambda v: png(v, colour_type=3), "it has no palette"),
        (lambda v: png(v)[:8] + png(v)[33:], "does not begin with a header"),
        (
            lambda v: _png.SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 2**20, 2**20, 8, 0, 0, 0, 0)) + chunk(b"IEND", b""),
            "1048576 x 1048576 pixels, which is too many",
        ),
        (lambda v: palette_png(v, COLOURS), "beyond the end of its palette"),
    ],
)
def test_a_png_whose_checksums_are_right_but_whose_content_is_not_is_refused(tmp_path, spoil, word):
    (tmp_path / "a.png").write_bytes(spoil(drawn([0, 1, 2, 9])))
    assert word in refused(tmp_path / "a.png")


def test_interlaced_pngs_are_whole_too(tmp_path):
    if not imagemagick():
        pytest.skip("imagemagick is not installed")
    for values in (picture(), picture((3, 2)), drawn([0, 255]), drawn([0, 85, 170])):
        Image.fromarray(values).save(tmp_path / "a.png")
        run(imagemagick(), tmp_path / "a.png", "-interlace", "PNG", tmp_path / "b.png")
        data = (tmp_path / "b.png").read_bytes()
        assert _png.checked(data).interlaced
        assert np.array_equal(read_rgb(tmp_path / "b.png"), values if values.ndim == 3 else np.dstack([values] * 3))


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "WEBP"])
def test_other_formats_that_are_cut_off_are_refused(tmp_path, kind):
    data = encoded(picture(), kind)
    for end in np.linspace(0, len(data) - 8, 20).astype(int):
        (tmp_path / "a.bmp").write_bytes(data[:end])
        refused(tmp_path / "a.bmp")


# Pictures of more than 8 bits


def camera(bits: int) -> np.ndarray:
    """[48, 72, 3] of so many bits, from black to white; `>> bits - 8` of it is the picture."""
    low = np.random.default_rng(1).integers(0, 1 << (bits - 8), (48, 72, 3)) if bits > 8 else 0
    stretched = picture()
    stretched[0, 0] = 255
    return stretched.astype(int) << (bits - 8) | low


def reduced(values: np.ndarray, channels: int) -> np.ndarray:
    return (
        values[..., :1]
        if channels == 1
        else values[..., [0, 0]]
        if channels == 2
        else np.dstack([values, np.full(values.shape[:2], 65535)])
        if channels == 4
        else values
    )


def expected(channels: int) -> np.ndarray:
    eight = camera(8).astype(np.uint8)
    return np.dstack([eight[..., 0]] * 3) if channels < 3 else eight


@pytest.mark.parametrize("bits", [9, 10, 12, 14, 15])
@pytest.mark.parametrize("channels, colour_type", [(1, 0), (3, 2), (2, 4), (4, 6)])
def test_fewer_bits_than_16_are_refused_until_somebody_says_how_many(tmp_path, bits, channels, colour_type):
    path = tmp_path / "a.png"
    path.write_bytes(png(reduced(camera(bits), channels), 16, colour_type))
    said = refused(path)
    assert f"fills {bits} of them" in said and "picture_bits" in said
    assert np.array_equal(read_rgb(path, bits), expected(channels))
    with pytest.raises(DatasetError, match=f"has values of {bits} bits, but picture_bits is {bits - 1}"):
        read_rgb(path, bits - 1)


@pytest.mark.parametrize("channels, colour_type", [(1, 0), (3, 2), (2, 4), (4, 6)])
def test_16_bits_that_are_filled_give_their_upper_8(tmp_path, channels, colour_type):
    (tmp_path / "a.png").write_bytes(png(reduced(camera(16), channels), 16, colour_type))
    assert np.array_equal(read_rgb(tmp_path / "a.png"), expected(channels))


def test_a_dark_picture_of_16_bits_is_read_where_the_file_says_which_bits_count(tmp_path):
    path, dark = tmp_path / "a.png", camera(10) >> 3  # 7 of 10 bits
    said = chunk(b"sBIT", b"\x0a" * 3)
    for scaled in (dark << 6, dark << 6 | dark >> 4):  # as the standard allows it
        path.write_bytes(png(scaled, 16, 2, said))
        assert np.array_equal(read_rgb(path), (dark >> 2).astype(np.uint8))
        path.write_bytes(png(scaled, 16, 2))
        refused(path)
        assert np.array_equal(read_rgb(path, 16), (dark >> 2).astype(np.uint8))
    path.write_bytes(png(dark, 16, 2, said))  # not scaled, against the standard
    refused(path)


def test_own_data_says_how_many_bits_its_pictures_have(tmp_path):
    own_data(tmp_path, EXAMPLE + "picture_bits: 12\n")
    (tmp_path / "images/a.png").write_bytes(png(camera(12), 16, 2))
    dataset = Folder(root=tmp_path)
    assert dataset.picture_bits == 12 and np.array_equal(dataset.image("a"), expected(3))


def test_a_tiff_of_16_bits_is_refused(tmp_path):
    assert cv2.imwrite(str(tmp_path / "a.tif"), camera(12).astype(np.uint16))
    assert "8 bits" in refused(tmp_path / "a.tif")
    Image.fromarray(camera(12)[..., 0].astype(np.uint16)).save(tmp_path / "a.tif")
    assert "8 bits" in refused(tmp_path / "a.tif")


# EXIF orientation


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_pictures_are_turned_as_their_exif_says(tmp_path, kind, orientation):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(picture(), kind, exif=turned_exif(orientation)))
    with Image.open(path) as image:
        wanted = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    found = read_rgb(path)
    assert np.array_equal(found, wanted) and image_size(path) == found.shape[:2]
    assert found.shape == ((72, 48, 3) if orientation in (5, 6, 7, 8) else (48, 72, 3))


def test_a_label_is_paired_with_the_picture_as_it_is_shown(tmp_path):
    path = own_data(tmp_path)
    shown = picture()
    for orientation, undo in (
        (3, Image.Transpose.ROTATE_180),
        (6, Image.Transpose.ROTATE_90),
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
    ):
        stored = Image.fromarray(shown).transpose(undo)
        (tmp_path / "images/a.png").write_bytes(encoded(stored, "PNG", exif=turned_exif(orientation)))
        path.write_bytes(png(drawn([0, 1], (48, 72))))
        dataset = Folder(root=tmp_path)
        assert np.array_equal(dataset.image("a"), shown) and dataset.label("a").shape == (48, 72)


def test_an_exif_block_that_cannot_be_read_says_nothing(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(picture(), "JPEG", exif=b"Exif\0\0nonsense that is no TIFF"))
    assert read_rgb(path).shape == (48, 72, 3) and image_size(path) == (48, 72)


def test_a_label_png_tells_what_it_holds(tmp_path):
    (tmp_path / "a.png").write_bytes(palette_png(drawn([0, 2]), greys([0, 9, 255])))
    found = read_label_png(tmp_path / "a.png")
    assert found.used.tolist() == [0, 2] and not found.is_plain() and np.array_equal(found.values(), drawn([0, 255]))
