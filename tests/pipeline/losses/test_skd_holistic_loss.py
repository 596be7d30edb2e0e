"""The two halves of the game against loops, that neither leaks into the other, and that the discriminator is kept."""

import math

import numpy as np
import pytest
import torch

from pipeline.losses.base import Batch
from pipeline.losses.skd_holistic import Loss, centred, slope
from pipeline.models.base import Output
from pipeline.targets.base import Context
from pipeline.targets.logits import Target

CONTEXT = Context(num_classes=3, regions=(0, 1, 2), size=(40, 56), grids={"logits": (5, 7)}, channels={"logits": 3})


def loss_of(seed=0, **keys):
    torch.manual_seed(seed)
    loss = Loss(reads={"logits": Target()}, context=CONTEXT, student=CONTEXT, **{"width": 4, **keys})
    with torch.no_grad():  # attention and biases that begin as nothing would hide
        for parameter in loss.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return loss


def batch_of(teacher_BKhw, inside_BHW=None, step=3):
    everywhere = torch.ones(len(teacher_BKhw), *CONTEXT.size, dtype=torch.bool)
    return Batch(
        images_B3HW=torch.empty(0),
        labels_BHW=torch.full(everywhere.shape, 255, dtype=torch.uint8),
        existence_BL=None,
        inside_BHW=everywhere if inside_BHW is None else inside_BHW,
        rows={"logits": {"logits": teacher_BKhw}},
        step=step,
    )


def toy(grid=(5, 7), num_images=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    teacher_BKhw = 5 * torch.randn(num_images, 3, 5, 7, generator=generator)
    return teacher_BKhw, (5 * torch.randn(num_images, 3, *grid, generator=generator)).requires_grad_()


def partly_outside():
    """One view lacks column 6 of the 8x8 cells, the other row 0."""
    inside_BHW = torch.ones(2, *CONTEXT.size, dtype=torch.bool)
    inside_BHW[0, :, 48:], inside_BHW[1, :8] = False, False
    return inside_BHW


def slow_score(discriminator, logits_Khw):
    """The discriminator in float64, position by position."""
    state = {name: value.detach().double().numpy() for name, value in discriminator.state_dict().items()}
    x = logits_Khw
    for number in range(3):
        weight, bias = state[f"convolutions.{number}.weight"], state[f"convolutions.{number}.bias"]
        padded, (_, h, w) = np.pad(x, ((0, 0), (1, 1), (1, 1))), x.shape
        x = np.stack(
            [
                [(weight * padded[:, i : i + 3, j : j + 3]).sum(axis=(1, 2, 3)) + bias for j in range(0, w, 2)]
                for i in range(0, h, 2)
            ]
        ).transpose(2, 0, 1)
        x = np.where(x > 0, x, 0.1 * x)
    cells = x.reshape(len(x), -1).T
    query, key, value = (
        cells @ state[f"{name}.weight"][:, :, 0, 0].T + state[f"{name}.bias"] for name in ("query", "key", "value")
    )
    scores = []
    for cell, own in zip(cells, query):
        weights = np.exp([own @ other for other in key])
        attended = cell + state["attended"] * (weights[:, None] * value).sum(axis=0) / weights.sum()
        scores.append(state["last.weight"][0, :, 0, 0] @ attended + state["last.bias"][0])
    return np.mean(scores)


def slow_slope(discriminator, logits_Khw, inside_hw):
    squares = 0.0
    for k, i, j in np.ndindex(logits_Khw.shape):
        if inside_hw[i, j]:
            above, below = logits_Khw.copy(), logits_Khw.copy()
            above[k, i, j], below[k, i, j] = above[k, i, j] + 1e-5, below[k, i, j] - 1e-5
            squares += ((slow_score(discriminator, above) - slow_score(discriminator, below)) / 2e-5) ** 2
    return math.sqrt(inside_hw.sum() * squares)


def slow_halves(loss, student_BKhw, teacher_BKhw, inside_Bhw, step):
    """What the student minimises and what the discriminator does."""
    discriminator, shares = loss.discriminators[0], torch.rand(2, generator=torch.Generator().manual_seed(step))
    passing, telling = [], []
    for b, inside_hw in enumerate(inside_Bhw):
        student, teacher = (logits_BKhw[b].astype(float) for logits_BKhw in (student_BKhw, teacher_BKhw))
        student, teacher = ((logits_Khw - logits_Khw.mean(axis=0)) * inside_hw for logits_Khw in (student, teacher))
        student_score, teacher_score = slow_score(discriminator, student), slow_score(discriminator, teacher)
        between = student + shares[b].item() * (teacher - student)
        told = student_score - teacher_score
        if loss.objective == "hinge":
            told = max(0, 1 + student_score) + max(0, 1 - teacher_score)
        passing.append(-student_score)
        telling.append(told + loss.penalty * (slow_slope(discriminator, between, inside_hw) - 1) ** 2)
    return np.mean(passing), np.mean(telling)


def test_the_score_equals_the_loops_where_several_positions_attend_to_one_another():
    logits_BKhw = torch.randn(2, 3, 9, 13, generator=torch.Generator().manual_seed(0))
    discriminator = loss_of().discriminators[0]
    with torch.no_grad():
        discriminator.attended.fill_(2.0), discriminator.query.weight.mul_(20)
    expected = [slow_score(discriminator, logits_Khw) for logits_Khw in logits_BKhw.double().numpy()]
    np.testing.assert_allclose(discriminator(logits_BKhw).detach(), expected, rtol=1e-4)


@pytest.mark.parametrize("objective", ["wasserstein", "hinge"])
def test_the_loss_equals_the_loops(objective):
    teacher_BKhw, student_BKhw = toy()
    inside_Bhw = partly_outside()[:, ::8, ::8].numpy()
    loss = loss_of(objective=objective, discriminator=0.3)
    found = loss(Output(student_BKhw, {}), batch_of(teacher_BKhw, partly_outside())).item()
    passing, telling = slow_halves(loss, student_BKhw.detach().numpy(), teacher_BKhw.numpy(), inside_Bhw, step=3)
    assert found == pytest.approx(passing + 0.3 * telling, rel=1e-4)


def test_the_discriminator_has_the_slope_of_its_own_half():
    """Through the penalty too: against a difference quotient in one weight of every layer."""
    teacher_BKhw, student_BKhw = toy()
    loss, inside_Bhw = loss_of(discriminator=1.0), np.ones((2, 5, 7), dtype=bool)
    loss(Output(student_BKhw, {}), batch_of(teacher_BKhw)).backward()
    arguments = student_BKhw.detach().numpy(), teacher_BKhw.numpy(), inside_Bhw, 3
    for name in ("convolutions.0.weight", "convolutions.2.bias", "query.weight", "value.bias", "attended"):
        parameter = loss.discriminators[0].get_parameter(name)
        place, tellings = (0,) * parameter.ndim, []
        for change in (1e-3, -1e-3):
            with torch.no_grad():
                parameter[place] += change
                tellings.append(slow_halves(loss, *arguments)[1])
                parameter[place] -= change
        expected = (tellings[0] - tellings[1]) / 2e-3
        assert parameter.grad[place].item() == pytest.approx(expected, rel=2e-2, abs=2e-3), name


def test_the_student_has_the_slope_of_passing_alone():
    teacher_BKhw, student_BKhw = toy()
    for discriminator in (0.0, 5.0):
        loss = loss_of(discriminator=discriminator)
        value = loss(Output(student_BKhw, {}), batch_of(teacher_BKhw, partly_outside()))
        (slope_BKhw,) = torch.autograd.grad(value, student_BKhw)
        inside_Bhw = partly_outside()[:, ::8, ::8]
        passing = -loss.discriminators[0](centred(student_BKhw, inside_Bhw)).mean()
        torch.testing.assert_close(slope_BKhw, torch.autograd.grad(passing, student_BKhw)[0])
        assert slope_BKhw.abs().max() > 0


def test_the_discriminator_learns_nothing_from_the_students_half():
    teacher_BKhw, student_BKhw = toy()
    slopes = []
    for discriminator in (0.0, 1.0, 2.0):
        loss = loss_of(discriminator=discriminator)
        loss(Output(student_BKhw, {}), batch_of(teacher_BKhw)).backward()
        slopes.append(torch.cat([parameter.grad.flatten() for parameter in loss.parameters()]))
    assert (slopes[0] == 0).all() and slopes[1].abs().max() > 0
    torch.testing.assert_close(slopes[2], 2 * slopes[1])


def test_the_slope_means_the_same_on_every_grid():
    """The mean over cells of a . logits changes by at most |a| for a change of 1 in root mean square."""
    a_K = torch.tensor([1.0, -2.0, 2.0])

    def score(logits_BKhw):
        return torch.einsum("k,bkij->bij", a_K, logits_BKhw).mean(dim=(1, 2))

    for grid in ((1, 1), (5, 7), (45, 60)):
        found = slope(score, torch.randn(2, 3, *grid), torch.ones(2, *grid, dtype=torch.bool))
        torch.testing.assert_close(found, torch.tensor([3.0, 3.0]))


def test_the_discriminator_learns_to_tell_and_a_student_that_follows_it_comes_closer():
    """Free logits as the student: half as large as the teacher's, on the same scenes."""
    teacher_BKhw, _ = toy(num_images=4)
    student_BKhw = (0.5 * teacher_BKhw).requires_grad_()
    loss, everywhere = loss_of(discriminator=1.0, width=8), torch.ones(4, 5, 7, dtype=torch.bool)

    def gap():
        with torch.no_grad():
            score = loss.discriminators[0]
            return (score(centred(teacher_BKhw, everywhere)) - score(centred(student_BKhw, everywhere))).mean().item()

    before = gap()
    optimiser = torch.optim.SGD(loss.parameters(), 0.01, momentum=0.9)
    for step in range(150):
        optimiser.zero_grad()
        loss(Output(student_BKhw, {}), batch_of(teacher_BKhw, step=step)).backward()
        optimiser.step()
    told = gap()
    assert told > before + 1
    student_BKhw.grad = None
    loss(Output(student_BKhw, {}), batch_of(teacher_BKhw)).backward()
    with torch.no_grad():
        student_BKhw -= 10 * student_BKhw.grad
    assert gap() < told


def test_finer_logits_of_the_student_are_averaged_over_the_teachers_cells():
    teacher_BKhw, student_BKhw = toy((10, 14))
    fine = loss_of()(Output(student_BKhw, {}), batch_of(teacher_BKhw)).item()
    coarse = loss_of()(Output(torch.nn.functional.avg_pool2d(student_BKhw, 2), {}), batch_of(teacher_BKhw)).item()
    assert fine == pytest.approx(coarse, rel=1e-5)


def test_what_lies_outside_does_not_count():
    teacher_BKhw, student_BKhw = toy()
    inside_BHW = partly_outside()
    inside_BHW[1] = False
    loss = loss_of()
    together = loss(Output(student_BKhw, {}), batch_of(teacher_BKhw, inside_BHW))
    together.backward()
    slopes_Bhw = student_BKhw.grad.abs().amax(dim=1)
    assert (slopes_Bhw[0, :, :6] > 0).all() and (slopes_Bhw[0, :, 6:] == 0).all() and (slopes_Bhw[1] == 0).all()
    alone = loss(Output(student_BKhw[:1], {}), batch_of(teacher_BKhw[:1], inside_BHW[:1]))
    assert together.item() == pytest.approx(alone.item(), rel=1e-5)


@pytest.mark.parametrize("objective", ["wasserstein", "hinge"])
@pytest.mark.parametrize("scale, everywhere", [(0.0, True), (1e4, True), (1.0, False)])
def test_constant_huge_and_unseen_logits_keep_the_gradients_finite(objective, scale, everywhere):
    teacher_BKhw, student_BKhw = toy()
    loss = loss_of(objective=objective)
    batch = batch_of(scale * teacher_BKhw, torch.full((2, *CONTEXT.size), everywhere))
    value = loss(Output(scale * student_BKhw, {}), batch)
    value.backward()
    slopes = [student_BKhw.grad, *(parameter.grad for parameter in loss.parameters())]
    assert value.isfinite() and all(slope.isfinite().all() for slope in slopes)
    assert everywhere or value.item() == 0 and all((slope == 0).all() for slope in slopes)


def test_the_discriminator_is_in_the_checkpoint():
    teacher_BKhw, student_BKhw = toy()
    output, batch = Output(student_BKhw, {}), batch_of(teacher_BKhw)
    trained, fresh = loss_of(), loss_of(seed=1)
    assert fresh(output, batch).item() != trained(output, batch).item()
    fresh.load_state_dict(trained.state_dict())
    assert fresh(output, batch).item() == trained(output, batch).item()


def test_it_can_be_evaluated_without_gradients():
    teacher_BKhw, student_BKhw = toy()
    loss = loss_of()
    with torch.no_grad():
        held_out = loss(Output(student_BKhw, {}), batch_of(teacher_BKhw)).item()
    assert held_out == loss(Output(student_BKhw, {}), batch_of(teacher_BKhw)).item()


def test_several_teachers_have_a_discriminator_each():
    teacher_BKhw, student_BKhw = toy()
    loss = Loss(reads={"plain": Target(), "flipped": Target()}, context=CONTEXT, student=CONTEXT)
    rows = {"plain": {"logits": teacher_BKhw}, "flipped": {"logits": teacher_BKhw.flip(3)}}
    loss(Output(student_BKhw, {}), batch_of(teacher_BKhw).with_rows(rows)).backward()
    slopes = [discriminator.last.weight.grad for discriminator in loss.discriminators]
    assert len(slopes) == 2 and not torch.equal(*slopes)


@pytest.mark.parametrize("dtype, bound", [("float16", 5e-4), ("uint8", 5e-3)])
def test_offline_equals_online_within_the_stored_dtype(dtype, bound):
    """The student's slope knows the teacher only through the discriminator, whose slope is compared."""
    teacher_BKhw, student_BKhw = toy()
    assert 0.85 < teacher_BKhw.softmax(dim=1).amax(dim=1).mean() < 0.95
    arrays = Target(dtype=dtype).encode({"logits": teacher_BKhw})
    stored = Target(dtype=dtype).decode({name: torch.from_numpy(array) for name, array in arrays.items()})
    loss, slopes = loss_of(), []
    for rows in (teacher_BKhw, stored["logits"], stored["logits"].roll(1, 0)):
        slopes.append(torch.autograd.grad(loss(Output(student_BKhw, {}), batch_of(rows)), list(loss.parameters())))
    online, offline, neighbour = (torch.cat([part.flatten() for part in slope]) for slope in slopes)
    assert 0 < (offline - online).norm() < bound * online.norm()
    assert (neighbour - online).norm() > 10 * bound * online.norm()
