"""The Triton kernels of pipeline/targets/_moments.py: the sums of a loop, and the gradients and graphs of the torch version.

On a GPU they are compiled; elsewhere Triton interprets them, which has to be said before triton is imported.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip(
    "triton",
    minversion=None if DEVICE == "cuda" else "3.9",  # interpreters before stumble over numpy 2.4
    reason="triton comes with PyTorch's CUDA builds; `pip install triton` lets its interpreter run these",
)

from pipeline.targets import _moments, affinity  # noqa: E402


def example(B, C, h, w, K, memory_format=torch.contiguous_format, offset=1.0):
    """Features after a ReLU; overlapping regions of all sizes, one of which is empty."""
    generator = torch.Generator().manual_seed(B * C * K)
    features = (2 * torch.randn(B, C, h, w, generator=generator) + offset).relu() + offset
    aoi = torch.rand(B, K, h, w, generator=generator) < torch.linspace(0, 0.6, K).view(1, -1, 1, 1)
    return features.to(DEVICE, memory_format=memory_format), aoi.to(DEVICE)


SHAPES = [(2, 3, 4, 5, 1), (1, 8, 32, 32, 4), (2, 9, 36, 31, 6)]  # whole tiles and parts of them, one and several


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_power_means_are_those_of_a_loop(shape, memory_format):
    features, aoi = example(*shape, memory_format)
    features, masks, shift = features.flatten(2), aoi.flatten(2), features.flatten(2).mean(dim=2, keepdim=True)
    found = _moments.power_means(features, masks, shift)
    for b, k in [(b, k) for b in range(shape[0]) for k in range(shape[4])]:
        inside = features[b][:, masks[b, k]].double() - shift[b].double()
        for p in range(3):
            exact = (inside ** (p + 1)).sum(dim=1) / max(1, int(masks[b, k].sum()))
            torch.testing.assert_close(found[b, p, k], exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_a_loop(shape):
    features, aoi = example(*shape)
    features, masks, shift = features.flatten(2), aoi.flatten(2), features.flatten(2).mean(dim=2, keepdim=True)
    slopes = torch.randn(shape[0], 3, shape[4], shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(
        DEVICE
    )
    mine, exact = features.clone().requires_grad_(), features.double().requires_grad_()
    (gradient,) = torch.autograd.grad(_moments.power_means(mine, masks, shift), mine, slopes)
    x, counts = exact - shift.double(), masks.sum(dim=2).clamp(min=1).double()[..., None]
    powers = torch.stack([masks.double() @ (x**p).mT / counts for p in (1, 2, 3)], dim=1)
    (expected,) = torch.autograd.grad(powers, exact, slopes)
    assert gradient.dtype == features.dtype
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def two_passes(features_BChw, aoi_BKhw, dtype):
    """Moments and graph as Eq. 2 and 3 are written, each region's mean first and then two sums around it."""
    features_BCP, masks_BKP = features_BChw.flatten(2).to(dtype), aoi_BKhw.flatten(2).to(dtype)
    eps_B1 = 1e-2 * features_BCP.var(dim=2, unbiased=False).mean(dim=1, keepdim=True)
    moments = []
    for k in range(masks_BKP.shape[1]):
        mask_B1P = masks_BKP[:, k : k + 1]
        cells_B1 = mask_B1P.sum(dim=2).clamp(min=1)
        mean_BC = (features_BCP * mask_B1P).sum(dim=2) / cells_B1
        centred_BCP = (features_BCP - mean_BC[..., None]) * mask_B1P
        variance_BC, third_BC = ((centred_BCP**p).sum(dim=2) / cells_B1 for p in (2, 3))
        moments.append(torch.stack((mean_BC, variance_BC, third_BC / (variance_BC + eps_B1) ** 1.5), dim=1))
    return affinity.cosines(torch.stack(moments, dim=2))


@pytest.mark.parametrize("offset", [1.0, 300.0])
def test_graphs_are_no_worse_than_those_of_two_passes_in_float32(offset, monkeypatch):
    features, aoi = example(2, 10, 12, 20, 6, offset=offset)
    exact = two_passes(features, aoi, torch.float64)
    worst = float((two_passes(features, aoi, torch.float32) - exact).abs().max())
    graph = affinity.cosines(fused_nodes(features, aoi, monkeypatch))
    assert float((graph - exact).abs().max()) <= min(worst, 1e-6)


@pytest.mark.parametrize("reading", ["masked", "literal"])
def test_nodes_and_their_gradients_are_those_of_the_torch_version(reading, monkeypatch):
    features, aoi = example(2, 10, 12, 20, 6)
    theirs, mine = features.clone().requires_grad_(), features.clone().requires_grad_()
    expected = affinity.nodes(theirs, aoi, reading, 1e-2, "relative")
    found = fused_nodes(mine, aoi, monkeypatch, reading)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    slopes = torch.randn(found.shape, dtype=found.dtype, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    gradients = [torch.autograd.grad(values, leaf, slopes)[0] for values, leaf in ((found, mine), (expected, theirs))]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6 * float(gradients[1].abs().max()))


def fused_nodes(features, aoi, monkeypatch, reading="masked"):
    """By the kernels, which nobody else asks for on the CPU."""
    monkeypatch.setattr(affinity, "fused", lambda features: True)
    found = affinity.nodes(features, aoi, reading, 1e-2, "relative")
    monkeypatch.undo()
    return found


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from pipeline.targets import _moments
for kernel, sizes, pointers in ((_moments.sums_kernel, _moments.SUMS, 4), (_moments.slopes_kernel, _moments.SLOPES, 5)):
    types = dict(zip(kernel.arg_names, ["*fp32", "*u8", "*fp64", "*fp64", "*fp32"][:pointers]))
    options = {"num_warps": sizes["num_warps"]}
    sizes = {name: size for name, size in sizes.items() if name not in options}
    signature = {name: types.get(name, "constexpr" if name in sizes else "i32") for name in kernel.arg_names}
    constants = {(kernel.arg_names.index(name),): size for name, size in sizes.items()}
    made = compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32), options=options)
    assert ".f64" in made.asm["ptx"] and made.metadata.shared < 100_000
"""


def test_the_kernels_compile_for_a_gpu_without_one():
    """For Hopper; the interpreter forgives types that the compiler does not."""
    root = Path(__file__).parents[3]
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    clean["PYTHONPATH"] = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", COMPILE], env=clean, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
