"""How long a network takes for a batch, in torch and in ONNX Runtime, side by side. No stage of dvc.yaml.

From an array of images in memory to an array of logits in memory, normalisation and upsampling to the network's own size
included; decoding, cropping and resizing are not. Weights are initial ones: the time does not depend on them.
"""

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from pipeline.config import Plugin, Training
from pipeline.deployment import onnx as exporting
from pipeline.files import plain, write_json
from pipeline.models.base import set_precision
from pipeline.progress import Progress, table_lines
from pipeline.scoring import load as trained

WARM_UP = 5
CUDA = "CUDAExecutionProvider"


def run(
    *,
    dataset: Plugin,
    size: tuple[int, int],
    training: Training | None,
    model: Plugin,
    takes: exporting.Input,
    batches: tuple[int, ...],
    runs: int,
    threads: int,
    device: str,
    report: Path,
) -> str:
    """A table of medians and 99th percentiles, also written to `report` as JSON. The runtimes take turns, so that what else the
    machine does falls on both."""
    source = dataset.build()
    torch.manual_seed(0)
    set_precision("fp32")
    torch.set_num_threads(threads)
    network = trained.build(model, source, size, training)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's overloads
    deployed = exporting.Deployed(network, size, takes).to(device).eval()
    runtimes = {"torch": in_torch(deployed, device)}
    left_out = ""
    if device == "cpu" or CUDA in exporting.required("onnxruntime").get_available_providers():
        proto = exporting.to_onnx(deployed, {})
        provider = "CPUExecutionProvider" if device == "cpu" else CUDA
        session = exporting.session(proto.SerializeToString(), threads, [provider])
        runtimes["ONNX Runtime"] = lambda images: session.run(None, {"images": images})
    else:
        left_out = "; this onnxruntime knows no CUDA, so it is left out (onnxruntime-gpu does)"
    rng = np.random.default_rng(0)
    rows, measured = [], []
    for batch in batches:
        images = deployed.shown(rng.integers(0, 256, (batch, *size, 3), np.uint8))
        for name, times_ms in timed(runtimes, images, runs).items():
            median = float(np.median(times_ms))
            p99 = np.percentile(times_ms, 99)
            rows.append((name, batch, f"{median:.2f}", f"{p99:.2f}", f"{1e3 * batch / median:.1f}"))
            measured.append({"runtime": name, "batch": batch, "median_ms": round(median, 3), "p99_ms": round(float(p99), 3)})
    where = machine(device, threads)
    write_json(report, {"model": plain(model), "size": size, "input": takes, "runs": runs, "machine": where, "times": measured})
    height, width = size
    return "\n".join(
        [
            *table_lines(["runtime", "batch", "median ms", "p99 ms", "images/s"], rows),
            "",
            f"{model.called}, {height} x {width}, {len(source.classes)} classes, {takes}, fp32, {runs} runs; {where}{left_out}",
        ]
    )


def in_torch(network: exporting.Deployed, device: str) -> Callable:
    @torch.inference_mode()
    def answer(images: np.ndarray) -> list[np.ndarray]:
        return [tensor.cpu().numpy() for tensor in network(torch.from_numpy(images).to(device))]

    return answer


def timed(runtimes: dict[str, Callable], images: np.ndarray, runs: int) -> dict[str, list[float]]:
    """Milliseconds of every run of each, in turns."""
    times: dict[str, list[float]] = {name: [] for name in runtimes}
    with Progress(f"batch of {len(images)}", WARM_UP + runs, "runs") as progress:
        for number in range(WARM_UP + runs):
            for name, answer in runtimes.items():
                began = time.perf_counter()
                answer(images)
                if number >= WARM_UP:
                    times[name].append(1e3 * (time.perf_counter() - began))
            progress.advance()
    return times


def machine(device: str, threads: int) -> str:
    info = Path("/proc/cpuinfo")  # Linux; elsewhere Python knows
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = models[0] if models else platform.processor() or platform.machine()
    gpu = f", {torch.cuda.get_device_name(device)}" if device != "cpu" else ""
    return (
        f"{processor}, {os.cpu_count()} cores{gpu}, {threads} thread{'s' * (threads > 1)}; torch {torch.__version__}, "
        f"onnxruntime {exporting.required('onnxruntime').__version__}"
    )
