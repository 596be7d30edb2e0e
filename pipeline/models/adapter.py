"""Any other network, teacher or student: made by a function that the YAML names, its layers read by forward hooks.

    factory: transformers:SegformerForSemanticSegmentation          # module:name, the name may have dots
    arguments: {config: {factory: transformers:SegformerConfig, arguments: {num_labels: 5}}}
    layers: {mid: segformer.stages.1, high: segformer.stages.3}     # role -> a place in the network
    logits: output

`arguments` are the factory's keywords; where a value is a mapping of just `factory` and `arguments`, it is made first. A
place is a submodule's path, or `output` for what the network itself returns. Of several tensors (a tuple, a mapping) the
first is meant, unless a key says which: `output:hidden_states.3`. Features are maps [B, C, h, w]; [B, h, w, C] under
`layout: nhwc`; or tokens [B, N, C] in rows of the image, of which the first `prefix_tokens` (class, registers) are dropped.
`logits` is a place, or `linear` for a 1x1 convolution of `high` that the adapter adds, or null: a frozen backbone, which can
teach by its features alone. `mean` and `std` are the network's own, of values in 0..255 and in the order of `channels`:
`rgb`, or `bgr` for a network that was trained on pictures as OpenCV reads them. An image is resized to `input_size` first,
if given.

`align_corners: true` is for a network whose coarse logits were trained to be upsampled with the corners of the grids laid on
each other (torch's `align_corners=True`, the rule of older code); everything here lays the cells' edges on each other. The
adapter then upsamples the logits to the image's size itself.

Weights bear the network's own names, so that its checkpoints fit as they are; `own.*` is what the adapter adds. The
factory may bring weights with it (`transformers:AutoModel.from_pretrained` and a folder): without a checkpoint and without
`teacher_training` these are what teaches. Nothing here downloads anything; a factory that does is the user's choice.

B images, H W the network's input, K classes, C channels, N tokens, h w a layer's grid.
"""

import hashlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline import records
from pipeline.errors import ConfigError
from pipeline.later import AddedLater
from pipeline.lookup import did_you_mean, failed_at, where_raised
from pipeline.models._existence import EncoderExistence
from pipeline.models._network import check_size
from pipeline.models.base import Channels, ModelBase, Output

Deviation = Annotated[float, Field(gt=0)]
Pixels = Annotated[int, Field(ge=1)]


class Model(ModelBase):
    own_weights = True
    layers = {}

    def __init__(
        self,
        num_classes: int,
        *,
        size: tuple[int, int],
        lanes: int = 0,
        factory: Annotated[str, Field(description="What makes the network, as module:name.")],
        arguments: Annotated[dict, Field(description="Keywords of the factory.")],
        layers: Annotated[dict[str, str], Field(description="By role, `mid` and `high`: the place of that layer.")],
        logits: Annotated[
            str | None,
            Field(
                description="The place of the logits, `linear` for a 1x1 convolution of `high`, or null for a teacher of features."
            ),
        ],
        mean: Annotated[
            tuple[float, float, float], Field(description="Subtracted from pixels in 0..255, in the order of `channels`.")
        ],
        std: Annotated[tuple[Deviation, Deviation, Deviation], Field(description="Pixels are divided by this.")],
        layout: Annotated[Literal["nchw", "nhwc"], Field(description="Order of a feature map's dimensions.")] = "nchw",
        prefix_tokens: Annotated[int, Field(ge=0, description="Tokens to drop, before those of the image.")] = 0,
        multiple: Annotated[int, Field(ge=1, description="Height and width of the input must be multiples of this.")] = 8,
        input_size: Annotated[
            tuple[Pixels, Pixels] | None, Field(description="Height and width that images are resized to for this network.")
        ] = None,
        call: Annotated[dict | None, Field(description="Further keywords of each call of the network.")] = None,
        channels: Annotated[
            Channels, AddedLater("rgb"), Field(description="Order of colours that the network was trained on.")
        ] = "rgb",
        code: Annotated[
            list[str] | None,
            AddedLater(None),
            Field(
                description="Modules whose code stands for the network in a cache's identity, without comments and docstrings; by "
                "default the files of the factories, or the releases of their packages."
            ),
        ] = None,
        align_corners: Annotated[
            bool, AddedLater(False), Field(description="Whether the network's coarse logits were trained with corners aligned.")
        ] = False,
    ):
        super().__init__(mean, std, channels)
        if align_corners and logits in (None, "linear"):
            raise ConfigError(
                f"adapter: align_corners: is about logits of the network's own, and 'logits' is {logits or 'null'}; write false"
            )
        self.align_corners = align_corners
        self.multiple, self.input_size = multiple, None if input_size is None else (input_size[0], input_size[1])
        check_size(self, self.input_size or size)
        self.num_classes, self.layout, self.prefix_tokens, self.call = num_classes, layout, prefix_tokens, dict(call or {})
        self.places = {role: place(f"layers.{role}", text) for role, text in layers.items()}
        if logits not in (None, "linear"):
            self.places["logits"] = place("logits", logits)
        self.network = made({"factory": factory, "arguments": arguments})
        if not isinstance(self.network, nn.Module):
            raise ConfigError(f"adapter: factory: {factory} gives a {type(self.network).__name__}; name one that gives a network")
        for role, (path, _) in self.places.items():
            known = [name for name, _ in self.network.named_modules() if name]
            if path != "output" and path not in known:
                raise ConfigError(
                    f"adapter: {role}: the network has no submodule {path!r}{did_you_mean(path, known)}; it has "
                    f"{', '.join(name for name, _ in self.network.named_children())}, and theirs, which `pipeline layers` lists"
                )
        self.layers = {role: f"network.{path}" for role, (path, _) in self.places.items() if role != "logits"}
        self.backbone = {name.partition(".")[0] for name in self.network.state_dict()} - {"fc", "classifier"}
        self.register_state_dict_post_hook(without_prefix)
        self.register_load_state_dict_pre_hook(with_prefix)
        self.own = nn.ModuleDict()
        if logits == "linear" or lanes:
            _, maps, height, width = self.probed(size)["high"].shape
            if logits == "linear":
                self.own["linear"] = nn.Conv2d(maps, num_classes, 1)
            if lanes:
                self.own["existence"] = EncoderExistence(maps, lanes, (height, width))

    def forward(self, images_B3HW: Tensor, labels_BHW: Tensor | None = None) -> Output:
        maps = self.maps(images_B3HW)
        logits = self.own["linear"](maps["high"]) if "linear" in self.own else maps.pop("logits", None)
        if logits is not None and logits.shape[1] != self.num_classes:
            raise ConfigError(
                f"adapter: logits: {logits.shape[1]} classes, the dataset has {self.num_classes}; say so in "
                f"'arguments', or write 'logits: linear'"
            )
        if logits is not None and self.align_corners:
            logits = F.interpolate(logits, images_B3HW.shape[-2:], mode="bilinear", align_corners=True)
        existence = self.own["existence"](maps["high"]) if "existence" in self.own else None
        return Output(logits, maps, existence)

    def maps(self, images_B3HW: Tensor) -> dict[str, Tensor]:
        x = self.normalise(images_B3HW)
        if self.input_size is not None:
            x = F.interpolate(x, self.input_size, mode="bilinear", align_corners=False)
        seen: dict[str, Any] = {}

        def keep(path: str) -> Callable:
            def hook(module: nn.Module, inputs: Any, out: Any) -> Tensor | None:
                """What follows in the network may change its input in place, so one of the two is a copy: of a tensor what follows
                gets it, so that gradients of the logits at the layer are those at what is returned here."""
                if isinstance(out, Tensor):
                    seen[path] = out
                    return copied(out)
                seen[path] = copied(out)
                return None

            return hook

        hooks = [
            self.network.get_submodule(path).register_forward_hook(keep(path))
            for path in {path for path, _ in self.places.values()} - {"output"}
        ]
        try:
            seen["output"] = self.network(x, **self.call)
        finally:
            for hook in hooks:
                hook.remove()
        return {
            role: self.map_of(tensor_of(seen[path], key, role), role, x.shape[-2:]) for role, (path, key) in self.places.items()
        }

    def map_of(self, value: Tensor, role: str, size: torch.Size) -> Tensor:
        """[B, C, h, w]; of tokens, the grid whose cells are square on the image."""
        if value.dim() == 4:
            return value.permute(0, 3, 1, 2) if self.layout == "nhwc" and role != "logits" else value
        if value.dim() != 3:
            raise ConfigError(f"adapter: {role}: a tensor of {list(value.shape)} is neither a map nor tokens; name another layer")
        tokens_BNC = value[:, self.prefix_tokens :]
        count = tokens_BNC.shape[1]
        h = max(1, round((count * size[0] / size[1]) ** 0.5))
        if count % h:
            raise ConfigError(
                f"adapter: {role}: {count} tokens are no grid on {size[0]} x {size[1]} pixels, after "
                f"{self.prefix_tokens} were dropped; correct 'prefix_tokens'"
            )
        return tokens_BNC.transpose(1, 2).unflatten(2, (h, count // h))

    def probed(self, size: tuple[int, int]) -> dict[str, Tensor]:
        """The maps of an empty image, for their sizes; batch norms do not notice."""
        trained = self.training
        with torch.no_grad():
            maps = self.eval().maps(torch.zeros(1, 3, *size))
        self.train(trained)
        if "high" not in maps:
            raise ConfigError("adapter: layers: a head is to be added to 'high', and there is none; name it")
        return maps

    @classmethod
    def made_from(cls, args: Mapping[str, Any]) -> dict[str, Any]:
        """Where the layers are, and the version of each package that a factory comes from; or the code of the modules that `code`
        names."""
        if args.get("code") is not None:
            return {"layers": dict(args["layers"]), "modules": code_of(args["code"])}
        return {"layers": dict(args["layers"]), "packages": {module: release(module) for module in modules_of(args)}}

    @classmethod
    def code_outside(cls, args: Mapping[str, Any]) -> dict[str, str | None]:
        if args.get("code") is not None:
            return dict(code_of(args["code"]))
        return {module: installed(module) for module in modules_of(args)}


# --- places in a network ------------------------------------------------------------------------------------------------


def place(where: str, text: Any) -> tuple[str, str]:
    """The path of a submodule, and which part of what it returns."""
    if not isinstance(text, str) or not text:
        raise ConfigError(f"adapter: {where}: expected the path of a submodule or 'output', got {text!r}")
    path, _, key = text.partition(":")
    return path, key


def tensor_of(value: Any, key: str, role: str) -> Tensor:
    try:
        for part in key.split(".") if key else ():
            value = value[int(part)] if part.isdigit() else value[part] if isinstance(value, Mapping) else getattr(value, part)
        while not isinstance(value, Tensor):
            value = next(iter(value.values())) if isinstance(value, Mapping) else value[0]
    except (LookupError, AttributeError, TypeError, StopIteration):
        raise ConfigError(
            f"adapter: {role}: there is no tensor {key!r} in the {type(value).__name__} at that place; write "
            f"path:key with a key of what it returns"
        ) from None
    return value


def copied(value: Any) -> Any:
    """As it is when the layer returns it: the next layer may change it in place."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return {name: copied(part) for name, part in value.items()}
    return tuple(map(copied, value)) if isinstance(value, (tuple, list)) else value


# --- names of weights ---------------------------------------------------------------------------------------------------


def without_prefix(module: nn.Module, state: dict, prefix: str, _) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}network.")]:
        state[prefix + name.removeprefix(f"{prefix}network.")] = state.pop(name)


def with_prefix(module: nn.Module, state: dict, prefix: str, *_) -> None:
    for name in [name for name in state if name.startswith(prefix) and not name.startswith(f"{prefix}own.")]:
        state[f"{prefix}network.{name.removeprefix(prefix)}"] = state.pop(name)


# --- factories ----------------------------------------------------------------------------------------------------------


def made(value: Any) -> Any:
    """The value, with every {factory, arguments} in it called."""
    if isinstance(value, Mapping):
        parts = {name: made(part) for name, part in value.items()}
        return called(**parts) if parts.keys() == {"factory", "arguments"} else parts
    return [made(part) for part in value] if isinstance(value, (list, tuple)) else value


def called(factory: str, arguments: dict) -> Any:
    module, _, names = factory.partition(":")
    if not names:
        raise ConfigError(f"adapter: factory: {factory!r} names no function; write it as package.module:function")
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        at = where_raised(error)
        raise ConfigError(
            f"adapter: factory: {module} can't be imported ({failed_at(error) if at else error}); install its package "
            f"(transformers comes with pip install 'offline-distillation-pipeline[hub]'), or put its folder on PYTHONPATH"
        ) from error
    except Exception as error:
        raise ConfigError(f"adapter: factory: {module} can't be imported: {failed_at(error)}; correct the file") from error
    for name in names.split("."):
        if not hasattr(found, name):
            offered = [name for name in vars(found) if not name.startswith("_")]
            raise ConfigError(f"adapter: factory: {module} has no {name!r}{did_you_mean(name, offered)}; correct the name")
        found = getattr(found, name)
    try:
        return found(**arguments)
    except (torch.OutOfMemoryError, MemoryError, ConfigError):
        raise
    except Exception as error:
        raise ConfigError(f"adapter: factory: {factory}: {failed_at(error)}; {mend(error)}") from error


def mend(error: Exception) -> str:
    """What to do about an error of a factory: the call itself did not take the arguments, or a line of the factory failed."""
    assert error.__traceback__ is not None  # it was raised
    if isinstance(error, TypeError) and error.__traceback__.tb_next is None:
        return "correct 'arguments'"
    return "correct that line, or 'arguments'" if where_raised(error) else "correct 'arguments'"


def factories(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if value.keys() == {"factory", "arguments"}:
            yield value["factory"]
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from factories(part)


def modules_of(args: Mapping[str, Any]) -> list[str]:
    return sorted({text.partition(":")[0] for text in [args["factory"], *factories(args["arguments"])]})


def code_of(modules: list[str]) -> dict[str, str]:
    """The digest of each module's code, without comments and docstrings. Raises ConfigError if there is no such Python file."""
    found = {}
    for module in sorted(modules):
        try:
            found[module] = records.module_code(module)
        except (ImportError, AttributeError, ValueError, SyntaxError) as error:
            raise ConfigError(
                f"adapter: code: {module!r} is no module of Python code that can be found ({error}); name modules as the factory "
                f"does, with their folder on PYTHONPATH"
            ) from None
    return found


def installed(module: str) -> str | None:
    """The version of the package that provides a module; None if it is a file that was not installed."""
    for distribution in metadata.packages_distributions().get(module.partition(".")[0], ()):
        return f"{distribution} {metadata.version(distribution)}"
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ConfigError(f"adapter: factory: {module} can't be found; install its package, or put its folder on PYTHONPATH")
    return None


def release(module: str) -> str:
    """The version of the package that provides a module; of one that was not installed, the digest of its file."""
    spec: Any = importlib.util.find_spec(module)
    return installed(module) or hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()[:16]
