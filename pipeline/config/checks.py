"""Checks of several sections together. Each yields what is wrong: where, and what."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.config.schema import MAIN, Evaluate, Plugin, Prepare, Teacher, Term, Training, Views, canvas, term_name
from pipeline.errors import ConfigError
from pipeline.lookup import did_you_mean, find_class
from pipeline.paths import path_fault

Fault = tuple[str, str]


AVERAGED = ("affinity", "attention", "logits")  # types of targets of which a mean over teachers is one of the same kind


def across(sections: Mapping[str, Any], main: bool = True) -> Iterator[Fault]:
    """All that is wrong with sections that are right each by itself. `main`: there is a section `teacher`."""
    teachers = {f"teachers.{name}": teacher for name, teacher in sections["teachers"].items()}
    teachers = ({MAIN: sections[MAIN]} if main else {}) | teachers
    names = [*([MAIN] if main else []), *sections["teachers"]]
    yield from check_made_from(sections["targets"], sections["methods"], names)
    yield from check_methods(sections["methods"], sections["targets"])
    crop, sizes = sections["views"].crop, Sizes.of(sections["prepare"], sections["views"], sections["evaluate"])
    yield from check_students(sections["students"], sizes)
    yield from check_targets(sections["targets"], crop or sections["prepare"].size)
    for where, teacher in teachers.items():
        yield from check_teacher(teacher, sections["teacher_training"], where)
    networks = {where: teacher.model for where, teacher in teachers.items()}
    networks |= {f"students.{name}": student for name, student in sections["students"].items()}
    yield from check_multiples(networks, sizes)
    yield from check_parts(sections["views"], sections["evaluate"], sections["prepare"])
    yield from check_fixed(sections, networks, sizes)
    yield from check_split(sections["dataset"], sections["evaluate"].split, "evaluate.split")
    for section in ("training", "teacher_training"):
        training = sections[section]
        if training is not None and (training.schedule == "step") != (training.milestones is not None):
            yield f"{section}.milestones", "this key is missing (of schedule: step; a list of steps)"
        if training is not None and training.validate_every:
            yield from check_split(sections["dataset"], "val", f"{section}.validate_every")
    for section in ("students", "methods", "teachers"):
        for name in sections[section]:
            if "-" in name:  # a run is called student-method-seed
                yield f"{section}.{name}", f"a name with a dash; write {name.replace('-', '_')!r}"


def check_made_from(
    targets: Mapping[str, Plugin], methods: Mapping[str, Sequence[Term]], teachers: Sequence[str]
) -> Iterator[Fault]:
    """Teachers that targets are made from, and losses that would compare with several at once."""
    if len(set(teachers)) < len(teachers):
        yield f"teachers.{MAIN}", "is the name of the section `teacher`; choose another name"
    for name, target in targets.items():
        for teacher in target.teachers:
            if teacher not in teachers:
                yield (
                    f"targets.{name}.teacher",
                    f"no teacher {teacher!r}{did_you_mean(teacher, teachers) or '; there are: ' + ', '.join(teachers)}",
                )
        if not target.teachers or min(target.teachers.values()) <= 0:
            yield f"targets.{name}.teacher", f"expected one of {', '.join(teachers)}, or several, each with a weight above 0"
        if len(target.teachers) > 1 and target.name not in AVERAGED:
            yield (
                f"targets.{name}.teacher",
                f"{target.name} has no mean over teachers, as {', '.join(AVERAGED)} have; name one teacher, or list "
                f"a target for each",
            )
        elif len(target.teachers) > 1 and target.args.get("regions", "label") != "label":
            yield f"targets.{name}.regions", "graphs of regions that each teacher predicts have no mean; write label"
    for method, terms in methods.items():
        for i, term in enumerate(terms):
            read = [targets[name].teachers for name in term.reads if name in targets]
            if any(other.keys() != read[0].keys() for other in read):
                yield f"methods.{method}[{i}].reads", "targets of several teachers; write a loss for each"


def check_methods(methods: Mapping[str, Sequence[Term]], targets: Mapping[str, Plugin]) -> Iterator[Fault]:
    for method, terms in methods.items():
        for i, term in enumerate(terms):
            yield from check_term(term, targets, f"methods.{method}[{i}]")
        names = [term_name(terms, i) for i in range(len(terms))]
        if len(set(names)) != len(names):
            yield f"methods.{method}", "the same loss with the same targets stands there twice"


def check_term(term: Term, targets: Mapping[str, Plugin], where: str) -> Iterator[Fault]:
    loss = find_class("losses", term.loss.name)
    accepted, readable = loss.reads_types, True
    if accepted and not term.reads:
        yield f"{where}.reads", f"{term.loss.name} reads targets of type {' or '.join(accepted)}; name some"
    for name in term.reads:
        readable &= name in targets and targets[name].name in accepted
        if name not in targets:
            yield f"{where}.reads", f"no target {name!r}{did_you_mean(name, targets) or '; there are: ' + ', '.join(targets)}"
        elif targets[name].name not in accepted:
            yield (
                f"{where}.reads",
                (
                    f"{term.loss.name} cannot read {name!r} (type {targets[name].name}); it reads "
                    f"{' or '.join(accepted) or 'no target'}"
                ),
            )
    if len(set(term.reads)) != len(term.reads):
        yield f"{where}.reads", "names a target twice; name each once"
    elif readable and (term.reads or not accepted):
        try:
            loss.check({name: targets[name].build() for name in term.reads}, **term.loss.args)
        except ConfigError as error:
            yield where, str(error)


class Sizes(NamedTuple):
    """(height, width) of what networks see, each with the key that says it."""

    trained: tuple[str, tuple[int, int]]
    scored: tuple[str, tuple[int, int]]

    @classmethod
    def of(cls, prepare: Prepare, views: Views, evaluate: Evaluate) -> "Sizes":
        whole = ("prepare.size", canvas(prepare.size))
        return cls(
            ("views.crop", views.crop) if views.crop else whole, ("evaluate.window", evaluate.window) if evaluate.window else whole
        )


def check_parts(views: Views, evaluate: Evaluate, prepare: Prepare) -> Iterator[Fault]:
    """Crops and windows that are larger than what they are parts of."""
    for where, part, whole in (
        ("views.crop", views.crop, prepare.size),
        ("evaluate.window", evaluate.window, canvas(prepare.size)),
    ):
        if part is not None and any(side > of for side, of in zip(part, whole)):
            what = where.partition(".")[2]
            yield (
                where,
                f"{part[0]} x {part[1]} is larger than the prepared images, {whole[0]} x {whole[1]}; write a smaller {what}, or a "
                f"larger prepare.size",
            )


def check_fixed(sections: Mapping[str, Any], networks: Mapping[str, Plugin], sizes: Sizes) -> Iterator[Fault]:
    """Networks that are made for one input size, where they would be trained on one and scored on another."""
    (_, (height, width)), (_, scored) = sizes
    if (height, width) == scored:
        return
    apart = (
        f"would be trained on {height} x {width} pixels and scored on {scored[0]} x {scored[1]}; write evaluate.window: "
        f"[{height}, {width}]"
    )
    for where, plugin in networks.items():
        if plugin.args.get("input_size"):
            yield f"{where}.input_size", f"a network that resizes what it sees {apart}, so that it sees both at one scale"
    for section in ("training", "teacher_training"):
        if sections[section] is not None and sections[section].existence_weight:
            yield f"{section}.existence_weight", f"an existence head fits one input size, and {apart}, or existence_weight: 0.0"


def check_students(students: Mapping[str, Plugin], sizes: Sizes) -> Iterator[Fault]:
    for name, student in students.items():
        if find_class("models", student.name).uses_labels:
            yield f"students.{name}", f"{student.name} answers from the labels it is shown and can only teach; choose another"
        if student.name == "ensemble":
            yield f"students.{name}", "an ensemble can only teach; choose the network of its members"
        if "input_scale" in student.args:
            from pipeline.models._scaled import misfit

            model, scale = find_class("models", student.name), student.args["input_scale"]
            for key, size in dict(sizes).items():
                do = "prepare images of" if key == "prepare.size" else f"write {key}:"
                if fault := misfit(model, student.args, size, scale, do):
                    yield f"students.{name}.input_scale", fault


def check_multiples(networks: Mapping[str, Plugin], sizes: Sizes) -> Iterator[Fault]:
    """Networks that can't take what they would be shown; `input_scale` has its own check."""
    from pipeline.models._scaled import own_multiple

    for where, plugin in networks.items():
        multiple = own_multiple(find_class("models", plugin.name), plugin.args)
        for key, (height, width) in dict(sizes).items():
            if "input_scale" not in plugin.args and (height % multiple or width % multiple):
                up, across = (-(-side // multiple) * multiple for side in (height, width))
                yield (
                    where,
                    f"{plugin.name} takes heights and widths that are multiples of {multiple}, and {key} gives {height} x "
                    f"{width}; write {key}: [{up}, {across}]",
                )


def check_targets(targets: Mapping[str, Plugin], size: tuple[int, int]) -> Iterator[Fault]:
    for name, target in targets.items():
        try:
            target.build().check(size)
        except ConfigError as error:
            yield f"targets.{name}", str(error)


def check_teacher(teacher: Teacher, teacher_training: Training | None, where: str = MAIN) -> Iterator[Fault]:
    if teacher.checkpoint is None and teacher_training is None and not find_class("models", teacher.model.name).own_weights:
        yield where, "has no checkpoint and there is no teacher_training; give one of them"
    several, files = teacher.model.name == "ensemble", teacher.checkpoint
    if several and files is None and teacher_training is not None:
        yield where, "the members of an ensemble are trained one by one; name their files in 'checkpoint', as a list"
    elif several and isinstance(files, tuple) and len(files) != teacher.model.args["members"]:
        yield f"{where}.checkpoint", f"{len(files)} files for {teacher.model.args['members']} members; name one for each"
    elif isinstance(files, tuple) and not several:
        yield f"{where}.checkpoint", f"several files are for an ensemble, and this is one {teacher.model.name}; name one file"


def check_split(dataset: Plugin, split: str, where: str) -> Iterator[Fault]:
    """Part of a split counts as the split: CamVid has `test/0016E5`."""
    if fault := path_fault(split):  # predictions lie in a folder of its name
        yield where, f"{split!r} {fault}; name one of the dataset's"
        return
    splits = find_class("datasets", dataset.name).splits_of(**dataset.args)
    if split.partition("/")[0] not in splits:
        known = did_you_mean(split.partition("/")[0], splits) or f"; there are: {', '.join(splits)}"
        yield where, f"{dataset.name} has no split {split!r}{known}"
