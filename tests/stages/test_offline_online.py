"""Offline equals online: stored rows, losses, gradients and whole trajectories against the live teacher; and the faults that
would break it are far outside the tolerance."""

import shutil

import numpy as np
import pytest
import torch

from pipeline import weights
from pipeline.data import prepared
from pipeline.data import views as geometry
from pipeline.store import Reader, Store
from pipeline.teacher import cache, parity
from pipeline.teacher.online import OnlineTargets
from pipeline.training import step as steps
from pipeline.training.loading import CachedTargets, Loader


class Live:
    """The cached experiment, opened: samples, stored rows, and the teacher itself."""

    def __init__(self, experiment, batch=8):
        self.cfg = cfg = experiment.load()
        root = experiment.folder / "cache"
        cfg.dataset.args["root"] = str(experiment.folder / cfg.dataset.args["root"])
        self.source = cfg.dataset.build()
        weights_file = experiment.folder / "teachers/toy.safetensors"
        self.ids = self.source.ids("train")
        self.sample = prepared.sample_pass(cfg.prepare.size, self.source.lanes)
        pixels = Store.find(root, "prepared", "roads", prepared.identity(self.source, cfg.prepare))
        identity = cache.identity(self.source, cfg.prepare, cfg.views, cfg.teacher, cache.weights_digest(cfg.teacher, weights_file))
        self.context = cache.context(cfg.teacher.model, self.source, cfg.prepare.size)
        self.named = cache.target_passes(cfg.targets, self.context)
        self.samples = Reader(pixels, [self.sample], self.ids, 1)
        self.reader = Reader(
            Store.find(root, "targets", "roads", identity),
            [cache.MATRIX, *(pass_ for _, pass_ in self.named.values())],
            self.ids,
            cfg.views.count,
        )
        model = cache.build_teacher(cfg.teacher, self.source, cfg.prepare.size)
        weights.load_into(model, weights.load_file(weights_file), "teacher")
        self.answers = cache.TeacherRunner(
            model, self.source, self.context, cfg.prepare.size, precision="fp32", batch=batch, device="cpu"
        )

    def inputs(self, positions, numbers):
        rows = self.samples.read(self.sample, positions, np.zeros_like(positions))
        return rows["image"], rows["label"], self.reader.read(cache.MATRIX, positions, numbers)["matrix"]

    def compute(self, images, labels, matrices):
        output, seen = self.answers.output(images, labels, matrices)
        return {name: target.compute(output, seen, self.context) for name, (target, _) in self.named.items()}

    def stored(self, positions, numbers):
        return {
            name: target.decode({k: torch.from_numpy(v) for k, v in self.reader.read(pass_, positions, numbers).items()})
            for name, (target, pass_) in self.named.items()
        }

    def excess(self, live, positions, numbers):
        """By target, the largest error over the allowed one."""
        stored = self.stored(positions, numbers)
        return {
            name: parity.row_error(name, target, stored[name], live[name], self.context).excess
            for name, (target, _) in self.named.items()
        }

    def loader(self, training=None, names=()):
        cached = CachedTargets(self.reader, cache.MATRIX, {name: self.named[name] for name in names})
        return Loader(
            self.samples,
            self.sample,
            self.ids,
            dataset=self.source,
            content=self.cfg.prepare.size,
            views=self.cfg.views,
            training=training or self.cfg.training,
            seed=0,
            device="cpu",
            cached=cached,
        )

    def student(self, seed=0):
        steps.reseed(seed, 0)
        return self.cfg.students["erfnet"].build(num_classes=5, size=self.context.size, lanes=0)

    def losses(self, method):
        own = cache.context(self.cfg.students["erfnet"], self.source, self.cfg.prepare.size)
        return [
            term.loss.build(reads={n: self.named[n][0] for n in term.reads}, context=self.context, student=own)
            for term in self.cfg.methods[method]
        ]


@pytest.fixture(scope="module")
def live(cached_experiment):
    return Live(cached_experiment)


@pytest.fixture
def some(live):
    """Seven rows of three views, in an order and batch that the fill never had."""
    positions = np.array([11, 3, 7, 0, 12, 5, 9])
    return positions, np.array([1, 2, 0, 1, 2, 2, 1])


def test_the_teacher_is_a_teacher(live):
    """Its graphs say something: off the diagonal they vary. Otherwise every fault below would pass unnoticed."""
    rows = live.stored(np.arange(13), np.zeros(13, int))
    for name in ("graph_mid", "graph_high"):
        graph, cells = rows[name]["graph"], rows[name]["cells"]
        pairs = (cells[:, :, None] >= 8) & (cells[:, None, :] >= 8) & ~torch.eye(5, dtype=torch.bool)
        assert graph.transpose(0, 1)[:, pairs].std() > 0.05, name


def test_every_stored_row_is_the_live_teachers_within_what_is_declared(live):
    positions, numbers = (a.ravel() for a in np.meshgrid(np.arange(13), np.arange(3)))
    order = np.random.default_rng(1).permutation(39)
    for start in range(0, 39, 5):  # batches of five; the fill's were of eight, in blocks
        here = positions[order[start : start + 5]], numbers[order[start : start + 5]]
        for name, excess in live.excess(live.compute(*live.inputs(*here)), *here).items():
            assert excess <= 1, (name, excess)


def test_the_stored_matrix_is_the_drawn_view(live):
    for number in range(3):
        matrices = live.reader.read(cache.MATRIX, np.arange(13), np.full(13, number))["matrix"]
        drawn = np.stack([geometry.draw(live.cfg.views, image_id, number, live.context.size) for image_id in live.ids])
        assert np.array_equal(matrices, drawn)


@pytest.mark.parametrize("fault", ["neighbouring row", "other view", "BGR", "other mean", "train mode", "unwarped label"])
def test_a_fault_exceeds_the_tolerance_tenfold(live, some, fault):
    positions, numbers = some
    images, labels, matrices = live.inputs(positions, numbers)
    model = live.answers.model
    targets = set(live.named)
    if fault == "neighbouring row":
        computed = live.compute(*live.inputs((positions + 1) % 13, numbers))
    elif fault == "other view":
        images, labels, matrices = live.inputs(positions, (numbers + 1) % 3)
        computed = live.compute(images, labels, matrices)
    elif fault == "BGR":
        computed = live.compute(np.ascontiguousarray(images[..., ::-1]), labels, matrices)
    elif fault == "other mean":
        mean = model.mean.clone()
        model.mean += 20
        computed = live.compute(images, labels, matrices)
        model.mean.copy_(mean)
    elif fault == "train mode":
        state = {name: value.clone() for name, value in model.state_dict().items()}
        model.train()
        computed = live.compute(images, labels, matrices)
        model.eval().load_state_dict(state)
    else:
        output, _ = live.answers.output(images, labels, matrices)
        computed = {
            name: target.compute(output, torch.from_numpy(labels), live.context) for name, (target, _) in live.named.items()
        }
        targets = {"graph_mid", "graph_high"}  # the others do not look at labels
    excess = live.excess(computed, positions, numbers)
    for name in targets:
        assert excess[name] > 10, (fault, name, excess[name])
    assert max(live.excess(live.compute(*live.inputs(*some)), *some).values()) <= 1  # and nothing was left behind


def test_an_unpermuted_mirror_exceeds_the_tolerance_tenfold(live):
    matrices = live.reader.read(cache.MATRIX, np.arange(13), np.ones(13, int))["matrix"]
    mirrored = np.flatnonzero(np.linalg.det(matrices[:, :, :2]) < 0)
    assert len(mirrored) >= 2
    numbers = np.ones(len(mirrored), int)
    images, labels, matrices = live.inputs(mirrored, numbers)
    output, seen = live.answers.output(images, labels, matrices)
    back = torch.arange(256, dtype=torch.uint8)
    back[:5] = torch.tensor(live.source.mirror, dtype=torch.uint8)
    wrong = {name: live.named[name][0].compute(output, back[seen.long()], live.context) for name in ("graph_mid", "graph_high")}
    stored = live.stored(mirrored, numbers)
    for name, rows in wrong.items():
        assert parity.row_error(name, live.named[name][0], stored[name], rows, live.context).excess > 10


def test_losses_and_their_gradients_offline_are_those_online(live):
    """In training's own batches; float16 rows may change a loss and its gradient by their rounding, about 2^-11, and no more."""
    for method, names in (("intra", ["graph_mid", "graph_high", "attention_high"]), ("kd", ["logits"])):
        loader, student = live.loader(names=names), live.student()
        for number in (0, 5):
            offline = loader.batch(number)
            positions, epochs = loader.positions(number)
            online = offline.with_rows(live.compute(*live.inputs(positions, loader.views_at(positions, epochs))))
            output = student(offline.images_B3HW)
            for loss in live.losses(method):
                error = parity.loss_error(method, loss, output, offline, online)
                exact = all(live.named[name][0].fidelity == "exact" for name in loss.reads)
                assert error.online > 0
                assert error.difference < (1e-4 if exact else 1e-3), error
                assert error.gradient_difference < (1e-3 if exact else 1e-2), error


def test_a_trajectory_from_a_float32_store_is_bit_equal_to_the_live_teachers(experiment):
    """Fifty steps on the CPU; the teacher in the loop answers in the fill's batches, which are of one view here."""
    experiment.change(
        targets={
            "attention_high": dict(type="attention", layer="high", dtype="float32"),
            "logits": dict(type="logits", dtype="float32"),
        },
        training=dict(steps=50),
        methods={
            "all": [
                dict(loss="affinity", reads=["graph_mid", "graph_high"], weight=1.0),
                dict(loss="attention", reads=["attention_high"], weight=1.0),
                dict(loss="kd", reads=["logits"], weight=1.0, temperature=2.0),
            ]
        },
    )
    shutil.rmtree(experiment.store("targets"))
    experiment.do("cache-teacher", "--batch", "1")
    live = Live(experiment, batch=1)

    def train(online):
        model, losses = live.student(), live.losses("all")
        loader = live.loader(names=list(live.named))
        if online:
            loader.cached = OnlineTargets(live.answers, live.samples, live.sample, live.cfg.views, live.named)
        step = steps.Step(model, live.cfg.methods["all"], losses, live.cfg.training, torch.ones(5), seed=0)
        for number in range(50):
            step(loader.batch(number))
        return model.state_dict()

    offline, online = train(False), train(True)
    assert all(torch.equal(offline[name], online[name]) for name in offline)


def test_the_verify_command_says_so_too(cached_experiment):
    out = cached_experiment.do("verify", "--recompute", "10")
    assert "whole and undamaged" in out and "graph_mid" in out and "erfnet kd kd" in out


def test_verify_refuses_rows_of_another_teacher(experiment, monkeypatch):
    """A cache whose identity was forged: rows of a teacher with other weights under this teacher's name."""
    from safetensors.torch import load_file, save_file

    path = experiment.folder / "teachers/toy.safetensors"
    digest = cache.weights_digest(experiment.load().teacher, path)
    state = load_file(path)
    state["layer4.1.conv2.weight"] *= 1.5
    save_file(state, path)
    monkeypatch.setattr(cache, "weights_digest", lambda *_: digest)
    result = experiment.run("verify", "--recompute", "10")
    assert result.exit_code == 1 and "are not this teacher's within what is declared" in result.stderr


def test_offline_equals_online_where_frames_keep_their_aspect(experiment):
    experiment.change(prepare={"fit": "pad"}, views={"count": 2})
    for command in ("prepare", "cache-teacher"):
        experiment.do(command)
    said = experiment.do("verify", "--recompute", "8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in said.splitlines() if line.startswith("| ")]
    allowed = {row[0]: float(row[4]) for row in rows if len(row) == 5 and row[1] == "8"}
    assert set(allowed) == {"attention_high", "graph_high", "graph_mid", "logits"} and max(allowed.values()) <= 1
    gradients = [float(row[3]) for row in rows if len(row) == 4 and row[0].startswith("erfnet ")]
    assert len(gradients) == 3 and max(gradients) < 1e-2
    assert experiment.train("intra").exit_code == 0
