"""Moment pooling of the affinity target: all classes in one pass, against a loop over the classes.

    $ python -m bench.moments --device cuda

Forward and backward of 12 maps, for 5, 11, 19 and 36 regions. The loop is what a reader of Eq. 2 would write: each class's
mean, then two more passes around it, in float32. Errors are those of the graph against the loop in float64. On a GPU the table
also says what share of the copy bandwidth the pass over the features reaches: bytes of the features read twice and of their
gradient written once, over the time, against a copy of the same map.

B images, K regions, C channels, h w the grid.
"""

import argparse
import functools
import statistics
from pathlib import Path

import torch

from bench.machine import ratio, time_interleaved, write_result
from pipeline.progress import table_lines, table_row
from pipeline.targets import affinity

SHAPES = {"cpu": ((12, 64, 52, 122), (12, 128, 26, 122)), "cuda": ((12, 128, 26, 122), (12, 512, 26, 122), (12, 2048, 26, 122))}


def one_pass(features_BChw, aoi_BKhw):
    return affinity.nodes(features_BChw, aoi_BKhw, "masked", 1e-2, "relative")


def class_by_class(features_BChw, aoi_BKhw):
    eps_B1 = 1e-2 * features_BChw.detach().flatten(2).var(dim=2, unbiased=False).mean(dim=1, keepdim=True)
    moments = []
    for k in range(aoi_BKhw.shape[1]):
        inside_B1hw = aoi_BKhw[:, k : k + 1].to(features_BChw.dtype)
        cells_B1 = inside_B1hw.sum(dim=(2, 3)).clamp(min=1)
        mean_BC = (features_BChw * inside_B1hw).sum(dim=(2, 3)) / cells_B1
        centred_BChw = (features_BChw - mean_BC[..., None, None]) * inside_B1hw
        variance_BC = centred_BChw.square().sum(dim=(2, 3)) / cells_B1
        third_BC = centred_BChw.pow(3).sum(dim=(2, 3)) / cells_B1
        moments.append(torch.stack((mean_BC, variance_BC, third_BC / (variance_BC + eps_B1) ** 1.5), dim=1))
    return torch.stack(moments, dim=2)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--regions", type=int, nargs="+", default=(5, 11, 19, 36))
    parser.add_argument("--shapes", nargs="+", type=lambda text: tuple(map(int, text.split("x"))), metavar="BxCxhxw")
    parser.add_argument("--out", type=Path, default=Path("reports/bench/moments.json"))
    args = parser.parse_args()
    versions = {"torch": one_pass, "loop": class_by_class}
    rows = []
    head = ["maps", "regions", *(f"{name} ms" for name in versions), "loop / torch"]
    head += [column for name in versions for column in (f"{name}, of copy bandwidth", "its error")]
    print(*table_lines(head, []), sep="\n")
    for shape in args.shapes or SHAPES[args.device.split(":")[0]]:
        for regions in args.regions:
            generator = torch.Generator().manual_seed(0)
            features = (2 * torch.randn(shape, generator=generator) + 1).relu().to(args.device).requires_grad_()
            cells = torch.randint(0, regions, (shape[0], 1, *shape[2:]), generator=generator).to(args.device)
            aoi = cells == torch.arange(regions, device=args.device).view(1, -1, 1, 1)

            def once(pooling):
                graph = affinity.cosines(pooling(features, aoi))
                return graph, torch.autograd.grad(graph.square().sum(), features)[0]

            other = torch.empty_like(features)
            seconds = time_interleaved(
                {
                    **{name: functools.partial(once, pooling) for name, pooling in versions.items()},
                    "copy": lambda: other.copy_(features.detach()),
                },
                args.runs,
                args.device,
            )
            with torch.no_grad():
                exact = affinity.cosines(class_by_class(features.double(), aoi))
                errors = {
                    name: float((affinity.cosines(pooling(features, aoi)) - exact).abs().max())
                    for name, pooling in versions.items()
                }
            medians = {name: statistics.median(values) for name, values in seconds.items()}
            shares = {name: 1.5 * ratio(seconds["copy"], seconds[name]) for name in versions}  # three maps moved, a copy moves two
            rows.append(
                {
                    "shape": shape,
                    "regions": regions,
                    "seconds": medians,
                    "errors": errors,
                    "bandwidth_share": shares,
                    "loop_over_torch": ratio(seconds["loop"], seconds["torch"]),
                }
            )
            shown = [" x ".join(map(str, shape)), regions, *(f"{1000 * medians[name]:.2f}" for name in versions)]
            shown.append(f"{rows[-1]['loop_over_torch']:.1f}x")
            shown += [cell for name in versions for cell in (f"{shares[name]:.0%}", f"{errors[name]:.0e}")]
            print(table_row(shown), flush=True)
    write_result(args.out, args.device, {"rows": rows})


if __name__ == "__main__":
    main()
