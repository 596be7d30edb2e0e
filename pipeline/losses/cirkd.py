"""Cross-image relations: how an image's cells relate to cells of its batch mates, of other images, and to classes.

Source: Yang, Zhou, An, Jiang, Xu, Zhang, "Cross-Image Relational Knowledge Distillation for Semantic Segmentation",
CVPR 2022, and its official code. All three terms are KL(teacher || student) of similarities divided by a temperature:
- mini-batch: of each anchor of image i to the anchors of image j, softmax over these; mean over anchors, then over all
  ordered pairs (i, j). The student's own features; no projection.
- memory, pixel: of each anchor to a contrast set of single embeddings, as many of each class;
- memory, region: the same with mean embeddings of a class in an image. In both memory terms the student's features
  pass a projection (linear, batch norm, ReLU, linear) to the teacher's channels, and both networks are compared with
  embeddings of the teacher; mean over an image's anchors, then over images.
`mini_batch`, `memory_pixel` and `memory_region` are their weights inside this loss.

The paper's memory is a queue that batches fill. A frozen teacher's queue is a sample of what never changes, so it is
drawn once: `scan` reads the rows of some images and keeps, of each class, up to `bank_pixels` embeddings, at most
`per_image` of one image, and `bank_regions` means. From this bank each step draws a contrast set, by the step's number
alone. Anchors are those the cache holds (targets/anchors.py), not all cells. `sampling: published` fills the bank as
the official code does, which takes the first cells of an image, as many as the class has, for cells of the class.

B images, N anchors, C channels of the student, D of an embedding, K classes, M a contrast set.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import ConfigError
from pipeline.losses._random import generator_of
from pipeline.losses.base import Batch, LossModule, Share
from pipeline.models.base import Output
from pipeline.targets.anchors import NONE, at
from pipeline.targets.base import TargetType


class Loss(LossModule):
    pixels: Tensor  # [K, room, D], as are the regions
    num_pixels: Tensor  # [K]
    num_regions: Tensor

    reads_types = ("anchors",)

    def __init__(
        self,
        *,
        reads,
        context,
        student,
        mini_batch: Annotated[Share, Field(description="Weight of the term among the images of a batch.")] = 1.0,
        memory_pixel: Annotated[Share, Field(description="Weight of the term on single embeddings of the bank.")] = 0.1,
        memory_region: Annotated[Share, Field(description="Weight of the term on class means of the bank.")] = 0.1,
        temperature: Annotated[float, Field(gt=0, description="Similarities are divided by this before the softmax.")] = 0.1,
        bank_images: Annotated[int, Field(ge=1, description="Images whose rows fill the bank.")] = 2000,
        bank_pixels: Annotated[int, Field(ge=1, description="Embeddings of each class in the bank.")] = 2000,
        bank_regions: Annotated[int, Field(ge=1, description="Means of each class in the bank.")] = 2000,
        per_image: Annotated[int, Field(ge=1, description="Embeddings of a class taken from one image, at most.")] = 16,
        contrast_pixels: Annotated[int, Field(ge=1, description="Embeddings in the contrast set of a step.")] = 4096,
        contrast_regions: Annotated[int, Field(ge=1, description="Class means in the contrast set of a step.")] = 1024,
        sampling: Annotated[
            Literal["class", "published"],
            Field(description="Fill the bank with anchors of each class, or as the official code does."),
        ] = "class",
        seed: Annotated[int, Field(ge=0, description="Seed of the contrast sets.")] = 0,
    ):
        super().__init__(reads=reads, context=context, student=student)
        self.check(self.reads)
        ((self.name, self.target),) = self.reads.items()
        self.mini_batch, self.temperature, self.sampling, self.seed = mini_batch, temperature, sampling, seed
        self.bank_images, self.per_image = bank_images, per_image
        self.memory = {"pixels": (memory_pixel, contrast_pixels), "regions": (memory_region, contrast_regions)}
        self.needs_scan = bool(memory_pixel or memory_region)
        if self.needs_scan:
            channels, K = self.target.width(context.channels[self.target.layer]), context.num_classes
            self.projection = nn.Sequential(
                nn.Linear(student.channels[self.target.layer], channels, bias=False),
                nn.BatchNorm1d(channels),
                nn.ReLU(),
                nn.Linear(channels, channels, bias=False),
            )
            for kind, room in (("pixels", bank_pixels), ("regions", bank_regions)):
                self.register_buffer(kind, torch.zeros(K, room, channels, dtype=torch.float16))
                self.register_buffer(f"num_{kind}", torch.zeros(K, dtype=torch.int64))

    @classmethod
    def check(cls, reads: Mapping[str, TargetType], **args: Any) -> None:
        if len(reads) != 1:
            raise ConfigError(f"cirkd: reads {', '.join(reads)}; name one target, and use the loss twice for two layers")

    def forward(self, output: Output, batch: Batch) -> Tensor:
        rows = batch.rows[self.name]
        teacher_BND, place_BN = rows["embedding"], rows["place"]
        features_BChw = self.target.features(output, self.context)
        inside_Bhw = F.adaptive_avg_pool2d(batch.inside_BHW[:, None].float(), features_BChw.shape[-2:])[:, 0] >= 0.5
        valid_BN = (rows["label"] != NONE) & inside_Bhw.flatten(1).gather(1, place_BN.long())
        everything = [features_BChw, *self.parameters()]  # so that all have a gradient, if only zero
        total = sum(values.sum() for values in everything) * 0
        if self.mini_batch:
            student_BNC = at(self.target.embeddings(output, self.context), place_BN)
            total = total + self.mini_batch * relations(student_BNC, teacher_BND, valid_BN, self.temperature)
        if self.needs_scan and valid_BN.sum() > 1:  # batch norm knows no variance of one
            student_BND = self.projected(at(features_BChw.flatten(2).mT, place_BN), valid_BN)
            for kind, (weight, size) in self.memory.items():
                if weight:
                    contrast_MD, known_M = self.contrast(kind, size, batch.step)
                    total = total + weight * contrasts(student_BND, teacher_BND, valid_BN, contrast_MD, known_M, self.temperature)
        return total

    def projected(self, features_BNC: Tensor, valid_BN: Tensor) -> Tensor:
        """[B, N, D] of length 1, 0 where there is no anchor: padding must not enter the batch norm."""
        student_BND = features_BNC.new_zeros(*valid_BN.shape, self.pixels.shape[2])
        return student_BND.masked_scatter(valid_BN[..., None], F.normalize(self.projection(features_BNC[valid_BN]), dim=1))

    def contrast(self, kind: str, size: int, step: int) -> tuple[Tensor, Tensor]:
        """[M, D] embeddings of the bank, size // K + 1 of each class as in the official code; [M] which are there."""
        bank_KRD, num_K = getattr(self, kind), getattr(self, f"num_{kind}")
        K, room, _ = bank_KRD.shape
        generator = generator_of(self.seed, step << 1 | (kind == "regions"))
        lots_KR = torch.rand(K, room, generator=generator).to(num_K.device)  # drawn on the CPU: the same everywhere
        lots_KR = lots_KR.masked_fill(torch.arange(room, device=num_K.device) >= num_K[:, None], 2)
        lots_KM, drawn_KM = lots_KR.topk(min(size // K + 1, room), dim=1, largest=False)
        contrast_KMD = bank_KRD.gather(1, drawn_KM[..., None].expand(-1, -1, bank_KRD.shape[2]))
        return contrast_KMD.flatten(0, 1).float(), (lots_KM < 2).flatten()

    def scan(self, rows: Iterable[Mapping[str, Mapping[str, Tensor]]]) -> None:
        self.num_pixels.zero_(), self.num_regions.zero_()
        left = self.bank_images
        for several in rows:
            anchors = {field: values[:left] for field, values in several[self.name].items()}
            for k in range(self.context.num_classes):
                self.enqueue("pixels", k, anchors["embedding"][self.pushed(anchors, k)])
                self.enqueue("regions", k, F.normalize(anchors["mean"][anchors["cells"][:, k] > 0, k], dim=1))
            left -= len(anchors["label"])
            if not left:
                break

    def enqueue(self, kind: str, k: int, found_RD: Tensor) -> None:
        """As many as there is room for."""
        bank_KRD, num_K = getattr(self, kind), getattr(self, f"num_{kind}")
        begin = int(num_K[k])
        found_RD = found_RD[: bank_KRD.shape[1] - begin]
        bank_KRD[k, begin : begin + len(found_RD)] = found_RD.to(bank_KRD)
        num_K[k] += len(found_RD)

    def pushed(self, anchors: Mapping[str, Tensor], k: int) -> Tensor:
        """[B, N]: which anchors stand for class k in the bank, at most `per_image` of an image."""
        if self.sampling == "class":
            of_class_BN = anchors["label"] == k
        else:
            of_class_BN = (anchors["label"] != NONE) & (anchors["place"] < anchors["cells"][:, k, None])
        return of_class_BN & (of_class_BN.cumsum(dim=1) <= self.per_image)


def relations(student_BNC: Tensor, teacher_BND: Tensor, valid_BN: Tensor, temperature: float) -> Tensor:
    """The mini-batch term: for each ordered pair of images the mean over the first one's anchors; mean over pairs."""
    B, N = valid_BN.shape
    student, teacher = (
        (flat @ flat.T).view(B, N, B, N) / temperature for flat in (student_BNC.flatten(0, 1), teacher_BND.flatten(0, 1))
    )
    divergence_BNB = divergence(student, teacher, valid_BN)
    return means(divergence_BNB.transpose(1, 2), valid_BN[:, None]).mean()


def contrasts(
    student_BND: Tensor, teacher_BND: Tensor, valid_BN: Tensor, contrast_MD: Tensor, known_M: Tensor, temperature: float
) -> Tensor:
    """A memory term: mean over an image's anchors, then over images."""
    return means(
        divergence(student_BND @ contrast_MD.T / temperature, teacher_BND @ contrast_MD.T / temperature, known_M), valid_BN
    ).mean()


def divergence(student: Tensor, teacher: Tensor, known: Tensor) -> Tensor:
    """KL(teacher || student) in nats over the last dimension, of those that are known; 0 where none is."""
    lowest = torch.finfo(student.dtype).min  # not -inf: 0 * inf is NaN
    student, teacher = (torch.where(known, logits, lowest).log_softmax(dim=-1) for logits in (student, teacher))
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1)


def means(values: Tensor, valid: Tensor) -> Tensor:
    """Over the valid ones of the last dimension; 0 where there are none."""
    return torch.where(valid, values, 0).sum(dim=-1) / valid.sum(dim=-1).clamp(min=1)
