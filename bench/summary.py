"""One short table of what `bench/gpu.sh` measured, beside the goals: `python -m bench.summary reports/bench`.

Reads the JSON that each piece left; what is missing has failed, or was not run.
"""

import argparse
import json
from pathlib import Path

from pipeline.progress import table_lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    print(*table_lines(["what", "goal", "measured"], rows(args.folder)), sep="\n")


def rows(folder: Path):
    def load(name):
        path = folder / f"gpu-{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    for kind in ("fp32", "bf16", "compiled", "graphs"):
        found = load(f"step-{kind}")
        if found is None:
            yield f"step, {kind}", "", "not measured"
            continue
        against, peak = found["against_plain"], found["peak_bytes"]
        yield (
            f"step, {kind}: from the cache against plain ({1000 * found['median_s']['plain']:.1f} ms)",
            "<= 1.02x",
            f"{against['from the cache']:.3f}x",
        )
        if "teacher in the loop" in against:
            saved = peak.get("teacher in the loop", 0) - peak.get("from the cache", 0)
            yield (
                f"step, {kind}: teacher in the loop against from the cache",
                "",
                f"{against['teacher in the loop'] / against['from the cache']:.2f}x, {saved / 2**20:.0f} MiB more",
            )
        yield (
            f"step, {kind}: waiting for input; GPU idle",
            "0",
            f"{found['waits']:.1%}; " + (f"{found['idle']:.1%}" if "idle" in found else "-"),
        )
    for precision in ("fp32", "bf16"):
        if found := load(f"fill-{precision}"):
            shares = [bare / ours for bare, ours in zip(found["seconds"]["bare forward"], found["seconds"]["fill, overlapped"])]
            yield f"fill, {precision}, against the bare forward", ">= 0.95x", f"{sorted(shares)[len(shares) // 2]:.3f}x"
        else:
            yield f"fill, {precision}, against the bare forward", ">= 0.95x", "not measured"
    if found := load("moments"):
        for row in found["rows"]:
            if row["regions"] in (5, 36) and row["shape"][1] in (128, 2048):
                bandwidth = ", ".join(f"{name} {share:.0%}" for name, share in row["bandwidth_share"].items() if name != "loop")
                yield (
                    f"moments, {row['shape'][1]} channels, {row['regions']} regions: against the loop; of copy bandwidth",
                    ">= 10x; 70%",
                    f"{row['loop_over_torch']:.1f}x; {bandwidth}",
                )
    else:
        yield "moments", ">= 10x", "not measured"
    for kind in ("fill", "bf16", "graphs"):
        found = load(f"recipe-{kind}") or {}
        if fill := found.get("fill"):
            yield (
                f"fill, {fill['measured_views']} views at {1 / fill['view_s']:.0f}/s; {fill['images']} images, "
                f"{fill['views']} views",
                "",
                f"{fill['extrapolated_s'] / 60:.1f} min, extrapolated",
            )
        elif training := found.get("training"):
            yield (
                f"training, {kind}, {training['measured_steps']} steps at {1000 * training['step_s']:.2f} ms; "
                f"{training['steps']} steps",
                "< 15 min",
                f"{training['extrapolated_s'] / 60:.1f} min, extrapolated",
            )
        else:
            yield f"recipe, {kind}", "", "not measured"


if __name__ == "__main__":
    main()
