"""List the submodules of a network with what they put out, to choose `mid` and `high` from. No stage of dvc.yaml."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from pipeline.config import Config, Plugin
from pipeline.config.schema import canvas
from pipeline.lookup import find_class
from pipeline.models.base import shapes
from pipeline.progress import table_lines


@dataclass
class Line:
    kind: str  # class of the submodule
    parameters: int
    shape: tuple[int, ...] | None = None  # of the first tensor of its output, without the batch; None if it is not called


def run(config: Config, *, student: str | None, depth: int) -> str:
    """A Markdown table of the teacher's submodules, or of a student's, down to `depth` names of a path; those in use always."""
    plugin = config.teacher.model if student is None else config.student(student)
    size = canvas(config.view_size)
    if (scale := plugin.args.get("input_scale", 1)) != 1:  # the network itself sees the smaller image
        size = round(size[0] * scale), round(size[1] * scale)
        plugin = replace(plugin, args={name: value for name, value in plugin.args.items() if name != "input_scale"})
    used = places(plugin)
    found = lines_of(plugin, len(config.dataset.build().classes), size)
    rows = [
        (name, line.kind, *outline(line, plugin, size), f"{line.parameters:,}", ", ".join(used.get(name, ())))
        for name, line in found.items()
        if name.count(".") < depth or name in used
    ]
    hidden = len(found) - len(rows)
    missing = [f"{' and '.join(roles)}: no submodule {name!r}" for name, roles in used.items() if name not in (*found, "output")]
    return "\n".join(
        [
            *table_lines(("submodule", "type", "output", "stride", "channels", "parameters", "in use"), rows),
            f"{plugin.name}: input of {size[0]} x {size[1]}, {next(iter(found.values())).parameters:,} parameters"
            + (f"; {hidden} submodules lie deeper than --depth {depth}" if hidden else ""),
            *missing,
        ]
    )


def places(plugin: Plugin) -> dict[str, list[str]]:
    """Roles by the submodule that plays them: mid, high, and an adapter's logits."""
    model, args = find_class("models", plugin.name), plugin.args
    named = dict(args["layers"]) | ({"logits": args["logits"]} if args["logits"] else {}) if model.own_weights else model.layers
    found: dict[str, list[str]] = {}
    for role, text in named.items():
        found.setdefault(text.partition(":")[0], []).append(role)
    return found


def lines_of(plugin: Plugin, num_classes: int, size: tuple[int, int]) -> dict[str, Line]:
    """Submodules by path, the network itself as `output`; an adapter's by the names of its own network."""
    outside = find_class("models", plugin.name).own_weights
    if outside:  # the network alone, so that a place that is not there does not keep others from being shown
        plugin = replace(plugin, args={**plugin.args, "layers": {}, "logits": None, "align_corners": False})
    found: dict[str, Line] = {}

    def build() -> nn.Module:
        network: nn.Module = plugin.build(num_classes=num_classes, size=size, lanes=0)
        whole = network.network if outside else network
        assert isinstance(whole, nn.Module)
        found.clear()
        for name, module in whole.named_modules():
            parameters = sum(parameter.numel() for parameter in module.parameters())
            found[name or "output"] = line = Line(type(module).__name__, parameters)
            module.register_forward_hook(partial(note, line))
        return network

    shapes(build, size)
    return found


def note(line: Line, module: nn.Module, inputs: Any, output: Any) -> None:
    first = first_tensor(output)
    if line.shape is None and first is not None:
        line.shape = tuple(first.shape[1:])


def first_tensor(value: Any) -> Tensor | None:
    """As an adapter takes it where a place names no key."""
    while not isinstance(value, Tensor):
        parts = list(value.values()) if isinstance(value, Mapping) else value
        if not isinstance(parts, (tuple, list)) or not parts:
            return None
        value = parts[0]
    return value


def outline(line: Line, plugin: Plugin, size: tuple[int, int]) -> tuple[str, str, str]:
    """Shape, stride and channels in words; stride where the output is a map [C, h, w], or [h, w, C] under `layout: nhwc`."""
    if line.shape is None:
        return "", "", ""
    shown = " x ".join(map(str, line.shape))
    if len(line.shape) == 3:
        channels, h, w = (line.shape[2], *line.shape[:2]) if plugin.args.get("layout") == "nhwc" else line.shape
        height, width = plugin.args.get("input_size") or size
        down, across = height / max(1, h), width / max(1, w)
        return shown, f"{down:g}" if down == across else f"{down:.3g} x {across:.3g}", str(channels)
    return shown, "", str(line.shape[-1]) if len(line.shape) == 2 else ""  # tokens [N, C]
