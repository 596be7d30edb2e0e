import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.losses.base import Batch
from pipeline.losses.existence_kd import Loss
from pipeline.models.base import Output
from pipeline.targets.base import Context
from pipeline.targets.existence import Target

CONTEXT = Context(5, (0, 1, 2, 3, 4), (8, 8), {"high": (1, 1), "logits": (1, 1)})


def found(student, teacher, temperature):
    loss = Loss(reads={"lanes": Target(lanes=4)}, context=CONTEXT, student=CONTEXT, temperature=temperature)
    B = len(student)
    batch = Batch(
        torch.zeros(B, 3, 8, 8),
        torch.full((B, 8, 8), 255),
        torch.ones(B, 8, 8, dtype=torch.bool),
        None,
        {"lanes": {"existence": teacher}},
        1,
    )
    return loss(Output(None, {}, student), batch)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_loss_is_that_of_a_slow_loop_over_lanes(temperature):
    generator = torch.Generator().manual_seed(0)
    student, teacher = 4 * torch.randn(2, 3, 4, generator=generator)
    total = 0.0
    for image in range(3):
        for lane in range(4):
            p, q = (float(torch.sigmoid(logits[image, lane].double() / temperature)) for logits in (teacher, student))
            outcomes = torch.tensor([[p, 1 - p], [q, 1 - q]], dtype=torch.float64)
            total += float((outcomes[0] * (outcomes[0] / outcomes[1]).log()).sum())
    assert float(found(student, teacher, temperature)) == pytest.approx(temperature**2 * total / 12, rel=1e-5)


def test_surest_answers_stay_finite():
    student = torch.tensor([[500.0, -500.0, 500.0, 0.0]], requires_grad=True)
    value = found(student, torch.tensor([[-500.0, -500.0, 500.0, 800.0]]), 1.0)
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all() and student.grad[0, 0] == 0.25


def test_a_student_without_a_head_is_refused_and_so_is_a_teacher():
    with pytest.raises(ConfigError, match="existence_kd: the student has no lane-existence head"):
        Loss(reads={}, context=CONTEXT, student=CONTEXT, temperature=1.0)(Output(torch.zeros(1, 5, 1, 1), {}), None)
    with pytest.raises(ConfigError, match="existence: this network has no lane-existence head"):
        Target(lanes=4).compute(Output(torch.zeros(1, 5, 1, 1), {}), torch.zeros(1, 8, 8), CONTEXT)
    with pytest.raises(ConfigError, match="existence.lanes: 0 lanes say nothing"):
        Target(lanes=0)
    with pytest.raises(ConfigError, match="existence.lanes: 4, but the network answers for 2"):
        Target(lanes=4).compute(Output(torch.zeros(1, 5, 1, 1), {}, torch.zeros(1, 2)), torch.zeros(1, 8, 8), CONTEXT)
