"""The contract of a network, teacher or student.

`Model(num_classes, *, size, lanes, ...)`: `num_classes` outputs; `size` = (height, width) of the input it will see, for heads
that need it; `lanes` > 0 asks for a lane-existence head; further keywords are the YAML's keys. Called with RGB images in
0..255 it normalises them itself, from its buffers `mean` and `std`, so that nobody else needs to know.

B images, H W the input, K classes, C channels, h w a layer's own grid.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

if TYPE_CHECKING:
    from pipeline.models._published import Published

Channels = Literal["rgb", "bgr"]

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


Width = Annotated[int, Field(ge=1, description="Channels of the first stage; those of all others are multiples of it.")]


class Output(NamedTuple):
    logits: Tensor | None  # [B, K, h, w] on the model's own grid; whoever needs pixels upsamples. None: a
    #   teacher of features alone (adapter)
    features: dict[str, Tensor]  # by role, "mid" and "high": [B, C, h, w]
    existence: Tensor | None = None  # [B, lanes] logits
    mirrored: dict[str, Tensor] | None = None  # of a flip-averaged teacher: its features of the mirrored image, turned back


class ModelBase(nn.Module):
    version: ClassVar[int] = 1  # bump when the same weights would give other outputs; see version_of
    multiple: int = 8  # of a class, or of one network: height and width of the input must be multiples of it
    uses_labels: bool = False  # then it answers from the labels it is shown: all its rows depend on them
    own_weights: ClassVar[bool] = False  # then it may come with trained weights, and teach without checkpoint or training
    published: "ClassVar[Published | None]" = None  # names of other people's weights for this network, see _published.py
    layers: dict[str, str]  # role -> what it is in this network, e.g. {"mid": "layer2", "high": "layer4"}

    mean: Tensor  # [1, 3, 1, 1], in the order of `channels`
    std: Tensor

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD, channels: Channels = "rgb"):
        super().__init__()
        self.channels = channels
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def normalise(self, images_B3HW: Tensor) -> Tensor:
        """As the network was trained to see them; `images` are RGB."""
        if self.channels == "bgr":
            images_B3HW = images_B3HW.flip(1)
        return (images_B3HW - self.mean) / self.std

    def forward(self, images_B3HW: Tensor, labels_BHW: Tensor | None = None) -> Output:
        """`images` float RGB in 0..255; `labels` only for a teacher that is fed labels."""
        raise NotImplementedError

    @classmethod
    def version_of(cls, args: Mapping[str, Any]) -> int:
        """The version in a cache's identity. A network says more here if a change is one of some arguments alone, so that the
        caches of all others stay valid."""
        return cls.version

    @classmethod
    def made_from(cls, args: Mapping[str, Any]) -> dict[str, Any]:
        """What a cache's identity says of a teacher beside its name, arguments, version and weights."""
        return {"layers": dict(cls.layers)}

    @classmethod
    def code_outside(cls, args: Mapping[str, Any]) -> dict[str, str | None]:
        """Modules outside this package that make the network, each with its package's version; None for a file that was not
        installed. A run's record has them."""
        return {}


def shapes(build: Callable[[], nn.Module], size: tuple[int, int]) -> Output:
    """The output of `build()` on one image of this size as empty meta tensors: every grid and channel count, no arithmetic.

    A network that looks at values, which meta tensors have not, answers an image of zeros; what it draws is not missed.
    """
    try:
        output = on_meta(build, size, train=False)
    except Exception:  # whatever it was, a real pass tells it again if it was no matter of meta
        output = on_zeros(build, size, train=False)
    empty = {role: map_BChw.to("meta") for role, map_BChw in output.features.items()}
    logits, existence = (None if value is None else value.to("meta") for value in (output.logits, output.existence))
    return Output(logits, empty, existence)


def on_meta(build: Callable[[], nn.Module], size: tuple[int, int], train: bool) -> Output:
    with warnings.catch_warnings(), torch.device("meta"), torch.no_grad():
        # a factory that loads its own weights would be told once a tensor that meta tensors take none
        warnings.filterwarnings("ignore", ".*copying from a non-meta parameter")
        output: Output = build().train(train)(torch.empty(1, 3, *size), torch.empty(1, *size, dtype=torch.uint8))
        return output


def on_zeros(build: Callable[[], nn.Module], size: tuple[int, int], train: bool) -> Output:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        output: Output = build().train(train)(torch.zeros(1, 3, *size), torch.zeros(1, *size, dtype=torch.uint8))
        return output


def trains_on_one_image(build: Callable[[], nn.Module], size: tuple[int, int]) -> bool:
    """Whether every batch norm of `build()` finds more than one value a channel in one image: a map of one cell, as pyramid
    pooling makes, has no variance."""
    for passed in (on_meta, on_zeros):
        try:
            passed(build, size, train=True)
            return True
        except ValueError as error:
            if "more than 1 value per channel" in str(error):
                return False
        except Exception:  # no matter of the batch: training itself tells it
            pass
    return True


def as_float(output: Output) -> Output:
    """Targets and losses are float32, whatever the network ran in."""

    def widened(maps: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
        return None if maps is None else {role: map_BChw.float() for role, map_BChw in maps.items()}

    logits, existence = (None if value is None else value.float() for value in (output.logits, output.existence))
    return Output(logits, widened(output.features) or {}, existence, widened(output.mirrored))


def set_precision(precision: str) -> None:
    """TF32 only where it is asked for: `fp32` means fp32."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
