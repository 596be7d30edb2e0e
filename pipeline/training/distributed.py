"""Several processes that train one network, started by torchrun; without it, all of this is about one process.

    torchrun --no-python --nproc-per-node 8 pipeline train-student configs/culane.yaml --student erfnet --method intra --seed 0

Every process makes its own share of a batch, and gradients are averaged once per step: networks here are small (a student's
gradient is 8 MB), so nothing is gained by mixing that with the backward pass, as DistributedDataParallel does, and losses with
parameters of their own, unused outputs and gradient norms need no care. Batch norm takes the statistics of all processes on
CUDA; on the CPU, for which PyTorch has no such layer, each takes its share's, so that a CPU run of two is for tests.
The first process writes the run's folder.
"""

import os
from collections.abc import Iterable

import torch
import torch.distributed as group
from torch import Tensor, nn


def start(device: str) -> str:
    """The device of this process; joins the others if torchrun started it."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or group.is_initialized():
        return device
    if device.startswith("cuda"):
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    group.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return device


def rank_and_world_size() -> tuple[int, int]:
    """This process's number, and how many there are."""
    return (group.get_rank(), group.get_world_size()) if group.is_initialized() else (0, 1)


def is_main_process() -> bool:
    return rank_and_world_size()[0] == 0


def barrier() -> None:
    """Until all are here."""
    if group.is_initialized():
        group.barrier()


def all_reduce_mean(tensors: Iterable[Tensor]) -> None:
    """Each tensor becomes its mean over the processes."""
    count = rank_and_world_size()[1]
    if count > 1 and (tensors := list(tensors)):
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
        group.all_reduce(flat)
        for tensor, mean in zip(tensors, (flat / count).split([tensor.numel() for tensor in tensors])):
            tensor.detach().copy_(mean.view_as(tensor))


def all_reduce_sum(tensor: Tensor) -> None:
    """The tensor becomes its sum over the processes."""
    if rank_and_world_size()[1] > 1:
        group.all_reduce(tensor)


def synchronised(model: nn.Module, device: torch.device) -> nn.Module:
    """The same modules, with batch norms that look at all processes' images."""
    return nn.SyncBatchNorm.convert_sync_batchnorm(model) if rank_and_world_size()[1] > 1 and device.type == "cuda" else model
