"""One YAML file per experiment -> frozen, checked values, or every fault in it at once.

The sections are what the stages take and what dvc.yaml lists. Whatever changes a result must be said in the file; only
settings that change no result (how often to log) have defaults. The keys of a plug-in (a dataset, model, target or loss) are
the keywords of its class, so a plug-in needs no registration here.
"""

import dataclasses
import inspect
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from pipeline.errors import ConfigError
from pipeline.lookup import did_you_mean, find_class

INJECTED = {  # what the stages hand to a plug-in themselves; not a key of the YAML
    "datasets": set(),
    "models": {"num_classes", "size", "lanes"},
    "targets": set(),
    "losses": {"reads", "context", "student"},
}


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """A file by its name, and the keywords its class is made with."""

    kind: str
    name: str
    args: dict[str, Any]

    def build(self, **injected: Any) -> Any:
        plugin = find_class(self.kind, self.name)
        if "input_scale" in self.args:          # of a student (_student); no plug-in's own keyword
            from pipeline.models._scaled import scaled
            return scaled(plugin, **injected, **self.args)
        return plugin(**injected, **self.args)


@dataclass(frozen=True, kw_only=True)
class Prepare:
    size: tuple[int, int]                       # height, width in pixels after the crop; padded to the networks' multiple
    codec: Literal["raw", "lz4", "zstd"]        # raw reads fastest


@dataclass(frozen=True, kw_only=True)
class Views:
    count: int                                  # K; view 0 is the plain image
    seed: int
    scale: tuple[float, float]                  # zoom is drawn from this range
    rotate_deg: float                           # rotation is drawn from -rotate_deg..rotate_deg
    shift: float                                # shift is drawn from -shift..shift, in parts of height and width
    mirror: bool                                # half of the views are mirrored; refused if the dataset has no permutation


@dataclass(frozen=True, kw_only=True)
class Photometric:
    """Changes of the student's pixels alone; they never touch a target."""

    brightness: float                           # the image is multiplied by 1 +- this
    contrast: float                             # its distance to its own mean by 1 +- this
    noise: float                                # standard deviation of Gaussian noise, in grey levels


@dataclass(frozen=True, kw_only=True)
class Training:
    steps: int
    batch: int
    lr: float
    momentum: float
    weight_decay: float
    power: float                                # poly schedule: lr * (1 - step / steps) ** power, per step
    background_weight: float                    # of the background class in the cross-entropy; 1 where there is none
    existence_weight: float                     # of the lane-existence loss; 0 leaves the head out
    fresh_views: bool                           # True: new views each epoch instead of the K stored ones (no targets then)
    precision: Literal["fp32", "tf32", "bf16"]
    photometric: Photometric
    optimiser: Literal["sgd", "adamw"] = "sgd"  # adamw (Loshchilov and Hutter, ICLR 2019): `momentum` is its first beta, the second 0.999
    warmup_steps: int = 0                       # lr rises in a straight line over these steps, below the schedule
    nesterov: bool = False                      # of SGD: the gradient is taken where the momentum leads
    head_lr: float = 1.0                        # lr of all but the network's backbone is multiplied by this
    held_out: int = 0                           # images kept from training; at each checkpoint every term is measured on them
    class_weights: tuple[float, ...] | Literal["enet"] | None = None    # of the cross-entropy, by class; enet: from the labels
    ema: float = 0.0                            # decay of the weights' running mean, which is then what a run leaves; 0: the last
    accumulate: int = 1                         # parts of a batch that run one after the other, for memory; batch norm sees a part
    channels_last: bool = False                 # convolutions' memory format: faster on GPUs with tensor cores, rounds otherwise
    compile: bool | Literal["graphs"] = False   # torch.compile of the network; the rest runs as it is. graphs: with CUDA graphs
    shuffle_block: int = 0                      # for slow storage: images in a row that an epoch shows near one another; 0: any order
    shuffle_window: int = 8                     # so many of these blocks are shuffled together, and kept in RAM
    checkpoint_every: int = 500
    norm_every: int = 200                       # steps between measurements of every term's gradient norm


@dataclass(frozen=True, kw_only=True)
class Teacher:
    model: Plugin
    checkpoint: Path | None                     # trained weights of the whole network; None: `train-teacher` makes them
    backbone: Path | None                       # ImageNet weights to start training from, torchvision names
    precision: Literal["fp32", "tf32", "bf16"]  # of the teacher's pass over the data
    flip_average: bool = False                  # it also looks at the mirrored image; refused as mirrored views are


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    split: str


@dataclass(frozen=True, kw_only=True)
class Term:
    """One loss of a method. Its weight is 0 before step `start` and rises in a straight line for `ramp` steps."""

    loss: Plugin
    reads: tuple[str, ...]
    weight: float
    start: int = 0
    ramp: int = 0

    def weight_at(self, step: int) -> float:
        if step < self.start:
            return 0.0
        return self.weight if not self.ramp else self.weight * min(1.0, (step - self.start + 1) / self.ramp)


@dataclass(frozen=True, kw_only=True)
class Config:
    path: Path
    overrides: tuple[str, ...]
    raw: dict = field(repr=False)               # the sections as written, overrides applied
    dataset: Plugin
    prepare: Prepare
    views: Views
    teacher: Teacher
    teacher_training: Training | None
    targets: dict[str, Plugin]
    students: dict[str, Plugin]
    methods: dict[str, tuple[Term, ...]]
    training: Training
    evaluate: Evaluate

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def text(self) -> str:
        """The file as it was used: overrides applied, and named at the top."""
        said = "".join(f"# --set {override}\n" for override in self.overrides)
        return said + yaml.safe_dump(self.raw, sort_keys=False, default_flow_style=None, width=120)

    def student(self, name: str) -> Plugin:
        return self._entry("students", name)

    def method(self, name: str) -> tuple[Term, ...]:
        return self._entry("methods", name)

    def _entry(self, section, name):
        entries = getattr(self, section)
        if name not in entries:
            raise ConfigError(f"{self.path}: {section}: has no {name!r}, only {', '.join(entries)}{did_you_mean(name, entries)}")
        return entries[name]


class _OnceEach(yaml.SafeLoader):
    """A key that comes twice is a fault, as in YAML's specification; PyYAML would take the last."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                fault = f"the key {key.value!r} comes twice"
                raise yaml.constructor.ConstructorError(None, None, fault, key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, examples: str) -> typing.Any:
    """What the file says, not checked. Raises ConfigError if it is no readable YAML or says a key twice; `examples` tells whom it
    is missing where to look."""
    try:
        return yaml.load(path.read_text(), _OnceEach)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file, seen from {Path.cwd()}; {examples}") from None
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: cannot be read ({why}); name a YAML file") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def load(path: Path | str, overrides: typing.Sequence[str] = ()) -> Config:
    """The checked content of a YAML file, with `section.key=value` overrides applied. Raises ConfigError with all faults."""
    path = Path(path)
    raw = read_yaml(path, "`pipeline init` copies the examples to configs/")
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected sections ({', '.join(_SECTIONS)}), got {_show(raw)}")
    for text in overrides:
        _override(raw, text)
    faults = _Faults(path)
    values = {}
    for key in raw:
        if key not in _SECTIONS:
            faults.add(str(key), f"no such section{did_you_mean(str(key), _SECTIONS)}")
    for section, read in _SECTIONS.items():
        if section not in raw:
            faults.add(section, "this section is missing")
        else:
            values[section] = read(raw[section], section, faults)
    if not faults:
        _check_across(values, faults)
    faults.stop()
    return Config(path=path, overrides=tuple(overrides), raw=raw, **values)


def plugin(kind: str, name: str, args: typing.Mapping[str, Any]) -> Plugin:
    """A plug-in from its name and keywords, checked as an entry of a file is. Raises ConfigError with all faults."""
    faults = _Faults(kind)
    found = _plugin(kind, {"name": name, **json.loads(json.dumps(args))}, name, faults, "name")     # lists for tuples, as in YAML
    faults.stop()
    assert found is not None
    return found


class _Faults(list):
    def __init__(self, path):
        super().__init__()
        self.path = path

    def add(self, where, what):
        self.append(f"{self.path}: {where}: {what}")

    def stop(self):
        if self:
            raise ConfigError("\n".join(self))


def _override(raw, text):
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text}: expected section.key=value, e.g. training.lr=0.02")
    *parents, last = key.split(".")
    section = raw
    for parent in parents:
        section = section.get(parent) if isinstance(section, dict) else None
    if not isinstance(section, dict) or not parents:
        raise ConfigError(f"--set {text}: there is no section {'.'.join(parents) or key!r} in the file")
    try:
        section[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"--set {text}: {value!r} is not a YAML value") from None


# --- values -------------------------------------------------------------------------------------------------------------

def _show(value) -> str:
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return f"the text {value!r}"
        return f"the text {value!r} (YAML reads it as text; write a number with a point, as in 1.0e-4)"
    return repr(value)


def _convert(value, kind, where, faults):
    """`value` as the annotated type, or a fault. Lists become tuples; whole numbers pass as floats; nothing else bends."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or kind is inspect.Parameter.empty:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        for option in inner:
            trial = _Faults(faults.path)
            result = _convert(value, option, where, trial)
            if not trial:
                return result
        return faults.add(where, f"expected {_name(kind)}, got {_show(value)}")
    if origin is Literal:
        if value not in inner or isinstance(value, bool) and True not in inner:
            faults.add(where, f"expected one of {', '.join(map(str, inner))}; got {_show(value)}")
        return value
    if origin in (tuple, list) or kind in (tuple, list):
        if not isinstance(value, list):
            return faults.add(where, f"expected a list, got {_show(value)}")
        kinds: typing.Sequence[Any]
        if origin is tuple and Ellipsis not in inner:
            if len(value) != len(inner):
                return faults.add(where, f"expected {len(inner)} values, got {len(value)}")
            kinds = inner
        else:
            kinds = [inner[0] if inner else Any] * len(value)
        return tuple(_convert(v, k, f"{where}[{i}]", faults) for i, (v, k) in enumerate(zip(value, kinds)))
    if origin is dict or kind is dict:
        if not isinstance(value, dict):
            return faults.add(where, f"expected a mapping, got {_show(value)}")
        return value
    if dataclasses.is_dataclass(kind):
        return _construct(kind, value, where, faults)
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind in (bool, str) and isinstance(value, kind) or kind is int and type(value) is int:
        return value
    return faults.add(where, f"expected {_name(kind)}, got {_show(value)}")


def _name(kind) -> str:
    words = {float: "a number", int: "a whole number", str: "a text", bool: "true or false", Path: "a path", type(None): "null"}
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(_name(k) for k in typing.get_args(kind))
    if typing.get_origin(kind) is Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(kind))
    return words.get(kind, str(kind))


def _keywords(call, mapping, where, faults, injected=frozenset()) -> dict:
    """The mapping's values converted to the call's annotated keywords; unknown, missing and mistyped keys are faults."""
    if mapping is None:
        mapping = {}
    if not isinstance(mapping, dict):
        faults.add(where, f"expected a mapping, got {_show(mapping)}")
        return {}
    parameters = {n: p for n, p in inspect.signature(call).parameters.items() if n not in injected and n != "self"}
    hints = typing.get_type_hints(call.__init__ if inspect.isclass(call) and not dataclasses.is_dataclass(call) else call)
    result = {}
    for key, value in mapping.items():
        if key not in parameters:
            faults.add(f"{where}.{key}", f"no such key{did_you_mean(str(key), parameters) or '; there are: ' + ', '.join(parameters)}")
        else:
            result[key] = _convert(value, hints.get(key, Any), f"{where}.{key}", faults)
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in mapping:
            faults.add(f"{where}.{name}", f"this key is missing ({_name(hints.get(name, Any))})")
    return result


def _construct(cls, mapping, where, faults):
    before = len(faults)
    keywords = _keywords(cls, mapping, where, faults)
    return cls(**keywords) if len(faults) == before else None


# --- sections -----------------------------------------------------------------------------------------------------------

def _section(cls):
    return lambda value, where, faults: _construct(cls, value, where, faults)


def _plugin(kind, value, where, faults, name_key, name=None, keep=()) -> Plugin | None:
    """A plug-in from a mapping whose `name_key` names its file; keys in `keep` belong to somebody else."""
    value = {} if value is None else value
    if not isinstance(value, dict):
        return faults.add(where, f"expected a mapping with the key {name_key!r}, got {_show(value)}")
    name = value.get(name_key, name)
    if name is None:
        return faults.add(f"{where}.{name_key}", "this key is missing (a text)")
    try:
        cls = find_class(kind, name)
    except ConfigError as error:
        return faults.add(f"{where}.{name_key}", str(error))
    args = {k: v for k, v in value.items() if k != name_key and k not in keep}
    before = len(faults)
    defaults = {n: p.default for n, p in inspect.signature(cls).parameters.items()
                if p.default is not inspect.Parameter.empty and n not in INJECTED[kind]}
    # written out, so that an identity names them all and notices a changed default
    args = {**defaults, **_keywords(cls, args, where, faults, INJECTED[kind])}
    later = [key for key in getattr(cls, "later_keys", ()) if args[key] == defaults[key]]       # older records do not have them
    plugin = Plugin(kind=kind, name=name, args={key: args[key] for key in args if key not in later})
    if kind == "targets" and len(faults) == before:
        try:
            plugin.build()                      # a target is its own config: it checks its values itself
        except ConfigError as error:
            faults.add(where, str(error))
    return plugin


def _teacher(value, where, faults):
    own = ("checkpoint", "backbone", "precision", "flip_average")
    model = _plugin("models", value, where, faults, "name", keep=own)
    rest = {k: v for k, v in value.items() if k in own} if isinstance(value, dict) else {}
    keywords = _keywords(Teacher, rest, where, faults, injected={"model"})
    return None if faults or model is None else Teacher(model=model, **keywords)


def _student(value, where, faults, name):
    """A model and a key beside its own. At 1 `input_scale` changes nothing and is in no record."""
    model = _plugin("models", value, where, faults, "model", name=name, keep=("input_scale",))
    scale = value.get("input_scale", 1) if isinstance(value, dict) else 1
    if isinstance(scale, bool) or scale not in (1, 0.5, 0.25):
        return faults.add(f"{where}.input_scale", f"expected one of 1, 0.5, 0.25; got {_show(scale)}")
    return model if model is None or scale == 1 else dataclasses.replace(model, args={**model.args, "input_scale": scale})


def _term(value, where, faults):
    own = ("reads", "weight", "start", "ramp")
    loss = _plugin("losses", value, where, faults, "loss", keep=own)
    rest = {k: v for k, v in value.items() if k in own} if isinstance(value, dict) else {}
    rest.setdefault("reads", [])
    keywords = _keywords(Term, rest, where, faults, injected={"loss"})
    return None if faults or loss is None else Term(loss=loss, **keywords)


def _mapping(read):
    def read_all(value, where, faults):
        if not isinstance(value, dict):
            return faults.add(where, f"expected a mapping from names to entries, got {_show(value)}")
        return {str(name): read(entry, f"{where}.{name}", faults, str(name)) for name, entry in value.items()}
    return read_all


def _method(value, where, faults, name):
    if not isinstance(value, list):
        return faults.add(where, f"expected a list of losses (an empty one for plain training), got {_show(value)}")
    return tuple(_term(entry, f"{where}[{i}]", faults) for i, entry in enumerate(value))


_SECTIONS = {
    "dataset": lambda value, where, faults: _plugin("datasets", value, where, faults, "name"),
    "prepare": _section(Prepare),
    "views": _section(Views),
    "teacher": _teacher,
    "teacher_training": lambda value, where, faults: None if value is None else _construct(Training, value, where, faults),
    "targets": _mapping(lambda value, where, faults, name: _plugin("targets", value, where, faults, "type")),
    "students": _mapping(_student),
    "methods": _mapping(_method),
    "training": _section(Training),
    "evaluate": _section(Evaluate),
}


def _check_across(values, faults):
    targets = values["targets"]
    for method, terms in values["methods"].items():
        names = [term_name(terms, i) for i in range(len(terms))]
        for i, term in enumerate(terms):
            where = f"methods.{method}[{i}]"
            if not term.loss.args.get("temperature", 1) > 0:
                faults.add(f"{where}.temperature", f"must be positive, got {term.loss.args['temperature']}")
            for key in ("weight", "start", "ramp"):
                if not getattr(term, key) >= 0:
                    faults.add(f"{where}.{key}", f"expected 0 or more, got {getattr(term, key)}")
            accepted = find_class("losses", term.loss.name).reads_types
            if accepted and not term.reads:
                faults.add(f"{where}.reads", f"{term.loss.name} reads targets of type {' or '.join(accepted)}; name some")
            for name in term.reads:
                if name not in targets:
                    faults.add(f"{where}.reads", f"no target {name!r}{did_you_mean(name, targets) or '; there are: ' + ', '.join(targets)}")
                elif targets[name].name not in accepted:
                    faults.add(f"{where}.reads", f"{term.loss.name} cannot read {name!r} (type {targets[name].name}); "
                                                 f"it reads {' or '.join(accepted) or 'no target'}")
        if len(set(names)) != len(names):
            faults.add(f"methods.{method}", "the same loss with the same targets stands there twice")
    for name, student in values["students"].items():
        if find_class("models", student.name).uses_labels:
            faults.add(f"students.{name}", f"{student.name} answers from the labels it is shown and can only teach; choose another")
        if "input_scale" in student.args:
            from pipeline.frames import canvas
            from pipeline.models._scaled import misfit
            if fault := misfit(find_class("models", student.name), student.args, canvas(values["prepare"].size), student.args["input_scale"]):
                faults.add(f"students.{name}.input_scale", fault)
    views, teacher = values["views"], values["teacher"]
    if views.count < 1:
        faults.add("views.count", f"expected at least 1, got {views.count}")
    if not 0 < views.scale[0] <= views.scale[1]:
        faults.add("views.scale", f"expected two rising positive numbers, got {list(views.scale)}")
    if teacher.checkpoint is None and values["teacher_training"] is None and not find_class("models", teacher.model.name).own_weights:
        faults.add("teacher", "has no checkpoint and there is no teacher_training; give one of them")
    for section in ("training", "teacher_training"):
        training = values[section]
        for name in ("steps", "batch", "accumulate", "checkpoint_every", "norm_every"):
            if training is not None and getattr(training, name) < 1:
                faults.add(f"{section}.{name}", f"must be positive, got {getattr(training, name)}")
        if training is not None and not training.lr > 0:
            faults.add(f"{section}.lr", f"must be positive, got {training.lr}")
        if training is not None and not 0 <= training.momentum < 1:
            faults.add(f"{section}.momentum", f"expected 0 or more and less than 1, as 0.9, got {training.momentum}")
        if training is not None and not training.weight_decay >= 0:
            faults.add(f"{section}.weight_decay", f"expected 0 or more, got {training.weight_decay}")
        if training is not None and not 0 <= training.ema < 1:
            faults.add(f"{section}.ema", f"expected 0 (off) or a decay below 1, as 0.999, got {training.ema}")
        if training is not None and (training.shuffle_block < 0 or training.shuffle_window < 1):
            faults.add(f"{section}.shuffle_block", f"expected 0 (off) or a number of images, and a shuffle_window of 1 or more, got "
                                                   f"{training.shuffle_block} and {training.shuffle_window}")
        if training is not None and training.warmup_steps < 0:
            faults.add(f"{section}.warmup_steps", f"expected 0 or more, got {training.warmup_steps}")
        if training is not None and training.nesterov and (training.optimiser != "sgd" or training.momentum == 0):
            faults.add(f"{section}.nesterov", "is a kind of SGD's momentum; write optimiser: sgd and a momentum, or false")
        if training is not None and training.class_weights is not None and training.background_weight != 1:
            faults.add(f"{section}.class_weights", "says the background's weight too; write background_weight: 1.0")
    for section in ("students", "methods"):
        for name in values[section]:
            if "-" in name:                     # a run is called student-method-seed
                faults.add(f"{section}.{name}", f"a name with a dash; write {name.replace('-', '_')!r}")


def term_name(terms: typing.Sequence[Term], i: int) -> str:
    """How a term is called in logs: the loss, with its targets where the method has that loss more than once."""
    term = terms[i]
    alone = sum(t.loss.name == term.loss.name for t in terms) == 1
    return term.loss.name if alone else f"{term.loss.name}({','.join(term.reads)})"
