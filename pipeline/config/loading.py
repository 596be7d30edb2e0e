"""A YAML file and its overrides -> an experiment's frozen values, or every fault at once.

The keys of a plug-in (a dataset, model, target or loss) are the keywords of its class, so a plug-in needs no registration here.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline import lookup
from pipeline.config.checks import across
from pipeline.config.keys import Faults, keys_of, keywords, section, shown
from pipeline.config.reading import override, read_yaml
from pipeline.config.schema import MAIN, Evaluate, MadeFrom, Plugin, Prepare, Student, Teacher, Term, Titled, Training, Views
from pipeline.errors import ConfigError
from pipeline.later import leave_out
from pipeline.lookup import absolute, add_plugins, did_you_mean, find_class
from pipeline.paths import name_fault

START = ("init", "backbone")  # of a student: files that its training starts from
INJECTED = {  # what the stages hand to a plug-in themselves; not a key of the YAML
    "datasets": frozenset[str](),
    "models": frozenset({"num_classes", "size", "lanes"}),
    "targets": frozenset[str](),
    "losses": frozenset({"reads", "context", "student"}),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    path: Path
    overrides: tuple[str, ...]
    raw: dict[str, Any] = field(repr=False)  # the sections as written, overrides applied
    dataset: Plugin
    prepare: Prepare
    views: Views
    teacher: Teacher  # of the section `teacher`, or the first of `teachers`
    teachers: dict[str, Teacher]  # the named ones
    teacher_training: Training | None
    targets: dict[str, Plugin]
    students: dict[str, Plugin]
    methods: dict[str, tuple[Term, ...]]
    training: Training
    evaluate: Evaluate
    plugins: tuple[str, ...] = ()  # folders

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        add_plugins(self.plugins)  # in the process that takes it

    def anywhere(self) -> "Config":
        """The same for a process that stands in another folder."""
        args = self.dataset.args
        paths = {key: str(Path(args[key]).absolute()) for key in ("root", "labelled_part") if isinstance(args.get(key), str)}
        rooted = dataclasses.replace(self.dataset, args={**args, **paths})
        return dataclasses.replace(self, dataset=rooted, plugins=tuple(str(absolute(folder)) for folder in self.plugins))

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def by_teacher(self) -> "dict[str, Config]":
        """By name, the same with each teacher alone: with the targets that are made from it, and the losses that read no others."""
        if not self.teachers:
            return {MAIN: self}
        every = ({MAIN: self.teacher} if MAIN in self.raw else {}) | self.teachers
        return {
            name: dataclasses.replace(
                self,
                teacher=teacher,
                teachers={},
                targets={key: target for key, target in self.targets.items() if name in target.teachers},
                methods={
                    method: tuple(term for term in terms if all([*self.targets[key].teachers] == [name] for key in term.reads))
                    for method, terms in self.methods.items()
                },
            )
            for name, teacher in every.items()
        }

    @property
    def view_size(self) -> tuple[int, int]:
        """Height and width of what networks are trained on and targets are made of, before it is padded."""
        return self.views.crop or self.prepare.size

    @property
    def text(self) -> str:
        """The file as it was used: overrides applied, and named at the top."""
        said = "".join(f"# --set {override}\n" for override in self.overrides)
        return said + yaml.safe_dump(self.raw, sort_keys=False, default_flow_style=None, width=120)

    def student(self, name: str) -> Plugin:
        self._has("students", self.students, name)
        return self.students[name]

    def method(self, name: str) -> tuple[Term, ...]:
        self._has("methods", self.methods, name)
        return self.methods[name]

    def of_teacher(self, name: str) -> "Config":
        """The same with this teacher alone."""
        self._has("teachers", self.by_teacher, name)
        return self.by_teacher[name]

    def _has(self, section: str, entries: Mapping[str, Any], name: str) -> None:
        if name not in entries:
            raise ConfigError(f"{self.path}: {section}: has no {name!r}, only {', '.join(entries)}{did_you_mean(name, entries)}")


def load(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """The checked content of a YAML file, with `section.key=value` overrides applied. Raises ConfigError with all faults."""
    path = Path(path)
    if fault := name_fault(path.stem):
        raise ConfigError(f"{str(path)!r}: its name {fault}; runs and reports are called so: rename the file")
    raw = read_yaml(path, "`pipeline init` copies the examples to configs/")
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected sections ({', '.join(SECTIONS)}), got {shown(raw)}")
    for text in overrides:
        override(raw, text)
    faults = Faults(path)
    folders = read_folders(raw.get("plugins"), faults)
    for key in raw:
        if key not in SECTIONS and key != "plugins":
            faults.add(str(key), f"no such section{did_you_mean(str(key), [*SECTIONS, 'plugins'])}")
    for name in SECTIONS:
        if name not in raw and name != "teachers" and not (name == MAIN and raw.get("teachers")):
            faults.add(name, "this section is missing")
    values = {name: read(raw[name], name, faults) for name, read in SECTIONS.items() if name in raw}
    if not faults:
        values.setdefault("teachers", {})
        values.setdefault(MAIN, next(iter(values["teachers"].values()), None))
        for where, what in across(values, MAIN in raw):
            faults.add(where, what)
    faults.stop()
    return Config(path=path, overrides=tuple(overrides), raw=raw, plugins=folders, **values)


def read_folders(value: Any, faults: Faults) -> tuple[str, ...]:
    """The folders of `plugins`, which are searched from now on. Raises ConfigError where they can't be: what follows would miss
    their names."""
    folders = [] if value is None else value
    if not isinstance(folders, list) or not all(isinstance(folder, str) and folder for folder in folders):
        faults.add("plugins", f"expected a list of folders, got {shown(folders)}")
    else:
        try:
            add_plugins(folders)
        except ConfigError as error:
            faults.add("plugins", str(error))
    faults.stop()
    return tuple(folders)


def plugin(kind: str, name: str, args: Mapping[str, Any]) -> Plugin:
    """A plug-in from its name and keywords, checked as an entry of a file is. Raises ConfigError with all faults."""
    faults = Faults(kind)
    found = read_plugin(kind, {"name": name, **json.loads(json.dumps(args))}, name, faults, "name")  # lists for tuples, as in YAML
    faults.stop()
    assert found is not None
    return found


# --- sections: (value, where, faults) -> what it says, or None and faults -------------------------------------------------

Reader = Callable[[Any, str, Faults], Any]


def read_plugin(
    kind: str, value: Any, where: str, faults: Faults, name_key: str, name: str | None = None, others: Sequence[str] = ()
) -> Plugin | None:
    """A plug-in from a mapping whose `name_key` names its file; keys in `others` belong to somebody else."""
    value = {} if value is None else value
    if not isinstance(value, dict):
        faults.add(where, f"expected a mapping with the key {name_key!r}, got {shown(value)}")
        return None
    name = value.get(name_key, name)
    if name is None:
        faults.add(f"{where}.{name_key}", "this key is missing (a text)")
        return None
    if not isinstance(name, str):
        faults.add(f"{where}.{name_key}", f"expected a text, got {shown(name)}")
        return None
    try:
        made = find_class(kind, name)
    except ConfigError as error:
        faults.add(f"{where}.{name_key}", str(error))
        return None
    own = {key: part for key, part in value.items() if key != name_key and key not in others}
    args = keywords(made, own, where, faults, INJECTED[kind], others)
    if args is None:
        return None
    # defaults are written out, so that an identity names them all and notices one that changed
    defaults = {key.name: key.default for key in keys_of(made, INJECTED[kind]).values() if not key.required}
    found = Plugin(kind=kind, name=name, args={**defaults, **args})
    if kind == "targets":
        try:
            found.build()  # a target is its own config: it checks values against one another itself
        except ConfigError as error:
            faults.add(where, str(error))
            return None
    return found


def with_own_keys(made: type, kind: str, name_key: str, part: str) -> Reader:
    """Reads a mapping that holds the keys of a plug-in and those of the section `made`, whose field `part` the plug-in is."""
    own = [name for name in keys_of(made) if name != part]

    def read(value: Any, where: str, faults: Faults) -> Any:
        found = read_plugin(kind, value, where, faults, name_key, others=own)
        rest = {key: value[key] for key in own if key in value} if isinstance(value, dict) else {}
        result = section(made, rest, where, faults, **{part: found or Plugin(kind=kind, name="", args={})})
        return None if found is None else result

    return read


def with_later_keys(
    made: type, kind: str, value: Any, where: str, faults: Faults, name_key: str, name: str | None
) -> Plugin | None:
    """A plug-in from a mapping that holds the keys of the section `made`, too; those with another value than the old one are among
    its arguments."""
    own = list(keys_of(made))
    named = value.get(name_key, name) if isinstance(value, dict) else name
    if isinstance(named, str) and named in lookup.names(kind):  # a plug-in of one's own may have a key of that name already
        with contextlib.suppress(ConfigError):  # read_plugin says where
            theirs = keys_of(find_class(kind, named), INJECTED[kind])
            own = [key for key in own if key not in theirs]
    found = read_plugin(kind, value, where, faults, name_key, name, own)
    rest = {key: value[key] for key in own if key in value} if isinstance(value, dict) else {}
    beside = section(made, rest, where, faults)
    if found is None or beside is None:
        return None
    said = {key: arg for key, arg in leave_out(dataclasses.asdict(beside), made).items() if key in own}
    return dataclasses.replace(found, args={**found.args, **said})


def read_dataset(value: Any, where: str, faults: Faults) -> Plugin | None:
    found = with_later_keys(Titled, "datasets", value, where, faults, "name", None)
    if found is None:
        return None
    args = dict(found.args)
    title = args.pop("title", None)  # changes no value, and is in no record
    return dataclasses.replace(found, args=args, title=title)


def read_target(value: Any, where: str, faults: Faults) -> Plugin | None:
    found = with_later_keys(MadeFrom, "targets", value, where, faults, "type", None)
    if found is None:
        return None
    own = "teacher" in keys_of(find_class("targets", found.name))  # of a plug-in of one's own
    args = dict(found.args)
    teacher = MAIN if own else args.pop("teacher", MAIN)
    return dataclasses.replace(found, args=args, teachers={teacher: 1.0} if isinstance(teacher, str) else teacher)


def read_student(value: Any, where: str, faults: Faults, name: str) -> Plugin | None:
    """Its files to start from are no arguments of the model: they are read when the training begins, and count by their content."""
    found = with_later_keys(Student, "models", value, where, faults, "model", name)
    if found is None:
        return None
    theirs = keys_of(find_class("models", found.name), INJECTED["models"])
    start = {key: found.args[key] for key in START if key in found.args and key not in theirs}
    return dataclasses.replace(found, args={key: arg for key, arg in found.args.items() if key not in start}, start=start)


read_teacher = with_own_keys(Teacher, "models", "name", "model")
read_term = with_own_keys(Term, "losses", "loss", "loss")


def read_method(value: Any, where: str, faults: Faults, name: str) -> tuple[Any, ...] | None:
    if not isinstance(value, list):
        faults.add(where, f"expected a list of losses (an empty one for plain training), got {shown(value)}")
        return None
    return tuple(read_term(entry, f"{where}[{i}]", faults) for i, entry in enumerate(value))


def entries(read: Callable[[Any, str, Faults, str], Any]) -> Reader:
    """A section of entries by name."""

    def read_all(value: Any, where: str, faults: Faults) -> dict[str, Any] | None:
        if not isinstance(value, dict):
            faults.add(where, f"expected a mapping from names to entries, got {shown(value)}")
            return None
        for name in map(str, value):  # runs, scores and curves are called so
            if fault := name_fault(name):
                faults.add(where, f"{name!r} {fault}")
        return {str(name): read(entry, f"{where}.{name}", faults, str(name)) for name, entry in value.items()}

    return read_all


def values(made: type) -> Reader:
    return lambda value, where, faults: section(made, value, where, faults)


SECTIONS: dict[str, Reader] = {
    "dataset": read_dataset,
    "prepare": values(Prepare),
    "views": values(Views),
    "teacher": read_teacher,
    "teachers": entries(lambda value, where, faults, name: read_teacher(value, where, faults)),
    "teacher_training": lambda value, where, faults: None if value is None else section(Training, value, where, faults),
    "targets": entries(lambda value, where, faults, name: read_target(value, where, faults)),
    "students": entries(read_student),
    "methods": entries(read_method),
    "training": values(Training),
    "evaluate": values(Evaluate),
}
