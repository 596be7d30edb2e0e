"""Plug-ins of one's own, in a folder outside the package: found by name, refused with file and line, part of every identity."""

import importlib
import os
import pickle
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.distributions import Categorical

from pipeline import lookup, records
from pipeline.data import prepared
from pipeline.errors import ConfigError
from pipeline.losses.base import Batch
from pipeline.metrics import base as metrics
from pipeline.models.base import Output
from pipeline.teacher import cache

PAGE = Path(__file__).parents[2] / "docs/extending.md"
FILES = {
    "targets/_sums.py": """
        def sums(logits_BKhw):
            return logits_BKhw.float().mean(dim=(2, 3))
        """,
    "targets/means.py": '''
        """The mean logit of each class."""

        from dataclasses import dataclass

        from pipeline.targets._sums import sums
        from pipeline.targets.base import Field, TargetType


        @dataclass(frozen=True, kw_only=True)
        class Target(TargetType):
            def fields(self, context):
                return {"means": Field((context.num_classes,), "float32", ("class",))}

            def compute(self, output, labels_BHW, context):
                return {"means": sums(output.logits)}

            def encode(self, values):
                return {"means": values["means"].numpy()}

            def decode(self, rows):
                return rows
        ''',
    "losses/same_means.py": '''
        """The squared difference of mean logits."""

        from typing import Annotated

        from pydantic import Field

        from pipeline.losses.base import LossModule


        class Loss(LossModule):
            reads_types = ("means",)

            def __init__(self, *, reads, context, student, power: Annotated[float, Field(gt=0)] = 2.0):
                super().__init__(reads=reads, context=context, student=student)
                self.power = power

            def forward(self, output, batch):
                ((name, target),) = self.reads.items()
                own = target.compute(output, batch.labels_BHW, self.context)["means"]
                return (own - batch.rows[name]["means"]).abs().pow(self.power).mean()
        ''',
    "models/narrow.py": '''
        """ERFNet of four channels."""

        from pipeline.models import erfnet


        class Model(erfnet.Model):
            def __init__(self, num_classes, *, size, lanes=0):
                super().__init__(num_classes, size=size, lanes=lanes, width=4, dropout=(0.0, 0.0))
        ''',
    "datasets/greys.py": '''
        """Pictures beside arrays of their classes."""

        from pathlib import Path

        import numpy as np
        from PIL import Image

        from pipeline.datasets.base import DatasetBase


        class Dataset(DatasetBase):
            classes, colours, splits, metric = ("dark", "light"), ((0, 0, 0), (255, 255, 255)), ("train",), "halves"

            def __init__(self, *, root: str):
                self.root = Path(root)

            def ids(self, split):
                return sorted(path.stem for path in self.root.glob("*.png"))

            def image(self, image_id):
                return np.array(Image.open(self.files(image_id)[0]))

            def label(self, image_id):
                return (self.image(image_id)[..., 0] > 127).astype(np.uint8)

            def files(self, image_id):
                return [self.root / f"{image_id}.png"]
        ''',
    "metrics/halves.py": """
        from pipeline.metrics import miou


        class Metric(miou.Metric):
            headline = "halves"
        """,
}


@pytest.fixture
def own(tmp_path):
    """A folder of plug-ins, forgotten after the test."""
    before, search = os.environ.get(lookup.VARIABLE), {kind: find_search(kind)[:] for kind in lookup.CLASSES}
    folder = tmp_path / "my_plugins"
    for name, text in FILES.items():
        put(folder, name, text)
    yield folder
    forget()
    os.environ.pop(lookup.VARIABLE, None)
    if before is not None:
        os.environ[lookup.VARIABLE] = before
    for kind, places in search.items():
        find_search(kind)[:] = places


def find_search(kind):
    return importlib.import_module(f"pipeline.{kind}").__path__


def put(folder, name, text):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(dedent(text).lstrip())


def forget():
    """Modules of one's own, as in a process that begins."""
    for name in [name for name in sys.modules if name.startswith("pipeline.") and lookup.is_own(name)]:
        package, _, last = name.rpartition(".")
        del sys.modules[name], vars(sys.modules[package])[last]
    records.code_among.cache_clear()
    importlib.invalidate_caches()


def with_own(experiment, own):
    """The experiment with a target, a loss and a network of one's own."""
    raw = yaml.safe_load(experiment.config.read_text())
    raw |= {"plugins": [str(own)], "students": {"narrow": {}}}
    raw["targets"]["means"] = {"type": "means"}
    raw["methods"]["mine"] = [dict(loss="same_means", reads=["means"], weight=1.0)]
    experiment.config.write_text(yaml.safe_dump(raw))
    return experiment


def test_plug_ins_of_ones_own_fill_a_cache_train_and_are_part_of_identities(experiment, own):
    with_own(experiment, own)
    train = ("train-student", "--student", "narrow", "--method", "mine", "--seed", "0")
    experiment.do("cache-teacher")
    assert "same_means" in experiment.do(*train)
    record = records.read(experiment.folder / "runs/toy/narrow-mine-0/run.json")

    # another process, with a comment more: nothing is done again
    (own / "targets/_sums.py").write_text((own / "targets/_sums.py").read_text() + "# a comment\n")
    forget()
    experiment.do(*train)
    assert records.read(experiment.folder / "runs/toy/narrow-mine-0/run.json") == record

    # other code of the loss is another run
    put(own, "losses/same_means.py", FILES["losses/same_means.py"].replace(".abs()", ".abs().clamp(max=9)"))
    forget()
    experiment.do(*train)
    assert records.read(experiment.folder / "runs/toy/narrow-mine-0/run.json")["code"] != record["code"]

    # other code beside the target refuses its rows
    put(own, "targets/_sums.py", FILES["targets/_sums.py"].replace("mean(", "sum("))
    forget()
    refused = experiment.run(*train)
    assert refused.exit_code == 1 and "means" in refused.stderr and "code" in refused.stderr


def test_a_teacher_and_a_reader_of_ones_own_are_known_by_their_code(own):
    lookup.add_plugins([own])
    assert cache.own_code("pipeline.models.erfnet") == {}
    before = cache.own_code("pipeline.models.narrow"), prepared.reading_rule(lookup.find_class("datasets", "greys")(root="x"))
    put(own, "models/narrow.py", FILES["models/narrow.py"].replace("width=4", "width=8"))
    put(own, "datasets/greys.py", FILES["datasets/greys.py"].replace("127", "128"))
    forget()
    after = cache.own_code("pipeline.models.narrow"), prepared.reading_rule(lookup.find_class("datasets", "greys")(root="x"))
    assert list(before[0]) == ["code"] and before[0] != after[0] and before[1] != after[1]


def test_a_reader_and_its_metric_work_in_processes_that_are_started(own, tmp_path):
    Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(tmp_path / "0.png")
    lookup.add_plugins([own])
    dataset = lookup.find_class("datasets", "greys")(root=str(tmp_path))
    assert metrics.of(dataset).headline == "halves"
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert (pool.submit(dataset.label, "0").result() == 1).all()


def test_a_configuration_finds_its_plug_ins_in_the_process_that_takes_it(experiment, own):
    packed = pickle.dumps(with_own(experiment, own).load())
    os.environ.pop(lookup.VARIABLE)
    for kind in lookup.CLASSES:
        find_search(kind).remove(str(own / kind))
    with pytest.raises(ConfigError, match="is not one of the models"):
        lookup.find("models", "narrow")
    taken = pickle.loads(packed)
    assert taken.student("narrow").build(num_classes=2, size=(16, 16), lanes=0).layers
    assert taken.anywhere().plugins == (str(own),)


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("losses/kd.py", "", "my_plugins/losses/kd.py: pipeline/losses/kd.py has this name already; rename the file"),
        ("targets/_grid.py", "", "my_plugins/targets/_grid.py: pipeline/targets/_grid.py has this name already"),
        ("losses/same_means.py", "import torch\nimport nowhere_at_all\n", "same_means.py: line 2: ModuleNotFoundError: No module"),
        ("losses/same_means.py", "x = 1\ndef f(:\n", "same_means.py: line 2: SyntaxError: "),
        (
            "targets/_sums.py",
            "x = 1\nraise ValueError('two\\nlines')\n",
            "targets/_sums.py: line 2: ValueError: two lines; correct",
        ),
        ("models/narrow.py", "raise ValueError('no')\n", "models/narrow.py: line 1: ValueError: no; correct"),
        ("losses/same_means.py", "class Lose: ...\n", "same_means.py: has no class Loss; write `class Loss(LossModule)`"),
        ("losses/same_means.py", "class Loss: ...\n", "same_means.py: does not derive its class Loss; write"),
        ("dataset/mine.py", "", "my_plugins/dataset: is not searched; name the folder 'datasets'"),
    ],
)
def test_what_is_wrong_with_a_plug_in_is_one_line(experiment, own, name, text, said):
    put(own, name, text)
    with pytest.raises(ConfigError) as raised:
        with_own(experiment, own).load()
    lines = [line for line in str(raised.value).splitlines() if said in line]
    assert lines and lines[0].startswith(str(experiment.config)), str(raised.value)


def test_the_loss_of_the_page_works(experiment, own):
    (text,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    put(own, "losses/reverse_kl.py", text)
    (_, entries) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    raw = yaml.safe_load(experiment.config.read_text()) | yaml.safe_load(entries) | {"plugins": [str(own)]}
    experiment.config.write_text(yaml.safe_dump(raw))
    (term,) = experiment.load().method("reverse")
    loss = term.loss.build(reads={"logits": None}, context=None, student=None)
    mine, theirs = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    batch = Batch(None, None, torch.ones(2, 32, 32, dtype=torch.bool), None, {"logits": {"logits": theirs}}, 0)
    expected = torch.distributions.kl_divergence(*(Categorical(logits=x.movedim(1, -1) / 2) for x in (mine, theirs))).mean()
    assert loss(Output(mine, {}), batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_misspelt_name_is_compared_with_ones_own_and_those_of_the_package(experiment, own):
    with_own(experiment, own)
    experiment.change(students={"narow": {}}, methods={"other": [dict(loss="atention", reads=["means"], weight=1.0)]})
    with pytest.raises(ConfigError) as raised:
        experiment.load()
    assert "did you mean 'narrow'" in str(raised.value) and "did you mean 'attention'" in str(raised.value)
    assert "narrow" in lookup.names("models") and "_sums" not in lookup.names("targets")


@pytest.mark.parametrize(
    "value, said",
    [
        ("my_plugins", "plugins: expected a list of folders, got the text 'my_plugins'"),
        (["nowhere"], "nowhere: no such folder; correct 'plugins'"),
        (["."], "holds no <name>.py in any of datasets/, models/, targets/, losses/, metrics/"),
    ],
)
def test_folders_that_hold_no_plug_ins_are_refused(experiment, own, value, said):
    raw = yaml.safe_load(experiment.config.read_text())
    experiment.config.write_text(yaml.safe_dump(raw | {"plugins": value}))
    result = experiment.run("plan")
    assert result.exit_code == 1 and said in result.stderr and len(result.stderr.splitlines()) == 1


def test_two_folders_may_not_give_one_name(own, tmp_path):
    put(tmp_path / "others", "losses/same_means.py", FILES["losses/same_means.py"])
    with pytest.raises(ConfigError, match=r"others/losses/same_means.py: .*my_plugins/losses/same_means.py has this name"):
        lookup.add_plugins([own, tmp_path / "others"])
