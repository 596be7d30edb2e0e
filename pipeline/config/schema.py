"""The sections of an experiment: their keys, types, ranges, defaults, and a sentence on each.

Whatever changes a result must be said in the file; other keys have defaults, and so do keys that came later. Messages, the page
docs/configuration.md and the JSON Schema are made from what stands here.
"""

import importlib
import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.dataclasses import dataclass

from pipeline.later import AddedLater, leave_out
from pipeline.lookup import did_you_mean, find_class, is_own
from pipeline.paths import name_fault

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
LENIENT = Strict(False)  # a list for a tuple, a text for a path; what is inside stays strict
Precision = Literal["fp32", "tf32", "bf16"]
Positive = Annotated[int, Field(ge=1)]


def rising(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0 < pair[0] <= pair[1]:
        raise ValueError(f"expected two rising positive numbers, got {list(pair)}")
    return pair


def multiples_of_eight(pair: tuple[int, int] | None) -> tuple[int, int] | None:
    if pair is not None and any(side % 8 for side in pair):
        fits = [-(-side // 8) * 8 for side in pair]
        raise ValueError(f"expected multiples of 8, got {list(pair)}; write {fits}")
    return pair


def part_or_list(value: float | str | None) -> float | str | None:
    if value == "" or isinstance(value, float | int) and not 0 < value <= 1:
        raise ValueError(f"expected a part above 0 and at most 1, or the path of a list, got {value!r}")
    return value


def one_of(*choices: float) -> Callable[[float], float]:
    """Literal takes no numbers with a point."""

    def check(value: float) -> float:
        if value not in choices:
            raise ValueError(f"expected one of {', '.join(f'{choice:g}' for choice in choices)}; got {value:g}")
        return value

    return check


OPTIMISERS = {"sgd": "SGD", "adamw": "AdamW"}  # those with a name of their own here, by their class in torch.optim


def known_optimiser(name: str) -> str:
    if name not in OPTIMISERS:
        keywords_of_optimiser(name)
    return name


def keywords_of_optimiser(name: str) -> Mapping[str, inspect.Parameter]:
    """Raises ValueError if torch has no such optimiser, or it asks for more than gradients."""
    import torch

    name = OPTIMISERS.get(name, name)
    found = {
        key: made
        for key, made in vars(torch.optim).items()
        if inspect.isclass(made) and issubclass(made, torch.optim.Optimizer) and made is not torch.optim.Optimizer
    }
    known = {key: made for key, made in found.items() if key not in ("LBFGS", "SparseAdam")}  # closures; sparse gradients
    if name not in known:
        raise ValueError(f"no optimiser {name!r}{did_you_mean(name, known)}; there are: {', '.join([*OPTIMISERS, *sorted(known)])}")
    return inspect.signature(known[name]).parameters


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Plugin:
    """A file by its name, and the keywords that its class is made with."""

    kind: str
    name: str
    args: dict[str, Any]
    title: str | None = None  # of a dataset
    start: dict[str, Path] = field(default_factory=dict)  # of a student: files that its training starts from, by key
    teachers: dict[str, float] = field(default_factory=dict)  # of a target: whom it is made from, with weights of their mean

    @property
    def homes(self) -> tuple[str, ...]:
        """Of a dataset: the folders below a root where its stores may lie, the first for new ones. Datasets of one's own, which one
        reader reads, are told apart by the names of their folders; those without lie where earlier versions put them all."""
        if self.title is not None:
            return (self.title,)
        own = f"{self.name}-{os.path.basename(os.path.abspath(self.args.get('root', '')))}"
        if self.name == "folder" or is_own(f"pipeline.datasets.{self.name}"):
            return (self.name,) if name_fault(own) else (own, self.name)
        return (self.name,)

    @property
    def called(self) -> str:
        """For people: the name of its file, or what makes a network of one's own (`adapter`)."""
        return str(self.args["factory"]).rpartition(":")[2] if self.name == "adapter" and "factory" in self.args else self.name

    def build(self, **injected: Any) -> Any:
        made = find_class(self.kind, self.name)
        if self.kind == "datasets":  # these keys are every dataset's, and no reader's own
            args = dict(self.args)
            labelled = {key: args.pop(key) for key in ("labelled_part", "labelled_seed") if key in args}
            dataset = made(**injected, **args)
            for key, value in labelled.items():
                setattr(dataset, key, value)
            return dataset
        if "input_scale" in self.args:  # of a student; no plug-in's own keyword
            return importlib.import_module("pipeline.models._scaled").scaled(made, **injected, **self.args)
        return made(**injected, **self.args)

    def as_record(self) -> dict[str, Any]:
        """What records hold of it."""
        return {"kind": self.kind, "name": self.name, "args": leave_out(self.args, find_class(self.kind, self.name))}


Fit = Literal["stretch", "pad"]
MAX_STRETCH = 1.25  # 4:3 to 16:9 is 1.33

MULTIPLE = 8  # what every network here asks of height and width
SCALES = (1.0, 0.5, 0.25)


def canvas(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) rounded up to multiples of 8: ERFNet's two branches part ways on anything else."""
    height, width = (-(-side // MULTIPLE) * MULTIPLE for side in size)
    return height, width


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Student:
    """What a student says beside the keys of its model; another `input_scale` than 1 is among the model's arguments."""

    input_scale: Annotated[
        float,
        AfterValidator(one_of(*SCALES)),
        AddedLater(1.0),
        Field(
            json_schema_extra={"enum": list(SCALES)}, description="The network sees the image at this part of its height and width."
        ),
    ] = 1.0
    init: Annotated[
        Annotated[Path, LENIENT] | None,
        AddedLater(None),
        Field(description="Weights to start the training from; what fits by name and shape is taken, and the rest is said."),
    ] = None
    backbone: Annotated[
        Annotated[Path, LENIENT] | None,
        AddedLater(None),
        Field(description="ImageNet weights for the backbone, with torchvision's names (resnets, vgg16, adapter)."),
    ] = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Labels:
    """What every dataset says beside its own keys; values other than the old ones are among its arguments."""

    labelled_part: Annotated[
        float | str | None,
        AfterValidator(part_or_list),
        AddedLater(None),
        Field(
            description="The part of the labelled training images whose labels are used, above 0 and at most 1, or the path of a "
            "list of their ids; the other images stay, without labels."
        ),
    ] = None
    labelled_seed: Annotated[
        int,
        Field(ge=0),
        AddedLater(0),
        Field(description="Seed of the draw of `labelled_part`. With one seed, a smaller part lies within a larger one."),
    ] = 0

    @field_validator("labelled_seed")
    @classmethod
    def _draws_something(cls, labelled_seed: int, info: ValidationInfo) -> int:
        if labelled_seed and isinstance(info.data.get("labelled_part", 1.0), str | None):
            raise ValueError("nothing is drawn without a number as labelled_part; write 0, or the part")
        return labelled_seed


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Titled(Labels):
    """The same, and what changes no value."""

    title: Annotated[
        str | None,
        AddedLater(None),
        Field(
            description="Name of the folder below the cache root where the dataset's stores lie; by default the reader's name, "
            "followed by that of the dataset's folder if the data are your own."
        ),
    ] = None

    @field_validator("title")
    @classmethod
    def _is_a_name(cls, title: str | None) -> str | None:
        if title is not None and (fault := name_fault(title)):
            raise ValueError(f"{title!r} {fault}")
        return title


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Prepare:
    """How each image is made ready, once."""

    size: Annotated[
        tuple[Positive, Positive],
        LENIENT,
        Field(description="Height and width in pixels after the crop; the networks' input is padded to the next multiple of 8."),
    ]
    codec: Annotated[
        Literal["raw", "lz4", "zstd"], Field(description="Compression of the prepared images; `raw` is the fastest to read.")
    ]
    fit: Annotated[
        Fit,
        AddedLater("stretch"),
        Field(description="Frames of another shape than `size` are stretched to it, or keep their aspect and are padded."),
    ] = "stretch"
    max_stretch: Annotated[
        float,
        AddedLater(MAX_STRETCH),
        Field(ge=1, description="A frame whose aspect would change by more than this factor is refused; `fit: pad` changes none."),
    ] = MAX_STRETCH


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Views:
    """The geometric versions of each image that the teacher sees and the cache stores."""

    count: Annotated[int, Field(ge=1, description="Stored views of an image; view 0 is the image as it is.")]
    seed: Annotated[int, Field(description="Seed of the random draws.")]
    scale: Annotated[
        tuple[float, float], LENIENT, AfterValidator(rising), Field(description="The zoom of a view is drawn from this range.")
    ]
    rotate_deg: Annotated[float, Field(ge=0, le=180, description="The rotation is drawn from plus or minus so many degrees.")]
    shift: Annotated[float, Field(ge=0, le=1, description="The shift is drawn from plus or minus this part of height and width.")]
    mirror: Annotated[bool, Field(description="Half of the views are mirrored; the dataset must say which classes change places.")]
    crop: Annotated[
        tuple[Positive, Positive] | None,
        LENIENT,
        AfterValidator(multiples_of_eight),
        AddedLater(None),
        Field(
            description="Height and width of a view, which lies at a place drawn for each image and view; with null a view is as "
            "large as the prepared image."
        ),
    ] = None

    @field_validator("crop")
    @classmethod
    def _has_its_own_place(cls, crop: tuple[int, int] | None, info: ValidationInfo) -> tuple[int, int] | None:
        if crop is not None and info.data.get("shift"):
            raise ValueError("a crop's place is drawn already; write views.shift: 0.0")
        return crop


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Photometric:
    """Changes of the student's pixels alone; they never touch a target."""

    brightness: Annotated[float, Field(ge=0, le=1, description="The image is multiplied by a factor within 1 plus or minus this.")]
    contrast: Annotated[
        float,
        Field(ge=0, le=1, description="Differences to the image's mean are multiplied by a factor within 1 plus or minus this."),
    ]
    noise: Annotated[float, Field(ge=0, le=255, description="Standard deviation of Gaussian noise, in grey levels.")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Training:
    """How a network is trained. By default the learning rate falls as lr * (1 - step / steps) ** power, step by step."""

    steps: Annotated[int, Field(ge=1, description="Updates of the weights.")]
    batch: Annotated[int, Field(ge=1, description="Images in a step, in all processes together.")]
    lr: Annotated[float, Field(gt=0, description="Learning rate at the first step, after the warm-up if there is one.")]
    momentum: Annotated[float, Field(ge=0, lt=1, description="Momentum of SGD, or the first beta of AdamW (the second is 0.999).")]
    weight_decay: Annotated[float, Field(ge=0, description="Weight decay of the optimiser.")]
    power: Annotated[float, Field(ge=0, description="Exponent of the schedule `poly`; 0 keeps the rate as it is.")]
    background_weight: Annotated[
        float,
        Field(ge=0, description="Weight of the background class in the cross-entropy; 1.0 where the dataset has no background."),
    ]
    existence_weight: Annotated[
        float, Field(ge=0, description="Weight of the lane-existence loss; 0 leaves the existence head out.")
    ]
    fresh_views: Annotated[
        bool | Literal["labelled"],
        Field(
            description="Draw new views in each epoch instead of the stored ones; cached targets are of no use then. `labelled`: "
            "only for the `labelled_per_batch` images of a batch, which have no targets then; the others keep their stored views."
        ),
    ]
    precision: Annotated[Precision, Field(description="Arithmetic of the training; bf16 is automatic mixed precision.")]
    photometric: Annotated[Photometric, Field(description="Changes of the pixels that the trained network sees.")]
    optimiser: Annotated[
        str,
        AfterValidator(known_optimiser),
        Field(description="`sgd`, `adamw` (Loshchilov and Hutter, ICLR 2019), or a class of torch.optim by its name (`RMSprop`)."),
    ] = "sgd"
    warmup_steps: Annotated[
        int, Field(ge=0, description="The learning rate rises in a straight line over these steps, below the schedule.")
    ] = 0
    nesterov: Annotated[bool, Field(description="SGD with Nesterov's momentum.")] = False
    head_lr: Annotated[
        float, Field(gt=0, description="The learning rate of all but the network's backbone is multiplied by this.")
    ] = 1.0
    held_out: Annotated[
        int, Field(ge=0, description="Images kept from the training; at each checkpoint every term is measured on them.")
    ] = 0
    class_weights: Annotated[
        Annotated[tuple[Annotated[float, Field(ge=0)], ...], LENIENT, Field(min_length=1)] | Literal["enet"] | None,
        Field(
            description="Weights of the classes in the cross-entropy, in the order of the classes; `enet` computes them from "
            "the labels (Paszke et al., ENet, 2016)."
        ),
    ] = None
    ema: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="Decay of the running mean of the weights, which is then what a run leaves; 0 leaves the last weights.",
        ),
    ] = 0.0
    accumulate: Annotated[
        int, Field(ge=1, description="A batch runs in so many parts, one after the other, to save memory; batch norm sees a part.")
    ] = 1
    channels_last: Annotated[
        bool, Field(description="Memory format of the convolutions: faster on GPUs with tensor cores, with other rounding.")
    ] = False
    compile: Annotated[
        bool | Literal["graphs"], Field(description="Compile the network with torch.compile; `graphs` adds CUDA graphs.")
    ] = False
    shuffle_block: Annotated[
        int, Field(ge=0, description="For slow storage: images in a row that an epoch shows near one another; 0 shuffles freely.")
    ] = 0
    shuffle_window: Annotated[int, Field(ge=1, description="So many of these blocks are shuffled together and kept in memory.")] = 8
    labelled_per_batch: Annotated[
        Annotated[int, Field(ge=1)] | None,
        AddedLater(None),
        Field(
            validate_default=True,
            description="So many images of each batch have a label and the others have none; with `null` all are drawn alike. A "
            "method that learns from labels alone sees labelled images only, where this or `dataset.labelled_part` is set.",
        ),
    ] = None
    checkpoint_every: Annotated[int, Field(ge=1, description="Steps between checkpoints.")] = 500
    norm_every: Annotated[int, Field(ge=1, description="Steps between measurements of each term's gradient norm.")] = 200
    validate_every: Annotated[
        int,
        AddedLater(0),
        Field(ge=0, description="Steps between scores of the split `val` on the canvas; 0 scores nothing while training."),
    ] = 0
    validate_metric: Annotated[
        Literal["mean_iou", "own"],
        AddedLater("mean_iou"),
        Field(
            description="What the best validation is chosen by: the mean IoU on the canvas, or the dataset's own metric on full "
            "frames, which costs as much as `pipeline evaluate` on `val` each time."
        ),
    ] = "mean_iou"
    keep: Annotated[
        Literal["last", "best"],
        AddedLater("last"),
        Field(description="Which weights a run leaves: the last ones, or those of the best validation."),
    ] = "last"
    patience: Annotated[
        int,
        AddedLater(0),
        Field(ge=0, description="Training ends after so many validations without a better score; 0 makes all steps."),
    ] = 0

    optimiser_args: Annotated[
        dict[str, Any] | None,
        AddedLater(None),
        Field(description="Further keywords of the optimiser, such as `{alpha: 0.95}` for RMSprop."),
    ] = None
    schedule: Annotated[
        Literal["poly", "cosine", "one_cycle", "step"],
        AddedLater("poly"),
        Field(description="How the learning rate falls (docs/training.md has the formulas)."),
    ] = "poly"
    milestones: Annotated[
        Annotated[tuple[Positive, ...], LENIENT, Field(min_length=1)] | None,
        AddedLater(None),
        Field(description="Of the schedule `step`: the steps after which the rate is multiplied by `gamma`."),
    ] = None
    gamma: Annotated[float, AddedLater(0.1), Field(gt=0, le=1, description="Of the schedule `step`.")] = 0.1
    label_loss: Annotated[
        Literal["cross_entropy", "ohem", "focal", "dice"],
        AddedLater("cross_entropy"),
        Field(description="The loss on labels (docs/training.md has the formulas)."),
    ] = "cross_entropy"
    label_smoothing: Annotated[
        float, AddedLater(0.0), Field(ge=0, lt=1, description="Of the cross-entropy (Szegedy et al., CVPR 2016).")
    ] = 0.0
    ohem_threshold: Annotated[
        float, AddedLater(0.7), Field(gt=0, lt=1, description="Of `ohem`: pixels count whose label has a lower probability.")
    ] = 0.7
    ohem_least: Annotated[
        float, AddedLater(0.0625), Field(gt=0, le=1, description="Of `ohem`: the part of the labelled pixels that counts at least.")
    ] = 0.0625
    focal_gamma: Annotated[
        float, AddedLater(2.0), Field(ge=0, description="Of `focal`: the exponent; with 0 it is the cross-entropy.")
    ] = 2.0
    dice_weight: Annotated[
        float, AddedLater(0.0), Field(ge=0, description="Weight of the Dice loss beside the loss on labels.")
    ] = 0.0

    # A check sees the fields above its own that are right

    @field_validator("warmup_steps")
    @classmethod
    def _ends_in_time(cls, warmup_steps: int, info: ValidationInfo) -> int:
        steps = info.data.get("steps", warmup_steps)
        if warmup_steps > steps:
            raise ValueError(f"the warm-up is longer than the training: {warmup_steps} of {steps} steps; write fewer")
        return warmup_steps

    @field_validator("nesterov")
    @classmethod
    def _has_momentum(cls, nesterov: bool, info: ValidationInfo) -> bool:
        if nesterov and (info.data.get("optimiser", "sgd") != "sgd" or info.data.get("momentum") == 0):
            raise ValueError("is a kind of SGD's momentum; write optimiser: sgd and a momentum, or false")
        return nesterov

    @field_validator("optimiser_args")
    @classmethod
    def _are_keywords(cls, optimiser_args: dict[str, Any] | None, info: ValidationInfo) -> dict[str, Any] | None:
        if "optimiser" in info.data:
            said = {"params", "lr", "weight_decay", "momentum"}
            known = set(keywords_of_optimiser(info.data["optimiser"])) - said
            for name in optimiser_args or ():
                if name in said - {"params"}:
                    raise ValueError(f"{name!r} is a key of its own; write training.{name}")
                if name not in known:
                    raise ValueError(
                        f"{info.data['optimiser']} has no {name!r}{did_you_mean(name, known)}; it has {', '.join(sorted(known))}"
                    )
        return optimiser_args

    @field_validator("schedule")
    @classmethod
    def _rises_by_itself(cls, schedule: str, info: ValidationInfo) -> str:
        if schedule == "one_cycle" and info.data.get("warmup_steps"):
            raise ValueError("one_cycle has a warm-up of its own; write warmup_steps: 0")
        return schedule

    @field_validator("milestones")
    @classmethod
    def _rise(cls, milestones: tuple[int, ...] | None, info: ValidationInfo) -> tuple[int, ...] | None:
        if milestones is not None and list(milestones) != sorted(set(milestones)):
            raise ValueError(f"expected rising steps, got {list(milestones)}")
        if milestones is not None and info.data.get("schedule", "step") != "step":
            raise ValueError("is for schedule: step alone; leave it out")
        return milestones

    @field_validator("label_smoothing")
    @classmethod
    def _smooths(cls, label_smoothing: float, info: ValidationInfo) -> float:
        if label_smoothing and info.data.get("label_loss", "cross_entropy") != "cross_entropy":
            raise ValueError("is of label_loss: cross_entropy alone; write 0.0")
        return label_smoothing

    @field_validator("class_weights")
    @classmethod
    def _weigh_something(cls, class_weights: Any, info: ValidationInfo) -> Any:
        if class_weights is not None and info.data.get("background_weight", 1) != 1:
            raise ValueError("says the background's weight too; write background_weight: 1.0")
        if isinstance(class_weights, tuple) and not any(class_weights):
            raise ValueError("all weights are 0, and no class is learned; write a positive weight")
        return class_weights

    @field_validator("labelled_per_batch")
    @classmethod
    def _fits_into_the_batch(cls, labelled_per_batch: int | None, info: ValidationInfo) -> int | None:
        if labelled_per_batch is None:
            if info.data.get("fresh_views") == "labelled":
                raise ValueError("fresh_views: labelled asks how many images of a batch that is; write a number less than batch")
            return None
        batch = info.data.get("batch", labelled_per_batch)
        if labelled_per_batch > batch:
            raise ValueError(f"{labelled_per_batch} images are more than a batch of {batch}; write {batch} or less")
        if labelled_per_batch < batch and info.data.get("shuffle_block"):
            raise ValueError("two kinds of images are drawn apart, which shuffle_block can't; write null, or shuffle_block: 0")
        return labelled_per_batch

    @field_validator("accumulate")
    @classmethod
    def _divides_the_batch(cls, accumulate: int, info: ValidationInfo) -> int:
        batch = info.data.get("batch", accumulate)
        if batch % accumulate:
            raise ValueError(f"a batch of {batch} has no {accumulate} equal parts; write a divisor of {batch}")
        return accumulate

    @field_validator("keep", "patience", "validate_metric")
    @classmethod
    def _has_validations(cls, value: Any, info: ValidationInfo) -> Any:
        if value not in ("last", 0, "mean_iou") and info.data.get("validate_every", 1) == 0:
            raise ValueError("needs scores of the split `val`; write validate_every: 500, or another number of steps")
        return value

    @field_validator("compile")
    @classmethod
    def _keeps_gradients(cls, compile: Any, info: ValidationInfo) -> Any:
        if compile == "graphs" and info.data.get("accumulate", 1) > 1:
            raise ValueError("graphs write a part's gradients over those of the part before; write true, or accumulate: 1")
        return compile


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Teacher:
    """The network that is distilled, with the keys of its model."""

    model: Plugin
    checkpoint: Annotated[
        Annotated[Path, LENIENT] | Annotated[tuple[Annotated[Path, LENIENT], ...], LENIENT] | None,
        Field(
            description="Trained weights of the whole network, or a list with a file for each member of an `ensemble`; with null, "
            "`pipeline train-teacher` trains it."
        ),
    ]
    backbone: Annotated[
        Annotated[Path, LENIENT] | None, Field(description="ImageNet weights to start the training from, with torchvision's names.")
    ]
    precision: Annotated[Precision, Field(description="Arithmetic of the teacher's pass over the data.")]
    flip_average: Annotated[
        bool, AddedLater(False), Field(description="The teacher also looks at the mirrored image, and what is stored is the mean.")
    ] = False


MAIN = "teacher"  # the name of the teacher that the section of this name describes


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MadeFrom:
    """What every target says beside its own keys; it is in no record of the target, as rows lie in the cache of each teacher."""

    teacher: Annotated[
        str | dict[str, float],
        AddedLater(MAIN),
        Field(
            description="Which of `teachers` it is made from (`teacher`: that of the section `teacher`), or several, each with its "
            "weight in the mean: `{a: 1.0, b: 1.0}` (docs/models.md)."
        ),
    ] = MAIN


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Evaluate:
    """What is scored."""

    split: Annotated[str, Field(min_length=1, description="The split of the dataset that networks are scored on.")]
    window: Annotated[
        tuple[Positive, Positive] | None,
        LENIENT,
        AfterValidator(multiples_of_eight),
        AddedLater(None),
        Field(
            description="Height and width of windows that slide over the prepared image, whose logits are averaged; with null "
            "networks see the whole image."
        ),
    ] = None
    stride: Annotated[
        tuple[Positive, Positive] | None,
        LENIENT,
        AddedLater(None),
        Field(description="Steps between windows, down and across; with null two thirds of the window, as in mmsegmentation."),
    ] = None

    @field_validator("stride")
    @classmethod
    def _leaves_no_gaps(cls, stride: tuple[int, int] | None, info: ValidationInfo) -> tuple[int, int] | None:
        window = info.data.get("window", stride)
        if stride is None:
            return None
        if window is None:
            raise ValueError("there are no windows; write evaluate.window, or null")
        if any(step > side for step, side in zip(stride, window)):
            raise ValueError(f"{list(stride)} leaves gaps between windows of {list(window)}; write {list(window)} or less")
        return stride

    @property
    def steps(self) -> tuple[int, int] | None:
        """Between windows, down and across, in pixels."""
        return self.stride or (self.window and (round(2 * self.window[0] / 3), round(2 * self.window[1] / 3)))

    @property
    def windows(self) -> dict[str, list[int]]:
        """What records hold of the windows; nothing where whole images are seen."""
        return {"window": list(self.window), "stride": list(self.steps or ())} if self.window else {}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GradientShare:
    """A term's weight by its gradient at the student's features, as a share of that of the loss on labels."""

    gradient: Annotated[float, Field(gt=0, description="Norm of the term's weighted gradient by that of the loss on labels.")]
    every: Annotated[int, Field(ge=1, description="Steps between measurements.")] = 20
    decay: Annotated[float, Field(ge=0, lt=1, description="Of the running means of both norms, by measurement.")] = 0.9


def number_or_share(value: Any) -> Any:
    """A weight as a file has it: the mapping becomes a GradientShare."""
    if isinstance(value, dict):
        known = GradientShare.__dataclass_fields__
        for key in value:
            if key not in known:
                raise ValueError(f"no such key {key!r}{did_you_mean(str(key), known)}; there are: {', '.join(known)}")
        try:
            return GradientShare(**value)
        except ValidationError as error:
            found = error.errors(include_url=False)[0]
            raise ValueError(
                f"{'.'.join(map(str, found['loc']))}: {found['msg']}; write a share such as {{gradient: 0.3}}"
            ) from None
    if isinstance(value, float | int) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError(f"expected a finite number, got {value!r}")
        if value < 0:
            raise ValueError(f"expected 0 or more, got {value!r}")
    return value


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Term:
    """One loss of a method, with the keys of that loss."""

    loss: Plugin
    reads: Annotated[
        tuple[str, ...],
        LENIENT,
        Field(description="Names of the targets that it compares the student with; none for a loss that needs no teacher."),
    ] = ()
    weight: Annotated[
        Annotated[float, Field(ge=0)] | GradientShare,
        BeforeValidator(number_or_share),
        Field(
            description="Weight of the loss beside the cross-entropy's 1; or `{gradient: 0.3}`, which sets it so that the norm of "
            "its gradient at the student's features is this share of the loss on labels' (docs/training.md)."
        ),
    ]
    start: Annotated[int, Field(ge=0, description="The weight is 0 before this step.")] = 0
    ramp: Annotated[int, Field(ge=0, description="From `start` on the weight rises in a straight line over these steps.")] = 0


LABEL_TERMS = {"cross_entropy": "ce", "ohem": "ohem(labels)", "focal": "focal(labels)", "dice": "dice(labels)"}  # by label_loss
TERM_WORDS = {"ce": "cross-entropy"}  # of terms in files, for people


def weight_in_words(weight: Any) -> str:
    """Of a term, or of a term in a record."""
    share = weight.get("gradient") if isinstance(weight, Mapping) else getattr(weight, "gradient", None)
    return f"{weight:g}" if share is None else f"gradient {share:g}"


def term_name(terms: Sequence[Term], i: int) -> str:
    """How a term is called in logs: the loss, with its targets where the method has that loss more than once."""
    term = terms[i]
    alone = sum(t.loss.name == term.loss.name for t in terms) == 1
    return term.loss.name if alone else f"{term.loss.name}({','.join(term.reads)})"
