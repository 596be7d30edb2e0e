"""The machine in words, for the JSON of a bench; and medians of works that alternate."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


def described(device: str) -> dict:
    model = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    found = {
        "processor": model[0] if model else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    return found | {"gpu": torch.cuda.get_device_name(device)} if device.startswith("cuda") else found


def time_interleaved(
    work: Mapping[str, Callable[[], object]], runs: int, device: str, warm: int = 2, clock: Callable[[], Any] | None = None
) -> dict[str, list[Any]]:
    """Seconds of each work. One run of each follows another, so that what else the machine does falls on all of them. On the
    CPU these are seconds of work (of all threads of this process), which a busy machine changes less than the clock's. Or what
    passes on another `clock`."""
    clock = clock or (time.perf_counter if device.startswith("cuda") else time.process_time)
    seconds: dict[str, list[Any]] = {name: [] for name in work}
    for number in range(warm + runs):
        for name, once in work.items():
            wait(device)
            start = clock()
            once()
            wait(device)
            if number >= warm:
                seconds[name].append(clock() - start)
    return seconds


def ratio(ours: list[float], others: list[float]) -> float:
    """The median of the ratios of those that ran side by side."""
    return statistics.median(a / b for a, b in zip(ours, others))


def with_range(ours: list[float], others: list[float]) -> str:
    """The median of those ratios, and between what its middle half lies."""
    ratios = [a / b for a, b in zip(ours, others)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return f"{middle:.3f}x ({low:.3f}-{high:.3f})"


def goal(words: str, spare: float, unit: str) -> str:
    """A goal, and by how much it is met or missed."""
    return f"{words}: **{'met' if spare >= 0 else 'missed'}** by {abs(spare):.3g}{unit}"


def measured_on(machine: Mapping) -> str:
    shared = "; other work ran on the machine" if machine["load"] > 1 else ""
    return (
        f"Measured on {machine.get('gpu', machine['processor'])}, {machine['cores']} cores, {machine['threads']} threads, "
        f"PyTorch {machine['torch']}, load average {machine['load']}{shared}."
    )


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def write_result(path: Path, device: str, found: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": described(device), **found}, indent=1) + "\n")
