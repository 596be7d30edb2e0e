"""What a whole fill and a whole training take, from what real commands left behind: marks of blocks, and a run's history.

    $ python -m bench.recipe --cache cache/roads/targets-3f9a... --run runs/step/erfnet-intra-0

A cache's marks bear the time at which each block was whole; a run notes the seconds between two checkpoints, these included.
In both the first stretch, in which libraries start, choose and compile, is left out. The numbers of images and steps are
CULane's and its paper's recipe's; the result is extrapolated, in a straight line.
"""

import argparse
import json
from pathlib import Path

from bench.machine import write_result
from pipeline.store import Store


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--images", type=int, default=88_880)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--steps", type=int, default=80_000)
    parser.add_argument("--device", default="cpu", help="for the record of the machine")
    parser.add_argument("--out", type=Path, default=Path("reports/bench/recipe.json"))
    args = parser.parse_args()
    found = {}
    if args.cache:
        found["fill"] = fill = filled(args.cache)
        fill |= {"images": args.images, "extrapolated_s": args.images * fill["views"] * fill["view_s"]}
        print(
            f"{args.cache}: {fill['measured_views']} views at {1 / fill['view_s']:.1f} a second; {args.images} images in "
            f"{fill['views']} views would take {fill['extrapolated_s'] / 60:.1f} min (extrapolated)"
        )
    if args.run:
        found["training"] = training = trained(args.run)
        training |= {"steps": args.steps, "extrapolated_s": args.steps * training["step_s"]}
        print(
            f"{args.run}: {training['measured_steps']} steps at {1000 * training['step_s']:.2f} ms; {args.steps} would take "
            f"{training['extrapolated_s'] / 60:.1f} min (extrapolated)"
        )
    write_result(args.out, args.device, found)


def filled(folder: Path) -> dict:
    store = Store.open(folder)
    whole: dict[tuple[str, int], float] = {}  # (view, block) -> when its last mark was written
    for mark in (folder / "done").glob("v*/*.json"):
        task = mark.parent.name, int(mark.name.partition(".")[0])
        whole[task] = max(mark.stat().st_mtime, whole.get(task, 0.0))
    tasks = sorted(whole, key=lambda task: whole[task])
    views = sum(len(store.block_images(block)) for _, block in tasks[1:])
    return {
        "measured_views": views,
        "view_s": (whole[tasks[-1]] - whole[tasks[0]]) / views,
        "views": len({view for view, _ in tasks}),
    }


def trained(run: Path) -> dict:
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()][1:]
    assert lines, f"{run}: was stopped before its second checkpoint"
    steps = sum(line["last"] - line["first"] for line in lines)
    return {"measured_steps": steps, "step_s": sum(line["seconds"] for line in lines) / steps, "stretches": lines}


if __name__ == "__main__":
    main()
