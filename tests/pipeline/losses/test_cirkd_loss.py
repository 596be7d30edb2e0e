"""CIRKD's three terms against loops in float64, and the bank they draw from."""

import dataclasses

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.losses.base import Batch
from pipeline.losses.cirkd import Loss
from pipeline.models.base import Output
from pipeline.targets.anchors import NONE, Target
from pipeline.targets.base import Context
from pipeline.teacher.parity import loss_error

SIZE, GRID, K = (48, 80), (6, 10), 4
TEACHER = Context(num_classes=K, regions=tuple(range(K)), size=SIZE, grids={"high": GRID, "logits": GRID}, channels={"high": 8})
STUDENT = Context(num_classes=K, regions=tuple(range(K)), size=SIZE, grids={"high": (12, 20), "logits": GRID}, channels={"high": 5})
TARGET = Target(layer="high", count=18)
TERMS = ("mini_batch", "memory_pixel", "memory_region")


def features(context, seed, num_images=3):
    generator = torch.Generator().manual_seed(seed)
    return Output(
        torch.empty(0), {"high": torch.randn(num_images, context.channels["high"], *context.grids["high"], generator=generator)}
    )


def labels(num_images=3):
    labels_BHW = torch.zeros(num_images, *SIZE, dtype=torch.uint8)
    labels_BHW[:, :, 30:], labels_BHW[:, 24:40, 8:24], labels_BHW[:, :8], labels_BHW[:, 8:16, 72:] = 1, 2, 255, 3
    labels_BHW[1:2, :, 16:] = 255  # fewer labelled cells than anchors
    return labels_BHW


def rows_of(teacher, labels_BHW=None, target=TARGET, stored=True):
    live = target.compute(teacher, labels(len(teacher.features["high"])) if labels_BHW is None else labels_BHW, TEACHER)
    return target.decode({name: torch.from_numpy(array) for name, array in target.encode(live).items()}) if stored else live


def batch_of(rows, step=3):
    labels_BHW = labels(len(rows["label"]))
    inside_BHW = torch.ones(labels_BHW.shape, dtype=torch.bool)
    inside_BHW[0, 40:] = False
    return Batch(
        images_B3HW=torch.empty(0), labels_BHW=labels_BHW, inside_BHW=inside_BHW, existence_BL=None, rows={"read": rows}, step=step
    )


def loss_of(only=None, surveyed=True, **keys):
    torch.manual_seed(0)
    weights = {} if only is None else {term: float(term == only) for term in TERMS}
    sizes = dict(bank_pixels=12, bank_regions=5, per_image=3, contrast_pixels=19, contrast_regions=7)
    loss = Loss(reads={"read": TARGET}, context=TEACHER, student=STUDENT, **weights | sizes | keys)
    if surveyed and loss.needs_scan:
        loss.scan([{"read": rows_of(features(TEACHER, 10 + i, 2))} for i in range(3)])
    return loss


def kl(student, teacher):
    """KL(teacher || student) of two lists of logits, in float64."""

    def softmax(logits):
        e = np.exp(logits - logits.max())
        return e / e.sum()

    p, q = softmax(teacher), softmax(student)
    return float((p * np.log(p / q)).sum())


def unit(vector):
    return vector / np.linalg.norm(vector)


def anchors_of(batch, student):
    """Of each image the teacher's and the student's raw vectors at its anchors, cell by cell."""
    rows, found = batch.rows["read"], []
    for b in range(len(rows["label"])):
        here = []
        for n, place in enumerate(rows["place"][b].tolist()):
            y, x = divmod(place, GRID[1])
            seen = batch.inside_BHW[b, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8].double().mean() >= 0.5
            if rows["label"][b, n] != NONE and seen:
                cell = student.features["high"][b, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
                here.append((rows["embedding"][b, n].double().numpy(), cell.double().mean(dim=(1, 2)).numpy()))
        found.append(here)
    return found


def test_the_mini_batch_term_equals_the_loops():
    batch, student = batch_of(rows_of(features(TEACHER, 0))), features(STUDENT, 1)
    images, total = anchors_of(batch, student), 0.0
    assert {len(here) for here in images} != {18}  # padding and cells outside are left out
    for first in images:
        for second in images:
            terms = []
            for teacher_D, student_D in first:
                terms.append(
                    kl(
                        np.array([unit(student_D) @ unit(other) for _, other in second]) / 0.1,
                        np.array([teacher_D @ other for other, _ in second]) / 0.1,
                    )
                )
            total += np.mean(terms) / 9
    assert loss_of("mini_batch")(student, batch).item() == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("term, kind, size", [("memory_pixel", "pixels", 19), ("memory_region", "regions", 7)])
def test_a_memory_term_equals_the_loops(term, kind, size):
    batch, student, loss = batch_of(rows_of(features(TEACHER, 0))), features(STUDENT, 1), loss_of(term)
    contrast_MD, known_M = loss.contrast(kind, size, batch.step)
    contrast = contrast_MD[known_M].double().numpy()
    first, norm, _, last = loss.projection
    first, last = (layer.weight.detach().double().numpy() for layer in (first, last))
    images = anchors_of(batch, student)
    hidden = np.array([first @ student_D for here in images for _, student_D in here])
    hidden = np.maximum(0, (hidden - hidden.mean(axis=0)) / np.sqrt(hidden.var(axis=0) + norm.eps))
    projected, total = iter(hidden @ last.T), 0.0
    for here in images:
        total += np.mean([kl(contrast @ unit(next(projected)) / 0.1, contrast @ teacher_D / 0.1) for teacher_D, _ in here]) / 3
    assert loss(student, batch).item() == pytest.approx(total, rel=1e-4)


def test_the_three_terms_add_up_with_their_weights():
    batch, student = batch_of(rows_of(features(TEACHER, 0))), features(STUDENT, 1)
    parts = [loss_of(term)(student, batch).item() for term in TERMS]
    assert loss_of()(student, batch).item() == pytest.approx(parts[0] + 0.1 * parts[1] + 0.1 * parts[2], rel=1e-5)


@pytest.mark.parametrize("term", TERMS)
def test_offline_equals_online(term):
    """The same bank and draws on both sides; float16 embeddings against live ones; a neighbour's row is far off."""
    teacher, student, loss = features(TEACHER, 0), features(STUDENT, 1), loss_of(term)
    student.features["high"].requires_grad_()
    student = student._replace(logits=torch.zeros(1, requires_grad=True))
    stored, live = rows_of(teacher), rows_of(teacher, stored=False)
    error = loss_error(term, loss, student, batch_of(stored), batch_of(live))
    assert error.online > 0 and error.difference < 1e-3 and error.gradient_difference < 2e-3, error
    wrong = dict(stored, embedding=stored["embedding"].roll(1, 0))
    assert loss_error(term, loss, student, batch_of(wrong), batch_of(live)).gradient_difference > 0.1


def test_the_bank_holds_unit_embeddings_of_its_class_and_few_of_an_image():
    """Teachers whose features name the class: an embedding tells which class and image it came from."""
    several = []
    for i in range(4):
        map_BChw = torch.zeros(1, 8, *GRID)
        for k in range(K):
            map_BChw[0, k][torch.from_numpy(labels(1)[0, 4::8, 4::8].numpy() == k)] = 10
        map_BChw[0, 4 + i] = 1
        several.append({"read": rows_of(Output(torch.empty(0), {"high": map_BChw}))})
    loss = loss_of(surveyed=False)
    loss.scan(several)
    assert loss.num_pixels.tolist() == [12, 12, 12, 4] and loss.num_regions.tolist() == [4, 4, 4, 4]
    for k in range(K):
        for kind in ("pixels", "regions"):
            kept = getattr(loss, kind)[k, : int(getattr(loss, f"num_{kind}")[k])].float()
            assert (kept[:, :4].argmax(dim=1) == k).all() and kept.norm(dim=1).numpy() == pytest.approx(1, abs=1e-3)
        images = loss.pixels[k, :12, 4:].float().argmax(dim=1)
        assert torch.bincount(images[: int(loss.num_pixels[k])]).max() <= 3


def test_the_published_sampling_takes_the_first_cells_for_cells_of_the_class():
    loss = loss_of(sampling="published", surveyed=False)
    rows = rows_of(features(TEACHER, 0, 1))
    for k in range(K):
        taken = loss.pushed(rows, k)[0]
        first = (rows["place"][0] < rows["cells"][0, k]) & (rows["label"][0] != NONE)
        assert taken.sum() == min(3, first.sum()) and not (taken & ~first).any()
    loss.scan([{"read": rows}])
    correct = loss_of(surveyed=False)
    correct.scan([{"read": rows}])
    assert not torch.equal(loss.pixels, correct.pixels) and torch.equal(loss.regions, correct.regions)


def test_the_bank_does_not_depend_on_how_the_rows_are_grouped():
    parts = [{"read": rows_of(features(TEACHER, 10 + i, 1))} for i in range(6)]
    together = {"read": {name: torch.cat([part["read"][name] for part in parts]) for name in parts[0]["read"]}}
    for images in (6, 4):  # also where the survey ends within a group
        one, six = loss_of(surveyed=False, bank_images=images), loss_of(surveyed=False, bank_images=images)
        one.scan([together]), six.scan(parts)
        assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), six.state_dict().values()))


def test_another_seed_draws_other_contrast_sets():
    drawn = [loss_of(seed=seed).contrast("pixels", 19, 5)[0] for seed in (0, 1)]
    assert not torch.equal(*drawn)


def test_a_contrast_set_follows_from_the_step_and_repeats_nothing():
    loss = loss_of()
    first, again, other = (loss.contrast("pixels", 19, step) for step in (5, 5, 6))
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], other[0])
    assert first[0].shape == (K * 5, 8) and int(first[1].sum()) == sum(min(5, int(n)) for n in loss.num_pixels)
    assert len(first[0][first[1]].unique(dim=0)) == int(first[1].sum())
    assert not torch.equal(loss.contrast("regions", 19, 5)[0][:5], first[0][:5])


def test_the_bank_is_checkpointed_and_not_trained():
    loss, fresh = loss_of(), loss_of(surveyed=False)
    fresh.load_state_dict(loss.state_dict())
    assert torch.equal(fresh.pixels, loss.pixels) and fresh.num_pixels.any()
    assert {name.split(".")[0] for name, _ in loss.named_parameters()} == {"projection"}


def test_without_memory_terms_there_is_neither_projection_nor_bank():
    loss = loss_of("mini_batch")
    assert not loss.needs_scan and not loss.state_dict()


def test_an_image_without_anchors_leaves_the_others_alone():
    """It counts with zero: the other pairs' share of the mean is (2 / 3)^2."""
    teacher, student, loss = features(TEACHER, 0), features(STUDENT, 1), loss_of("mini_batch")
    labels_BHW = labels()
    labels_BHW[2] = 255
    whole = loss(student, batch_of(rows_of(teacher, labels_BHW)))
    two = Output(torch.empty(0), {"high": student.features["high"][:2]})
    assert whole.item() == pytest.approx(
        loss(two, batch_of({n: v[:2] for n, v in rows_of(teacher).items()})).item() * 4 / 9, rel=1e-5
    )


def test_two_targets_in_one_loss_are_refused():
    with pytest.raises(ConfigError, match="name one target"):
        Loss(reads={"a": TARGET, "b": dataclasses.replace(TARGET, seed=1)}, context=TEACHER, student=STUDENT)


def test_training_brings_the_loss_down():
    loss, student, batch = loss_of(), features(STUDENT, 1), batch_of(rows_of(features(TEACHER, 0)))
    optimiser, values = torch.optim.Adam([student.features["high"].requires_grad_(), *loss.parameters()], lr=0.1), []
    for _ in range(30):
        optimiser.zero_grad()
        value = loss(student, batch)
        value.backward()
        optimiser.step()
        values.append(value.item())
    assert values[-1] < 0.3 * values[0]
