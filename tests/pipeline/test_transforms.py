"""Flips, crops and affine maps take images, labels, lane flags and rows to the same place, or refuse."""

import dataclasses

import pytest
import torch

import pipeline
from pipeline import transforms
from pipeline.data.transforms import bilinear, on_grids
from pipeline.errors import ConfigError
from tests.pipeline.test_api import Own

MAPS = ["attention_high", "logits"]


@pytest.fixture
def here(cached_experiment, monkeypatch):
    monkeypatch.chdir(cached_experiment.folder)


@pytest.fixture
def cache(here):
    return pipeline.open_cache("toy.yaml", targets=MAPS)


def batch_of(cache, view=0, count=4):
    return pipeline.collate([cache[image_id, view] for image_id in cache.ids[:count]])


def test_a_batch_says_which_images_and_views_it_shows(cache):
    batch = pipeline.collate([cache[cache.ids[0], 1], cache[cache.ids[3], 2]])
    assert batch.ids == (cache.ids[0], cache.ids[3]) and batch.views == (1, 2)
    assert torch.equal(batch.matrices_B23[1], cache[cache.ids[3], 2].matrix_23)
    second = batch.to("cpu").parts(2)[1]
    assert second.ids == (cache.ids[3],) and second.views == (2,) and torch.equal(second.matrices_B23, batch.matrices_B23[1:])


@pytest.mark.parametrize("view", [1, 2])
def test_the_plain_view_through_a_stored_matrix_is_that_stored_view(cache, view):
    """Mirrored ones among them: pixels, labels, what lies outside, and lane flags."""
    plain, stored = batch_of(cache, 0, 13), batch_of(cache, view, 13)
    assert transforms.warp_affine(cache, plain, plain.matrices_B23) is plain
    found = transforms.warp_affine(cache, plain, stored.matrices_B23)
    for name in ("images_B3HW", "labels_BHW", "inside_BHW", "existence_BL", "matrices_B23"):
        assert torch.equal(getattr(found, name), getattr(stored, name)), name


def test_a_flip_turns_every_cell_and_renames_left_and_right(cache):
    batch, order = batch_of(cache), list(cache.symmetry.classes)
    flipped = transforms.horizontal_flip(cache, batch)
    assert order != sorted(order), "classes of the road set change sides"
    assert torch.equal(flipped.images_B3HW, batch.images_B3HW.flip(-1))
    assert torch.equal(flipped.inside_BHW, batch.inside_BHW.flip(-1))
    assert torch.equal(flipped.rows["attention_high"]["energy"], batch.rows["attention_high"]["energy"].flip(-1))
    assert torch.equal(flipped.rows["logits"]["logits"], batch.rows["logits"]["logits"].flip(-1)[:, order])
    renamed = torch.tensor([*order, *range(len(order), 256)])[batch.labels_BHW.flip(-1).long()]
    assert torch.equal(flipped.labels_BHW.long(), renamed)
    back = transforms.horizontal_flip(cache, flipped)
    for one, other in zip(back.tensors(), batch.tensors()):
        assert torch.equal(one, other)
    torch.manual_seed(0)
    some = transforms.RandomHorizontalFlip(cache, p=0.5)(batch)
    turned = [not torch.equal(one, other) for one, other in zip(some.images_B3HW, batch.images_B3HW)]
    torch.manual_seed(0)
    assert turned == (torch.rand(4) < 0.5).tolist() and 0 < sum(turned) < 4


def test_a_crop_on_whole_cells_is_a_slice_of_everything(cache):
    batch = batch_of(cache)
    stride = 48 // batch.rows["attention_high"]["energy"].shape[1]
    part = transforms.crop(cache, batch, 16, 32, 32, 64)
    assert torch.equal(part.images_B3HW, batch.images_B3HW[..., 16:48, 32:96])
    assert torch.equal(part.labels_BHW, batch.labels_BHW[:, 16:48, 32:96])
    rows, columns = slice(16 // stride, 48 // stride), slice(32 // stride, 96 // stride)
    assert torch.equal(part.rows["attention_high"]["energy"], batch.rows["attention_high"]["energy"][:, rows, columns])
    assert torch.equal(part.rows["logits"]["logits"], batch.rows["logits"]["logits"][:, :, rows, columns])
    assert part.matrices_B23[0].tolist() == [[1, 0, 32], [0, 1, 16]]
    torch.manual_seed(1)
    corners = transforms.RandomCrop(cache, (32, 64))(batch).matrices_B23[:, :, 2]
    assert len(corners.unique(dim=0)) == 4 and (corners >= 0).all() and (corners <= torch.tensor([64, 16])).all()
    with pytest.raises(ConfigError, match="64 x 64 is larger than the batch's images, 48 x 128"):
        transforms.RandomCrop(cache, (64, 64))(batch)


def test_a_map_is_sampled_where_its_image_is():
    """A ramp over the image, averaged over cells of 8 pixels, is the ramp at the middle of each cell after any matrix."""
    matrix = torch.tensor([[[1.25, 0.5, 3.0], [-0.25, 0.75, 20.0]]], dtype=torch.float64)

    def ramp(x, y):
        return 3 * x - 2 * y

    def middles(cells):
        return torch.arange(cells).double() * 8 + 3.5

    cells = ramp(middles(16)[None, :], middles(16)[:, None])[None, None].float()
    found = bilinear(cells, on_grids(matrix, (128, 128), (16, 16), (64, 64), (8, 8)), (8, 8))[0, 0]
    x, y = middles(8)[None, :], middles(8)[:, None]
    (a, b, c), (d, e, f) = matrix[0].tolist()
    assert torch.allclose(found, ramp(a * x + b * y + c, d * x + e * y + f).float(), atol=0.02)


def test_a_loss_on_cropped_batches_is_the_loss_of_their_pixels_and_a_batch_of_another_size_is_refused(cache):
    torch.manual_seed(0)
    model, batch = Own(len(cache.classes)).eval(), batch_of(cache)
    part = transforms.crop(cache, batch, 8, 24, 32, 64)
    whole = pipeline.make_loss("kd", cache, reads=["logits"], student=model, temperature=1.0)
    cropped = pipeline.make_loss("kd", cache, reads=["logits"], student=model, size=(32, 64), temperature=1.0)
    assert whole(model(batch.images_B3HW), batch) > 0
    # the teacher itself as student: nothing is left to learn, on the crop too
    assert abs(cropped(pipeline.Output(part.rows["logits"]["logits"], {}), part)) < 1e-6
    line = r"^kd: this batch shows 32 x 64 pixels, and the loss was made for 48 x 128; .*size=\(32, 64\)$"
    with pytest.raises(ConfigError, match=line):
        whole(model(part.images_B3HW), part)
    by_hand = dataclasses.replace(batch, images_B3HW=batch.images_B3HW[..., :32, :64], labels_BHW=batch.labels_BHW[:, :32, :64])
    with pytest.raises(ConfigError, match="shows 32 x 64"):
        whole(model(by_hand.images_B3HW), by_hand)


def test_what_cannot_follow_is_refused_by_name(here, cache):
    graphs = pipeline.open_cache("toy.yaml", targets=["graph_high"])
    with pytest.raises(ConfigError, match="graph_high: the rows of a target of type affinity .* leave it out"):
        transforms.horizontal_flip(graphs, batch_of(graphs))
    alone = dataclasses.replace(cache.symmetry, classes=None)
    unknown = type("Unknown", (), {"targets": cache.targets, "symmetry": alone, "context_at": cache.context_at})()
    with pytest.raises(ConfigError, match="not known how classes change"):
        transforms.horizontal_flip(unknown, batch_of(cache))
    with pytest.raises(ConfigError, match="multiples of 8"):
        transforms.crop(cache, batch_of(cache), 0, 0, 30, 64)
    with pytest.raises(ConfigError, match=r"write \[B, 2, 3\]"):
        transforms.warp_affine(cache, batch_of(cache), torch.eye(2, 3))


def test_maps_of_classes_go_by_the_nearest_cell(cache):
    """Classes of top_classes and pseudo_labels are names: they are not averaged, and a mirror renames them."""
    from pipeline import config

    batch, size = batch_of(cache), (48, 128)
    context, order = cache.context_at(size), torch.tensor([*cache.symmetry.classes, *range(5, 256)])
    targets = {
        "top": config.plugin("targets", "top_classes", {"count": 2}).build(),
        "sure": config.plugin("targets", "pseudo_labels", {"threshold": 0.3}).build(),
    }
    output = pipeline.Output(batch.rows["logits"]["logits"], {})
    rows = {name: target.compute(output, batch.labels_BHW, context) for name, target in targets.items()}
    other = type("Other", (), {"targets": targets, "symmetry": cache.symmetry, "context_at": cache.context_at})()
    flipped = transforms.horizontal_flip(other, dataclasses.replace(batch, rows=rows))
    assert torch.equal(flipped.rows["sure"]["labels"].long(), order[rows["sure"]["labels"].flip(-1).long()])
    assert torch.equal(flipped.rows["top"]["classes"], order[rows["top"]["classes"].flip(-1)])
    assert torch.equal(flipped.rows["top"]["logs"], rows["top"]["logs"].flip(-1))
