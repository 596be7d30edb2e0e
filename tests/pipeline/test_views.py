import hashlib
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from pipeline.config import Views
from pipeline.data import views

SIZE = (16, 24)
SECTION = Views(count=4, seed=3, scale=(0.8, 1.2), rotate_deg=10.0, shift=0.1, mirror=True)
SWAP = (0, 4, 3, 2, 1)


def pictures(count=3, seed=0):
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(0, 256, (count, *SIZE, 3), dtype=np.uint8))
    labels = torch.from_numpy(rng.integers(0, 5, (count, *SIZE), dtype=np.uint8))
    return images, labels


def slow_apply(image, label, matrix, content, permutation, size=None):
    """One pixel at a time in exact fractions."""
    H, W = size or label.shape
    shown, labels, inside = np.zeros((H, W, 3)), np.full((H, W), 255), np.zeros((H, W), bool)
    mirrored = np.linalg.det(matrix[:, :2]) < 0
    entries = [[Fraction(int(torch.round(torch.tensor(v, dtype=torch.float64) * 2**32)), 2**32) for v in row] for row in matrix]
    for y in range(H):
        for x in range(W):
            at = [math.floor((row[0] * x + row[1] * y + row[2]) * 65536 + Fraction(1, 2)) for row in entries]
            near = [math.floor(Fraction(v, 65536) + Fraction(1, 2)) for v in at]
            if 0 <= near[0] < content[1] and 0 <= near[1] < content[0]:
                inside[y, x] = True
                value = int(label[near[1], near[0]])
                labels[y, x] = permutation[value] if mirrored and value < len(permutation) else value
            x0, y0 = at[0] // 65536, at[1] // 65536
            fx, fy = (at[0] % 65536) / 65536, (at[1] % 65536) / 65536
            for dx, dy, weight in ((0, 0, (1 - fx) * (1 - fy)), (1, 0, fx * (1 - fy)), (0, 1, (1 - fx) * fy), (1, 1, fx * fy)):
                there = 0 <= x0 + dx < content[1] and 0 <= y0 + dy < content[0]
                shown[y, x] += weight * (image[y0 + dy, x0 + dx] if there else np.array(views.FILL))
    return shown, labels, inside


def matrices(*listed):
    return torch.from_numpy(np.stack(listed))


def test_the_plain_view_changes_nothing():
    images, labels = pictures()
    shown, warped, inside = views.apply(images, labels, matrices(*[views.identity()] * 3), content=SIZE)
    assert torch.equal(shown.permute(0, 2, 3, 1), images.float())
    assert torch.equal(warped, labels) and inside.all()


def test_views_equal_a_slow_exact_warp():
    images, labels = pictures()
    drawn = [views.draw(SECTION, f"image {i}", 1 + i, SIZE) for i in range(3)]
    content = (13, 22)
    shown, warped, inside = views.apply(images, labels, matrices(*drawn), content=content, permutation=SWAP)
    for i, matrix in enumerate(drawn):
        slow = slow_apply(images[i].numpy(), labels[i].numpy(), matrix, content, SWAP)
        np.testing.assert_allclose(shown[i].permute(1, 2, 0).numpy(), slow[0], atol=1e-3)
        np.testing.assert_array_equal(warped[i].numpy(), slow[1])
        np.testing.assert_array_equal(inside[i].numpy(), slow[2])
    assert 0 < inside.float().mean() < 1 and (warped[~inside] == 255).all()


def test_opencv_and_pytorch_give_the_same_bits():
    rng = np.random.default_rng(0)
    for trial in range(200):
        H, W, h, w = (int(n) for n in rng.integers(1, 60, 4))
        images = torch.from_numpy(rng.integers(0, 256, (2, H, W, 3), dtype=np.uint8))
        labels = torch.from_numpy(rng.integers(0, 256, (2, H, W), dtype=np.uint8))
        drawn = rng.normal(size=(2, 2, 3)) * [1, 1, 40]
        step = (2.0**-40, 1.0, 0.5, 2.0**-16, 2.0**-17)[trial % 5]  # whole pixels, ties between two, and their 1/65536
        turned = matrices(*np.round(drawn / step) * step)
        content = torch.from_numpy(rng.integers(1, (H + 1, W + 1), (2, 2), dtype=np.int32))
        some = (int(content[0, 0]), int(content[0, 1])) if trial % 2 else content
        by_opencv = views.apply(images, labels, turned, content=some, permutation=SWAP, size=(h, w))
        by_torch = views._by_torch(images, labels, turned, some, SWAP, h, w)
        assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(by_opencv, by_torch))


def test_the_plain_view_of_an_image_of_several_bands_changes_nothing():
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 300, 250, 3), dtype=np.uint8))
    assert images[0, :, :, 0].numel() > 2 * views._BAND
    shown, labels, inside = views.apply(images, images[..., 0], matrices(views.identity()), content=(300, 250))
    assert torch.equal(shown.permute(0, 2, 3, 1), images.float()) and torch.equal(labels, images[..., 0]) and inside.all()


def test_a_position_that_16_bits_would_wrap_around_is_outside():
    images, labels = pictures(1)
    far = matrices(np.array([[1.0, 0, 2.0**16], [0, 1, 0]]))
    shown, warped, inside = views.apply(images, labels, far, content=SIZE)
    assert not inside.any() and (warped == 255).all() and (shown == torch.tensor(views.FILL)[:, None, None]).all()


def test_on_the_cpu_opencv_makes_them(monkeypatch):
    monkeypatch.setattr(views, "_by_torch", None)
    images, labels = pictures()
    assert views.apply(images, labels, matrices(*[views.identity()] * 3), content=SIZE)[2].all()


def test_positions_beyond_opencvs_range_are_warped_too():
    images, labels = pictures(1)
    far = matrices(np.array([[1.0, 0, 2.0**15], [0, -1e9, 3]]))
    shown, warped, inside = views.apply(images, labels, far, content=SIZE, permutation=SWAP)
    assert not inside.any() and (warped == 255).all() and torch.equal(shown[0, :, 5, 5], torch.tensor(views.FILL).float())


@pytest.mark.parametrize("offset", [0.5, -0.5, 1.5, 0.25])
def test_labels_at_half_pixel_ties_go_up_to_floor_of_x_plus_half(offset):
    images, labels = pictures(1)
    matrix = np.array([[1.0, 0, offset], [0, 1, 0]])
    _, warped, _ = views.apply(images, labels, matrices(matrix), content=SIZE)
    for x in range(SIZE[1]):
        source = math.floor(x + offset + 0.5)
        expected = labels[0, :, source] if 0 <= source < SIZE[1] else torch.full((SIZE[0],), 255)
        assert torch.equal(warped[0, :, x].long(), expected.long())


def test_a_pure_mirror_reverses_columns_and_permutes_classes():
    images, labels = pictures(1)
    labels[0, 0, 0] = 255
    matrix = np.array([[-1.0, 0, SIZE[1] - 1], [0, 1, 0]])
    shown, warped, inside = views.apply(images, labels, matrices(matrix), content=SIZE, permutation=SWAP)
    assert torch.equal(shown[0].permute(1, 2, 0), images[0].flip(1).float()) and inside.all()
    expected = torch.tensor([*SWAP, *range(5, 256)])[labels[0].flip(1).long()]
    assert torch.equal(warped[0].long(), expected)


def test_a_view_depends_on_seed_id_and_number_alone():
    first = [views.draw(SECTION, name, view, SIZE) for name in "ab" for view in (1, 2)]
    again = [views.draw(SECTION, name, view, SIZE) for view in (2, 1) for name in "ba"]
    assert np.array_equal(first[0], again[3]) and np.array_equal(first[3], again[0])
    assert len({m.tobytes() for m in first}) == 4
    other = Views(**{**vars(SECTION), "seed": 4})
    assert not np.array_equal(views.draw(other, "a", 1, SIZE), first[0])


def test_drawn_views_stay_in_their_ranges_and_half_are_mirrored():
    drawn = np.stack([views.draw(SECTION, f"{i}", 1, SIZE) for i in range(400)])
    scale = 1 / np.sqrt(np.abs(np.linalg.det(drawn[:, :, :2])))
    assert 0.8 <= scale.min() < 0.82 and 1.18 < scale.max() <= 1.2
    assert 0.4 < (np.linalg.det(drawn[:, :, :2]) < 0).mean() < 0.6
    centre = np.array([(SIZE[1] - 1) / 2, (SIZE[0] - 1) / 2, 1])
    moved = drawn @ centre - centre[:2]
    assert np.abs(moved[:, 0]).max() <= 0.1 * SIZE[1] + 1e-9 and np.abs(moved[:, 1]).max() <= 0.1 * SIZE[0] + 1e-9


def test_an_image_is_shown_in_all_its_views_in_turn():
    seen = [views.view_of_epoch("some image", epoch, 4) for epoch in range(8)]
    assert sorted(seen[:4]) == [0, 1, 2, 3] and seen[:4] == seen[4:]


def test_the_order_of_views_is_that_of_version_one():
    assert [views.view_of_epoch(name, 0, 1000) for name in ("train/0001", "a", "Ä")] == ORDER
    assert [views.view_of_epoch("train/0001", epoch, 1000) for epoch in (1, 999)] == [(ORDER[0] + 1) % 1000, (ORDER[0] - 1) % 1000]


ORDER = [
    int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "little") % 1000 for name in ("train/0001", "a", "Ä")
]


def test_outside_is_the_mean_colour_of_imagenet():
    assert views.FILL == tuple(round(255 * mean) for mean in (0.485, 0.456, 0.406))


@pytest.mark.parametrize("x, y", [(0.5, 0), (0, 0.5), (0.25, 0), (0, 0.75)])
def test_a_shift_along_one_axis_is_the_mean_of_two_pixels(x, y):
    images, labels = pictures(1)
    matrix = np.array([[1.0, 0, x], [0, 1, y]])
    shown, _, _ = views.apply(images, labels, matrices(matrix), content=SIZE)
    expected = slow_apply(images[0].numpy(), labels[0].numpy(), matrix, SIZE, SWAP)[0]
    np.testing.assert_allclose(shown[0].permute(1, 2, 0).numpy(), expected, atol=1e-3)


def test_mirrored_is_a_negative_determinant_whatever_the_shift():
    turned = {(0, -1, 1, 0): False, (0, 1, 1, 0): True, (1, 2, 3, 4): True, (4, 2, 3, 4): False, (1, 1, 1, 1): False}
    for (a, b, c, d), expected in turned.items():
        for shift in (-99.0, 0.0, 99.0):
            matrix = np.array([[a, b, shift], [c, d, -shift]], float)
            assert views.mirrored(matrices(matrix)).tolist() == [expected]


def test_opencvs_maps_hold_the_positions_and_the_next_pixel():
    assert views._OPENCV_LIMIT + 1 == np.iinfo(np.int16).max


@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("sign", [-1, 1])
def test_opencv_serves_up_to_the_last_position_that_fits_16_bits(corner, axis, sign):
    """Of 8 x 6 pixels, the farthest along one axis is that of one corner."""
    H, W, h, w = 10, 10, 8, 6
    matrix = np.zeros((2, 3))
    matrix[axis, :2] = [sign * (1 if corner[0] else -1), sign * (1 if corner[1] else -1)]
    farthest = sign * matrix[axis, :2] @ [corner[0] * (w - 1), corner[1] * (h - 1)]
    for limit, fits in ((views._OPENCV_LIMIT - 1, True), (views._OPENCV_LIMIT, False)):
        matrix[axis, 2] = sign * (limit - farthest)
        assert views._fits_opencv(matrices(matrix), H, W, h, w) == fits


@pytest.mark.parametrize("side", range(4))
def test_opencv_serves_up_to_the_largest_size_that_fits_16_bits(side):
    for size, fits in ((views._OPENCV_LIMIT - 1, True), (views._OPENCV_LIMIT, False)):
        assert views._fits_opencv(matrices(views.identity()), *(size if n == side else 9 for n in range(4))) == fits


def test_lane_flags_of_one_image():
    flags, labels = torch.ones(1, 2, dtype=torch.uint8), torch.ones(1, 10, 20, dtype=torch.uint8)
    assert views.existence(flags, labels, (1, 2), matrices(views.identity()), None).tolist() == [[1, 0]]


def test_lane_flags_follow_the_mirror_and_vanish_with_their_pixels():
    flags = torch.tensor([[1, 0, 1, 255], [1, 0, 1, 1]], dtype=torch.uint8)
    labels = torch.zeros(2, 100, 200, dtype=torch.uint8)
    labels[:, :2, :1] = 4  # two pixels of 20,000: just enough
    labels[:, 5:9, :9] = 2
    plain, mirror = views.identity(), np.array([[-1.0, 0, 199], [0, 1, 0]])
    out = views.existence(flags, labels, (1, 2, 3, 4), matrices(plain, mirror), (3, 2, 1, 0))
    assert out.tolist() == [[0, 0, 0, 255], [0, 1, 0, 1]]


def test_golden_matrices_of_version_one():
    assert views.VERSION == 1
    drawn = views.draw(
        Views(count=2, seed=0, scale=(0.9, 1.1), rotate_deg=2.0, shift=0.05, mirror=True), "train/0001", 1, (96, 320)
    )
    np.testing.assert_allclose(drawn, GOLDEN, rtol=0, atol=1e-12)


GOLDEN = np.array(
    [[1.1044640549595868, -0.025000480688248863, -8.0514859064765], [0.025000480688248863, 1.1044640549595868, -4.626403664143808]]
)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device to compare with")
def test_labels_are_bit_equal_on_cpu_and_gpu():
    images, labels = pictures()
    drawn = matrices(*[views.draw(SECTION, f"image {i}", 1 + i, SIZE) for i in range(3)])
    cpu = views.apply(images, labels, drawn, content=SIZE, permutation=SWAP)
    gpu = views.apply(images.cuda(), labels.cuda(), drawn, content=SIZE, permutation=SWAP)
    assert torch.equal(cpu[1], gpu[1].cpu()) and torch.equal(cpu[2], gpu[2].cpu())
    assert (cpu[0] - gpu[0].cpu()).abs().max() < 1 / 255
