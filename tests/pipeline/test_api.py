"""The Python API gives what the pipeline's own training gives, refuses what it refuses, and feeds anybody's own loop."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import pipeline
from pipeline import config
from pipeline.api import Cache
from pipeline.data import prepared
from pipeline.errors import ConfigError, StoreError
from pipeline.store import Reader, Store
from pipeline.teacher import cache as caches
from pipeline.training import step as steps
from pipeline.training.loading import CachedTargets, Loader

ROOT = Path(__file__).parents[2]


@pytest.fixture
def here(cached_experiment, monkeypatch):
    monkeypatch.chdir(cached_experiment.folder)
    return cached_experiment


@pytest.fixture
def cache(here) -> Cache:
    return pipeline.open_cache("toy.yaml")


class Own(nn.Module):
    """A network that this project knows nothing about."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.mid = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.high = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU())
        self.classify = nn.Conv2d(12, num_classes, 1)

    def forward(self, images):
        mid = self.mid(images / 255)
        high = self.high(mid)
        return pipeline.Output(self.classify(high), {"mid": mid, "high": high})


def stage_two(experiment, method):
    """Loader and step as `pipeline train-student` makes them, but for photometric changes."""
    cfg = experiment.load()
    source = cfg.dataset.build()
    pixels, sample, images = prepared.open_whole(Path("cache"), cfg.dataset, source, cfg.prepare, source.ids("train"))
    ids = [image.id for image in images]
    context = caches.context(cfg.teacher.model, source, cfg.prepare.size)
    terms = cfg.method(method)
    named = caches.target_passes({name: cfg.targets[name] for term in terms for name in term.reads}, context)
    store = Store.open(experiment.store("targets"))
    reader = Reader(store, [caches.MATRIX, *(pass_ for _, pass_ in named.values())], ids, cfg.views.count)
    calm = dataclasses.replace(cfg.training, photometric=config.Photometric(brightness=0.0, contrast=0.0, noise=0.0))
    loader = Loader(
        Reader(pixels, [sample], ids, 1),
        sample,
        ids,
        dataset=source,
        content=cfg.prepare.size,
        views=cfg.views,
        training=calm,
        seed=3,
        device="cpu",
        cached=CachedTargets(reader, caches.MATRIX, named),
    )
    torch.manual_seed(0)
    model = cfg.student("erfnet").build(num_classes=5, size=context.size, lanes=0).eval()  # no dropout
    own = caches.context(cfg.student("erfnet"), source, cfg.prepare.size)
    losses = [term.loss.build(reads={name: named[name][0] for name in term.reads}, context=context, student=own) for term in terms]
    return loader, steps.Step(model, terms, losses, calm, steps.class_weights(source, calm, "cpu"), 3)


def loaded(cache, seed=3, **settings):
    return DataLoader(cache, batch_size=4, sampler=cache.sampler(seed), collate_fn=pipeline.collate, **settings)


def test_batches_are_those_of_the_pipelines_own_training(here, cache):
    loader, _ = stage_two(here, "intra")
    sampler = cache.sampler(3)
    keys = [key for _ in range(3) for key in sampler]  # three epochs: every view of every image
    assert len(set(keys)) == len(keys) == 13 * 3
    for step in range(9):
        ours, theirs = pipeline.collate([cache[key] for key in keys[4 * step : 4 * step + 4]]), loader.batch(step)
        for name in ("images_B3HW", "labels_BHW", "inside_BHW", "existence_BL"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
        for name, fields in theirs.rows.items():
            for field, values in fields.items():
                assert torch.equal(ours.rows[name][field], values), (name, field)


@pytest.mark.parametrize("method", ["intra", "kd"])
def test_a_loss_and_its_gradient_are_those_of_the_pipelines_own_step(here, cache, method):
    loader, step = stage_two(here, method)
    output, terms = step.loss_terms(loader.batch(2))
    wanted = {name: term for name, term in terms.items() if name != "ce"}
    keys = list(cache.sampler(3))[8:12]
    batch = pipeline.collate([cache[key] for key in keys])
    mine = step.model(batch.images_B3HW)
    for term in here.load().method(method):
        loss = pipeline.make_loss(term.loss.name, cache, reads=term.reads, student=step.model, **term.loss.args)
        value, (_, theirs) = loss(mine, batch), wanted[term.loss.name]
        assert value.item() == theirs.item() > 0
        first_layer = next(step.model.parameters())
        found, meant = (torch.autograd.grad(v, first_layer, retain_graph=True)[0] for v in (value, theirs))
        assert torch.equal(found, meant) and found.abs().max() > 0


def test_a_network_of_ones_own_learns_the_cached_graphs_in_a_plain_loop(cache):
    torch.manual_seed(0)
    train, held_out = cache.ids[:10], cache.ids[10:]
    model = Own(len(cache.classes))
    loss = pipeline.make_loss("affinity", cache, reads=["graph_mid", "graph_high"], student=model)
    batches = DataLoader(cache, batch_size=5, sampler=cache.sampler(0, ids=train), collate_fn=pipeline.collate)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    unseen = pipeline.collate([cache[image_id, view] for image_id in held_out for view in range(3)])

    def on_unseen():
        with torch.no_grad():
            return loss(model.train()(unseen.images_B3HW), unseen).item()

    before = on_unseen()
    for _ in range(15):
        for batch in batches:
            optimiser.zero_grad()
            loss(model(batch.images_B3HW), batch).backward()
            optimiser.step()
    assert on_unseen() < 0.7 * before


def test_lightning_moves_batches_and_tells_the_sampler_about_epochs(cache):
    lightning = pytest.importorskip("lightning", reason="a training loop by Lightning; pip install lightning")

    class Task(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network, self.seen = Own(len(cache.classes)), []
            self.loss = pipeline.make_loss("affinity", cache, reads=["graph_high"], student=self.network)

        def training_step(self, batch):
            self.seen.append(batch.rows["graph_high"]["graph"].clone())
            return self.loss(self.network(batch.images_B3HW), batch)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.01)

    task = Task()
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, loaded(cache))
    plain = loaded(cache)
    meant = [batch.rows["graph_high"]["graph"] for _ in range(2) for batch in plain]
    assert len(task.seen) == len(meant) == 8
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(task.seen, meant))


@pytest.mark.parametrize("context, workers", [("fork", 2), ("spawn", 1)])
def test_workers_give_the_same_batches(cache, context, workers):
    alone = loaded(cache)
    many = loaded(cache, num_workers=workers, multiprocessing_context=context, persistent_workers=True)
    for ours, theirs in zip(*([batch for _ in range(2) for batch in batches] for batches in (many, alone)), strict=True):
        assert torch.equal(ours.images_B3HW, theirs.images_B3HW) and torch.equal(ours.labels_BHW, theirs.labels_BHW)
        assert torch.equal(ours.rows["logits"]["logits"], theirs.rows["logits"]["logits"])


def test_a_batch_moves_whole(cache):
    batch = pipeline.collate([cache[cache.ids[0], 1]]).to("meta")
    tensors = [
        batch.images_B3HW,
        batch.labels_BHW,
        batch.inside_BHW,
        batch.existence_BL,
        *(values for fields in batch.rows.values() for values in fields.values()),
    ]
    assert all(tensor.device.type == "meta" for tensor in tensors)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"views": {"rotate_deg": 4.0}}, "views.rotate_deg: 3.0 here, 4.0 asked for"),
        ({"views": {"count": 4}}, "view 3, are not filled"),
        ({"prepare": {"size": [44, 120]}}, "prepare.*size|size"),
        ({"targets": {"graph_mid": {"type": "affinity", "layer": "mid", "aoi_kernel": 7}}}, "aoi_kernel: 5 here, 7 asked for"),
        ({"teacher": {"precision": "bf16"}}, "teacher.precision: 'fp32' here, 'bf16' asked for"),
    ],
)
def test_a_config_that_asks_for_something_else_is_refused_with_the_difference(experiment, monkeypatch, change, said):
    experiment.change(**change)
    monkeypatch.chdir(experiment.folder)
    with pytest.raises(StoreError, match=said):
        pipeline.open_cache("toy.yaml")


def test_other_weights_and_overrides_are_refused_as_well(experiment, monkeypatch):
    from pipeline import weights

    monkeypatch.chdir(experiment.folder)
    with pytest.raises(StoreError, match="views.seed: 0 here, 1 asked for"):
        pipeline.open_cache("toy.yaml", overrides=["views.seed=1"])
    state = weights.load_file("teachers/toy.safetensors")
    weights.save_file(
        "teachers/toy.safetensors",
        {name: tensor + 1e-3 if tensor.is_floating_point() else tensor for name, tensor in state.items()},
    )
    with pytest.raises(StoreError, match="teacher.weights: '"):
        pipeline.open_cache("toy.yaml")


def test_a_damaged_row_is_refused_when_it_is_read(experiment, monkeypatch):
    monkeypatch.chdir(experiment.folder)
    cache = pipeline.open_cache("toy.yaml", targets=["graph_mid"])
    folder = experiment.store("targets")
    (chunk,) = folder.glob(f"targets.zarr/v001/{cache._passes['graph_mid'].folder}/graph/c.0.*")
    data = bytearray(chunk.read_bytes())
    data[3] ^= 1
    chunk.write_bytes(data)
    assert cache[cache.ids[0], 0].targets["graph_mid"]["graph"].isfinite().all()
    with pytest.raises(StoreError, match="not what was written"):
        cache[cache.ids[0], 1]


def test_questions_that_make_no_sense_are_answered_in_one_line(cache):
    model = Own(5)
    asked = {
        "is no image id; ask for cache\\['id', view\\]": lambda: cache[0],
        "no image 'nobody'": lambda: cache["nobody", 0],
        "no view 3 of": lambda: cache[cache.ids[0], 3],
        "no target 'graph_midd'; did you mean 'graph_mid'": lambda: pipeline.open_cache("toy.yaml", targets=["graph_midd"]),
        "no target 'graph_hihg'; did you mean 'graph_high'": lambda: make(cache, "affinity", model, ["graph_hihg"]),
        "affinity cannot read 'logits' \\(type logits\\)": lambda: make(cache, "affinity", model, ["logits"]),
        "name targets of type affinity": lambda: make(cache, "affinity", model, []),
        "kd.temprature: no such key; did you mean 'temperature'": lambda: make(cache, "kd", model, ["logits"], temprature=1.0),
        "kd.temperature: this key is missing": lambda: make(cache, "kd", model, ["logits"]),
        "one of the losses": lambda: make(cache, "afinity", model, ["graph_mid"]),
        "Conv2d: returns Tensor; return pipeline.Output": lambda: make(cache, "affinity", nn.Conv2d(3, 5, 1), ["graph_mid"]),
        "no such file": lambda: pipeline.open_cache("nowhere.yaml"),
    }
    for said, ask in asked.items():
        with pytest.raises((ConfigError, StoreError), match=said) as caught:
            ask()
        assert "\n" not in str(caught.value) or "temp" in said


def make(cache, name, student, reads, **settings):
    return pipeline.make_loss(name, cache, student=student, reads=reads, **settings)


def test_a_folder_alone_shows_the_same_records(cache, here):
    alone = pipeline.open_cache(here.store("targets"))
    assert alone.ids == cache.ids and alone.num_views == 3 and alone.context == cache.context
    assert "affinity(layer='mid'" in repr(alone)
    ours, theirs = alone[cache.ids[4], 2], cache[cache.ids[4], 2]
    for name in ("matrix_23", "image_3HW", "label_HW", "inside_HW"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    for name, pass_ in cache._passes.items():
        assert all(torch.equal(ours.targets[pass_.folder][field], values) for field, values in theirs.targets[name].items())
    with pytest.raises(StoreError, match="holds prepared images, no targets; open a targets-"):
        pipeline.open_cache(here.store("prepared"))


def test_a_url_alone_shows_records_without_pixels(cache, here):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    folder = here.store("targets")
    memory.put(str(folder), f"/bucket/cache/roads/{folder.name}", recursive=True)
    try:
        alone = pipeline.open_cache(f"memory://bucket/cache/roads/{folder.name}")
        record = alone[cache.ids[0], 1]
        assert torch.equal(record.matrix_23, cache[cache.ids[0], 1].matrix_23) and record.image_3HW is None
        with pytest.raises(StoreError, match="has no pixels; open the cache by its config"):
            pipeline.collate([record])
    finally:
        memory.rm("/bucket", recursive=True)


def test_rows_that_other_code_stored_are_refused_without_a_config_too(experiment, monkeypatch):
    from pipeline.targets import affinity

    monkeypatch.setattr(affinity.Target, "version", 2)
    with pytest.raises(StoreError, match="was stored by other code: version: 1 here, 2 asked for"):
        pipeline.open_cache(experiment.store("targets"))
    names = [name for name in Store.open(experiment.store("targets")).stored_passes() if name.startswith("logits")]
    assert list(pipeline.open_cache(experiment.store("targets"), targets=names).targets) == names


def test_every_target_of_every_example_comes_back_from_its_record():
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        for plugin in config.load(path).targets.values():
            record = plugin.build().record(plugin.name)
            args = {key: value for key, value in record.items() if key not in ("type", "version", "uses_labels")}
            assert config.plugin("targets", plugin.name, args).build() == plugin.build()


def test_importing_the_package_loads_no_torch():
    code = "import sys, pipeline; pipeline.PipelineError; assert 'torch' not in sys.modules; pipeline.open_cache; assert 'torch' in sys.modules"  # noqa: E501
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pipeline.nothing
