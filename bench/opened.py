"""An experiment's stores opened, its teacher able to answer again: for benches that compare offline with online."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.config import Config, Plugin, Term
from pipeline.models.base import set_precision
from pipeline.store import Reader
from pipeline.teacher import cache
from pipeline.teacher.experiment import Experiment
from pipeline.training.loading import CachedTargets, Loader


@dataclass(frozen=True)
class Opened:
    cfg: Config
    root: Path
    device: str

    @cached_property
    def experiment(self) -> Experiment:
        return Experiment(self.cfg, self.root, Path("teachers") / f"{self.cfg.name}.safetensors")

    @cached_property
    def _samples(self) -> Reader:
        return self.experiment.samples()

    @cached_property
    def _online(self):
        """All targets of the file, computed again by the teacher."""
        set_precision(self.cfg.teacher.precision)
        return self.experiment.online_targets(self.cfg.targets, self._samples, batch=self.cfg.training.batch, device=self.device)

    def loader(self, reads: Sequence[str] = ()) -> Loader:
        """Batches as a run of seed 0 sees them, with the stored rows of these targets."""
        experiment, cfg = self.experiment, self.cfg
        named = {name: experiment.targets[name] for name in reads}
        store, passes = experiment.open_cache(named)
        return Loader.of(
            experiment,
            self._samples,
            dataclasses.replace(cfg.training, fresh_views=False),
            seed=0,
            device=self.device,
            cached=CachedTargets(Reader(store, passes, experiment.ids, cfg.views.count), cache.MATRIX, named),
        )

    def online(self, loader: Loader, step: int, reads: Sequence[str]) -> dict[str, dict[str, Tensor]]:
        """What the teacher answers now on the views of a step, not encoded."""
        assert isinstance(loader.cached, CachedTargets)
        positions, epochs = loader.positions(step)
        online = dataclasses.replace(self._online, targets={name: self.experiment.targets[name] for name in reads})
        return online.answered(positions, loader.cached.matrices(positions, loader.views_at(positions, epochs)))

    def student(self, plugin: Plugin) -> nn.Module:
        torch.manual_seed(0)
        return self.experiment.build(plugin).to(self.device)

    def loss(self, term: Term, student: Plugin) -> nn.Module:
        torch.manual_seed(0)
        own = self.experiment.student_context(student)
        loss = self.experiment.loss(term, own)
        if loss.needs_scan:
            loss.scan(self.loader(term.reads).scan())
        return loss.to(self.device)
