"""One training step: cross-entropy, the method's losses, their sum, SGD with a poly schedule. Nothing about files.

B images, H W the network input, K classes, L lane slots.
"""

import hashlib
from contextlib import nullcontext
from typing import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.config import Term, Training, term_name
from pipeline.datasets.base import IGNORE, DatasetBase
from pipeline.errors import ConfigError
from pipeline.losses.base import Batch
from pipeline.models.base import Output


def cross_entropy(logits_BKhw: Tensor, labels_BHW: Tensor, weights_K: Tensor) -> Tensor:
    """Weighted mean over labelled pixels; logits are upsampled to the labels' grid. 0 where nothing is labelled."""
    if logits_BKhw.shape[-2:] != labels_BHW.shape[-2:]:
        logits_BKhw = F.interpolate(logits_BKhw, labels_BHW.shape[-2:], mode="bilinear", align_corners=False)
    labels_BHW = labels_BHW.long()
    total = F.cross_entropy(logits_BKhw, labels_BHW, weights_K, ignore_index=IGNORE, reduction="sum")
    counted = torch.cat([weights_K, weights_K.new_zeros(256 - len(weights_K))])[labels_BHW].sum()
    return total / counted.clamp(min=1e-6)


def existence_loss(existence_BL: Tensor, flags_BL: Tensor) -> Tensor:
    """Binary cross-entropy on logits, mean over known flags (255 = unknown)."""
    known = flags_BL != IGNORE
    terms = F.binary_cross_entropy_with_logits(existence_BL, (flags_BL == 1).float(), reduction="none")
    return (terms * known).sum() / known.sum().clamp(min=1)


def class_weights(dataset: DatasetBase, training: Training, device) -> Tensor:
    """[K] cross-entropy weights. Raises ConfigError on a background weight where the dataset names no background."""
    weights = torch.ones(len(dataset.classes), device=device)
    if dataset.background is not None:
        weights[dataset.background] = training.background_weight
    elif training.background_weight != 1:
        raise ConfigError("training.background_weight: this dataset has no background class; write 1.0")
    return weights


class Step:
    """`model`, `losses` (by the method's terms), optimiser and schedule; called with a batch it makes one update."""

    def __init__(self, model: nn.Module, terms: Sequence[Term], losses: Sequence[nn.Module], training: Training,
                 weights_K: Tensor, seed: int):
        self.model, self.training, self.weights_K, self.seed = model, training, weights_K, seed
        self.terms = {term_name(terms, i): (term, loss) for i, (term, loss) in enumerate(zip(terms, losses))}
        self.losses = nn.ModuleList(losses)
        parameters = [*model.parameters(), *self.losses.parameters()]
        if training.optimiser == "adamw":
            self.optimiser = torch.optim.AdamW(parameters, training.lr, betas=(training.momentum, 0.999),
                                               weight_decay=training.weight_decay)
        else:
            self.optimiser = torch.optim.SGD(parameters, training.lr, momentum=training.momentum,
                                             weight_decay=training.weight_decay)

    def loss_terms(self, batch: Batch) -> tuple[Output, dict[str, tuple[float, Tensor]]]:
        """The student's output as it ran, and every term that counts at this step with its weight."""
        bf16 = self.training.precision == "bf16"
        with torch.autocast(batch.images_B3HW.device.type, torch.bfloat16) if bf16 else nullcontext():
            output = self.model(batch.images_B3HW)
        raw, output = output, as_float(output)
        terms = {"labels": (1.0, cross_entropy(output.logits, batch.labels_BHW, self.weights_K))}
        if output.existence is not None and batch.existence_BL is not None:
            terms["existence"] = (self.training.existence_weight, existence_loss(output.existence, batch.existence_BL))
        for name, (term, loss) in self.terms.items():
            if weight := term.weight_at(batch.step):
                terms[name] = (weight, loss(output, batch))
        return raw, terms

    def __call__(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, float]]:
        """One update. Returns each term's unweighted value, and at every `norm_every`-th step its weighted gradient's norm."""
        lr = self.training.lr * (1 - batch.step / self.training.steps) ** self.training.power
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.model.train(), self.losses.train()
        reseed(self.seed, batch.step)
        output, terms = self.loss_terms(batch)
        norms = gradient_norms(output, terms) if batch.step % self.training.norm_every == 0 else {}
        total = sum(weight * value for weight, value in terms.values())
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        self.optimiser.step()
        return {name: value.detach() for name, (_, value) in terms.items()}, norms

    def state(self) -> dict:
        return {"model": self.model.state_dict(), "losses": self.losses.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_state(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.losses.load_state_dict(state["losses"])
        self.optimiser.load_state_dict(state["optimiser"])



def reseed(seed: int, step: int) -> None:
    """Dropout of a step depends on (seed, step) alone: a resumed run draws what an unbroken one draws."""
    torch.manual_seed(int.from_bytes(hashlib.blake2b(f"{seed}/{step}".encode(), digest_size=7).digest(), "little"))


def as_float(output: Output) -> Output:
    """Losses are float32, whatever the network ran in."""
    return Output(output.logits.float(), {role: f.float() for role, f in output.features.items()},
                  None if output.existence is None else output.existence.float())


def gradient_norms(output: Output, terms: Mapping[str, tuple[float, Tensor]]) -> dict[str, float]:
    """Norm of each weighted term's gradient at the student's features: what a term really asks of the encoder."""
    leaves = [feature for feature in output.features.values() if feature.requires_grad]
    norms = {}
    for name, (weight, value) in terms.items():
        if not value.requires_grad:
            norms[name] = 0.0
            continue
        gradients = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
        squares = sum(float(g.double().square().sum()) for g in gradients if g is not None)
        norms[name] = weight * squares ** 0.5
    return norms
