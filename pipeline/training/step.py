"""One training step: the loss on labels, the method's losses, their sum, an optimiser and a schedule. Nothing about files.

B images, H W the network input, K classes, L lane slots.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.config import LABEL_TERMS, GradientShare, Term, Training, term_name
from pipeline.datasets.base import IGNORE, DatasetBase
from pipeline.errors import ConfigError
from pipeline.losses.base import Batch
from pipeline.models.base import Output, as_float, trains_on_one_image
from pipeline.seeds import text_digest
from pipeline.training import distributed, label_losses
from pipeline.training.balance import Balance
from pipeline.training.label_losses import cross_entropy, labelled_weight
from pipeline.training.optimisers import learning_rate, optimiser


def existence_loss(existence_BL: Tensor, flags_BL: Tensor) -> Tensor:
    """Binary cross-entropy on logits, mean over known flags (255 = unknown)."""
    known = flags_BL != IGNORE
    terms = F.binary_cross_entropy_with_logits(existence_BL, (flags_BL == 1).float(), reduction="none")
    return (terms * known).sum() / known.sum().clamp(min=1)


def class_weights(dataset: DatasetBase, training: Training, device, shares_K: Tensor | None = None) -> Tensor:
    """[K] cross-entropy weights; `enet` needs each class's share of the labelled pixels. Raises ConfigError on a background
    weight where the dataset names no background, or a list of another length than the classes."""
    if training.class_weights == "enet":  # Paszke et al., "ENet", 2016: w = 1 / ln(c + p), c = 1.02
        assert shares_K is not None
        return 1 / (1.02 + shares_K.to(device)).log()
    if training.class_weights is not None:
        if len(training.class_weights) != len(dataset.classes):
            raise ConfigError(
                f"training.class_weights: {len(training.class_weights)} weights for {len(dataset.classes)} "
                f"classes ({', '.join(dataset.classes)}); write one for each"
            )
        return torch.tensor(training.class_weights, device=device)
    weights = torch.ones(len(dataset.classes), device=device)
    if dataset.background is not None:
        weights[dataset.background] = training.background_weight
    elif training.background_weight != 1:
        raise ConfigError("training.background_weight: this dataset has no background class; write 1.0")
    return weights


LABELLED = "labelled"  # among a step's values: the part of its images that has a label


class Step:
    """`model`, `losses` (by the method's terms), optimiser and schedule; called with a batch it makes one update."""

    def __init__(
        self,
        model: nn.Module,
        terms: Sequence[Term],
        losses: Sequence[nn.Module],
        training: Training,
        weights_K: Tensor,
        seed: int,
        partly_labelled: bool = False,
    ):
        """`partly_labelled`: batches hold images without a label; a step's values then say which part of its images has one."""
        self.partly_labelled = partly_labelled
        device = weights_K.device
        if training.compile == "graphs" and training.accumulate > 1:
            raise ConfigError(
                "training.compile: graphs write a part's gradients over those of the part before; write true, or "
                "training.accumulate: 1"
            )
        if training.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # which torch takes
        self.model, self.training, self.weights_K, self.seed = distributed.synchronised(model, device), training, weights_K, seed
        self.network = compiled(self.model, graphs=training.compile == "graphs") if training.compile else self.model
        self.label_term = LABEL_TERMS[training.label_loss]
        self.terms = {term_name(terms, i): (term, loss) for i, (term, loss) in enumerate(zip(terms, losses))}
        self.balance = Balance({name: term for name, (term, _) in self.terms.items()})
        self.losses = nn.ModuleList(losses)
        parameters, self.lr_factors = grouped(model, self.losses, training)
        self.optimiser = optimiser(training, parameters, device)
        self.mean = {name: value.clone() for name, value in self.model.state_dict().items()} if training.ema else {}

    def loss_terms(
        self, batch: Batch, counted: Tensor | None = None, traced: bool = False
    ) -> tuple[Output, dict[str, tuple[float, Tensor]]]:
        """The student's output as it ran, and every term that counts at this step with its weight. `counted`: see
        cross_entropy. `traced`: gradients of the logits at the features will be asked for, which a compiled network hides."""
        network = self.model if traced else self.network
        bf16 = self.training.precision == "bf16"
        with torch.autocast(batch.images_B3HW.device.type, torch.bfloat16) if bf16 else nullcontext():
            output: Output = network(batch.images_B3HW, batch.labels_BHW)  # which only a label-fed teacher looks at
        if output.logits is None:
            raise ConfigError(
                "this network has no logits (logits: null) and can't be trained on labels; write 'logits: linear', or, "
                "for a teacher as it is, 'teacher_training: null'"
            )
        raw, output = output, as_float(output)
        assert output.logits is not None
        terms = {self.label_term: (1.0, self.label_loss(output.logits, batch.labels_BHW, counted))}
        if self.training.dice_weight:
            dice = label_losses.dice(output.logits, batch.labels_BHW, self.weights_K)
            terms["dice"] = (self.training.dice_weight, dice)
        if output.existence is not None and batch.existence_BL is not None:
            terms["existence"] = (self.training.existence_weight, existence_loss(output.existence, batch.existence_BL))
        compared = batch.with_targets(output)
        for name, (term, loss) in self.terms.items():
            if (weight := self.weight_at(name, batch.step)) or self.balance.due(name, batch.step):
                terms[name] = (weight, loss(*compared) if term.reads else loss(output, batch))
        return raw, terms

    def weight_at(self, name: str, step: int) -> float:
        """A term's weight at this step; one given as a share of a gradient as it was measured last."""
        term = self.terms[name][0]
        return ramp_at(term, step) * (self.balance.weight(name) if isinstance(term.weight, GradientShare) else term.weight)

    def _balanced(
        self, step: int, norms: Mapping[str, float], terms: Mapping[str, tuple[float, Tensor]]
    ) -> dict[str, tuple[float, Tensor]]:
        """The terms with the weights that follow from these unweighted norms, measured in every process."""
        device = self.weights_K.device
        due = [name for name in self.balance.terms if self.balance.due(name, step)]
        # features of an image feel its own loss alone, so squares add up to those of the whole batch, but for a common factor
        squares = torch.tensor([norms[name] ** 2 for name in (self.label_term, *due)], dtype=torch.float64, device=device)
        distributed.all_reduce_mean([squares])
        label, *others = squares.sqrt().tolist()
        for name, norm in zip(due, others):
            self.balance.follow(name, label, norm)
        return {name: (self.weight_at(name, step) if name in due else weight, value) for name, (weight, value) in terms.items()}

    def label_loss(self, logits_BKhw: Tensor, labels_BHW: Tensor, counted: Tensor | None = None) -> Tensor:
        """`training.label_loss`; `counted`: see cross_entropy."""
        given, training = (logits_BKhw, labels_BHW, self.weights_K), self.training
        if training.label_loss == "ohem":
            return label_losses.ohem(*given, training.ohem_threshold, training.ohem_least)
        if training.label_loss == "focal":
            return label_losses.focal(*given, training.focal_gamma, counted)
        if training.label_loss == "dice":
            return label_losses.dice(*given)
        return cross_entropy(*given, counted, training.label_smoothing)

    def __call__(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, float]]:
        """One update. Returns each term's unweighted value, and at every `norm_every`-th step its weighted gradient's norm (of
        the first part, where a batch has several). Parts and processes have equal weight, and pixels in all of them."""
        lr = learning_rate(self.training, batch.step)
        for group, factor in zip(self.optimiser.param_groups, self.lr_factors):
            group["lr"] = lr * factor
        self.model.train(), self.losses.train()
        reseed(self.seed, batch.step, distributed.rank_and_world_size()[0])
        self.optimiser.zero_grad(set_to_none=True)
        parts = batch.parts(self.training.accumulate)
        counted = labelled_weight(batch.labels_BHW, self.weights_K) / len(parts)
        distributed.all_reduce_mean([counted])
        values: dict[str, Any] = {}
        norms: dict[str, Any] = {}
        due = any(self.balance.due(name, batch.step) for name in self.balance.terms)
        for part in parts:
            noted = part is parts[0] and batch.step % self.training.norm_every == 0
            weighed = part is parts[0] and due
            output, terms = self.loss_terms(part, counted, traced=noted or weighed)
            unweighted = (
                gradient_norms(output, {name: (1.0, value) for name, (_, value) in terms.items()}) if noted or weighed else {}
            )
            if weighed:
                terms = self._balanced(batch.step, unweighted, terms)
            if noted:
                norms = {name: terms[name][0] * norm for name, norm in unweighted.items()}
            total: Any = sum(weight * value for weight, value in terms.values())
            (total / len(parts)).backward()
            for name, (_, value) in terms.items():
                values[name] = values.get(name, 0) + value.detach() / len(parts)
        for name in self.balance.terms:
            if name in values:
                values[f"weight({name})"] = torch.tensor(self.weight_at(name, batch.step), device=self.weights_K.device)
        if self.partly_labelled:
            values[LABELLED] = batch.has_label_B.float().mean()
        distributed.all_reduce_mean([*values.values(), *(p.grad for p in self._parameters() if p.grad is not None)])
        self.optimiser.step()
        if self.mean:
            self._follow(batch.step)
        return values, norms

    def held_out(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Each term's mean over these images (cross-entropy's over those with a label), unweighted, also where its weight is 0: in
        eval mode, of the weights as they are (not their running mean)."""
        self.model.eval(), self.losses.eval()
        sums: dict[str, float] = {}
        images: dict[str, int] = {}
        for batch in batches:
            with torch.no_grad():
                output = as_float(self.model(batch.images_B3HW, batch.labels_BHW))
            assert output.logits is not None  # or training would have been refused
            terms = {self.label_term: self.label_loss(output.logits, batch.labels_BHW)}
            terms |= {name: loss(output, batch) for name, (_, loss) in self.terms.items()}
            for name, value in terms.items():
                counted = int(batch.has_label_B.sum()) if name == self.label_term else len(batch.labels_BHW)
                sums[name] = sums.get(name, 0.0) + float(value.detach()) * counted
                images[name] = images.get(name, 0) + counted
        return {name: value / max(1, images[name]) for name, value in sums.items()}

    @contextmanager
    def leaving(self) -> Iterator[nn.Module]:
        """The network with the weights that a run would leave now; with those that it trains again afterwards."""
        if not self.mean:
            yield self.model
            return
        trained = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.mean)
        try:
            yield self.model
        finally:
            self.model.load_state_dict(trained)

    def _parameters(self) -> list[nn.Parameter]:
        return [*self.model.parameters(), *self.losses.parameters()]

    @torch.no_grad()
    def _follow(self, step: int) -> None:
        """The running mean takes in this step's weights and batch-norm statistics; early on it is a plain mean, or it would
        remember the weights that training began with."""
        decay = min(self.training.ema, step / (step + 1))
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.mean[name].lerp_(value, 1 - decay)
            else:
                self.mean[name].copy_(value)

    def finite(self) -> bool:
        """Whether all weights and running means are numbers, those of the losses too."""
        values = [*self.model.state_dict().values(), *self.losses.state_dict().values(), *self.mean.values()]
        return bool(torch.stack([value.isfinite().all() for value in values]).all())

    def weights(self) -> dict[str, Tensor]:
        """What a run leaves: the running mean where there is one, otherwise the last weights."""
        return self.mean or self.model.state_dict()

    def state(self) -> dict:
        state = {"model": self.model.state_dict(), "losses": self.losses.state_dict(), "optimiser": self.optimiser.state_dict()}
        state |= {"balance": self.balance.norms} if self.balance.terms else {}
        return state | {"mean": self.mean} if self.mean else state

    def load_state(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.losses.load_state_dict(state["losses"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.balance.norms = state.get("balance", {})
        for name, value in self.mean.items():
            value.copy_(state["mean"][name])


def check_batch(build: Callable[[], nn.Module], size: tuple[int, int], training: Training, device: str, where: str) -> None:
    """Raises ConfigError if images reach this network one at a time and it can't be trained so; `where` is the section."""
    processes = 1 if torch.device(device).type == "cuda" else distributed.rank_and_world_size()[1]  # see distributed.synchronised
    if training.batch // training.accumulate // processes == 1 and not trains_on_one_image(build, size):
        parts = f" in {training.accumulate} parts" if training.accumulate > 1 else ""
        raise ConfigError(
            f"{where}.batch: {training.batch}{parts} shows the network one image at a time, and it normalises a map "
            f"of one cell (as pyramid pooling has), of which one image gives one value and no variance; write a "
            f"batch of {2 * training.accumulate * processes} or more, or another head"
        )


def compiled(network: nn.Module, graphs: bool = False):
    """The network by torch.compile; parts that it cannot take, or without a compiler all of it, run as they are, with a
    warning of PyTorch's. `graphs`: on CUDA, forward and backward are each replayed as one launch. Dropout draws what it
    draws in a network that is not compiled."""
    import torch._inductor.config as inductor

    torch._dynamo.config.suppress_errors = True
    inductor.fallback_random = True
    return torch.compile(network, dynamic=False, mode="reduce-overhead" if graphs else None)


def ramp_at(term: Term, step: int) -> float:
    """The part of a term's weight that counts: 0 before step `start`, then a straight line over `ramp` steps up to 1."""
    if step < term.start:
        return 0.0
    return 1.0 if not term.ramp else min(1.0, (step - term.start + 1) / term.ramp)


def grouped(model: nn.Module, losses: nn.Module, training: Training) -> tuple[list[dict], list[float]]:
    """Parameters by learning rate, and what each group's is multiplied by; the losses' own have the backbone's. Raises
    ConfigError if a network has no backbone to tell its head from."""
    if training.head_lr == 1:
        return [{"params": [*model.parameters(), *losses.parameters()]}], [1.0]
    if not hasattr(model, "backbone"):
        raise ConfigError(
            f"training.head_lr: {type(model).__module__.rpartition('.')[2]} has no backbone apart from its head; write 1.0"
        )
    backbone: Any = model.backbone
    sides: dict[bool, list[nn.Parameter]] = {True: [*losses.parameters()], False: []}
    for name, parameter in model.named_parameters():
        sides[name.partition(".")[0] in backbone].append(parameter)
    return [{"params": sides[True]}, {"params": sides[False]}], [1.0, training.head_lr]


def reseed(seed: int, step: int, process: int = 0) -> None:
    """Dropout of a step depends on (seed, step, process) alone: a resumed run draws what an unbroken one draws, and several
    processes do not drop the same channels of all their images."""
    own = f"/{process}" if process else ""
    torch.manual_seed(int.from_bytes(text_digest(f"{seed}/{step}{own}", 7), "little"))


def gradient_norms(output: Output, terms: Mapping[str, tuple[float, Tensor]]) -> dict[str, float]:
    """Norm of each weighted term's gradient at the student's features, all tapped layers together: what a term really asks of the
    encoder."""
    leaves = [feature for feature in output.features.values() if feature.requires_grad]
    norms = {}
    for name, (weight, value) in terms.items():
        if not value.requires_grad:
            norms[name] = 0.0
            continue
        gradients = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
        squares = sum(float(g.double().square().sum()) for g in gradients if g is not None)
        norms[name] = weight * squares**0.5
    return norms
