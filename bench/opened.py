"""An experiment's stores opened, its teacher able to answer again: for benches that compare offline with online."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.config import Config, Plugin, Term
from pipeline.data import prepared
from pipeline.models.base import set_precision
from pipeline.store import Reader
from pipeline.teacher import cache
from pipeline.teacher.online import live_targets
from pipeline.training.loading import CachedTargets, Loader


@dataclass(frozen=True)
class Opened:
    cfg: Config
    root: Path
    device: str

    @cached_property
    def source(self):
        return self.cfg.dataset.build()

    @cached_property
    def context(self):
        return cache.context(self.cfg.teacher.model, self.source, self.cfg.prepare.size)

    @cached_property
    def named(self):
        """Every target of the file with where it is stored."""
        return cache.target_passes(self.cfg.targets, self.context)

    @cached_property
    def teacher_file(self) -> Path:
        return Path("teachers") / f"{self.cfg.name}.safetensors"

    @cached_property
    def _pixels(self):
        return prepared.open_whole(self.root, self.cfg.dataset, self.source, self.cfg.prepare, self.source.ids("train"))

    @cached_property
    def _samples(self):
        pixels, sample, _ = self._pixels
        return Reader(pixels, [sample], self.source.ids("train"), 1), sample

    @cached_property
    def _identity(self) -> dict:
        return cache.identity(
            self.source,
            self.cfg.prepare,
            self.cfg.views,
            self.cfg.teacher,
            cache.weights_digest(self.cfg.teacher, self.teacher_file),
        )

    @cached_property
    def _live(self):
        """All targets of the file, computed again by the teacher."""
        cfg = self.cfg
        set_precision(cfg.teacher.precision)
        return live_targets(
            cfg.teacher,
            cfg.targets,
            self.source,
            cfg.prepare,
            cfg.views,
            self.teacher_file,
            *self._samples,
            batch=cfg.training.batch,
            device=self.device,
        )

    def loader(self, reads: Sequence[str] = ()) -> Loader:
        """Batches as a run of seed 0 sees them, with the stored rows of these targets."""
        samples, sample = self._samples
        cfg, ids, named = self.cfg, self.source.ids("train"), {name: self.named[name] for name in reads}
        store, passes = cache.open_whole(
            self.root, cfg.dataset.name, self._identity, self._pixels[2], cfg.views.count, named, cfg.path
        )
        return Loader(
            samples,
            sample,
            ids,
            dataset=self.source,
            content=cfg.prepare.size,
            views=cfg.views,
            seed=0,
            training=dataclasses.replace(cfg.training, fresh_views=False),
            device=self.device,
            cached=CachedTargets(Reader(store, passes, ids, cfg.views.count), cache.MATRIX, named),
        )

    def live(self, loader: Loader, step: int, reads: Sequence[str]) -> dict[str, dict[str, Tensor]]:
        """What the teacher answers now on the views of a step, not encoded."""
        positions, epochs = loader.positions(step)
        live = dataclasses.replace(self._live, targets={name: self.named[name] for name in reads})
        return live.answered(positions, loader.cached.matrices(positions, loader.views_at(positions, epochs)))

    def student(self, plugin: Plugin) -> nn.Module:
        torch.manual_seed(0)
        lanes = self.source.lanes if self.cfg.training.existence_weight else 0
        return plugin.build(num_classes=len(self.source.classes), size=self.context.size, lanes=lanes).to(self.device)

    def loss(self, term: Term, student: Plugin) -> nn.Module:
        torch.manual_seed(0)
        own = cache.context(student, self.source, self.cfg.prepare.size)
        reads = {name: self.named[name][0] for name in term.reads}
        loss = term.loss.build(reads=reads, context=self.context, student=own)
        if loss.needs_survey:
            loss.survey(self.loader(term.reads).survey())
        return loss.to(self.device)
