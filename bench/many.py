"""Many road pictures from a few: those a config asks for beyond the drawn ones become links to these.

    $ pipeline synth bench/step.yaml --set dataset.train=96
    $ python -m bench.many bench/step.yaml --drawn 96 --set dataset.train=5120
    $ pipeline synth bench/step.yaml --set dataset.train=5120         # draws nothing more, writes the lists

For speed alone: what is read, decoded, warped and answered costs what as many different pictures would.
"""

import argparse
import os
from pathlib import Path

from pipeline import config


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--drawn", type=int, required=True)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    roads = config.load(args.config, args.overrides).dataset.build()
    ids = [roads.settings.image_id("train", index) for index in range(roads.counts["train"])]
    for index, image_id in enumerate(ids[args.drawn :]):
        for pattern in ("laneseg_label_w16/{}.png", "{}.lines.txt", "{}.jpg"):
            path = roads.root / pattern.format(image_id)
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                os.link(roads.root / pattern.format(ids[index % args.drawn]), path)
    print(f"{roads.root}: {len(ids)} training pictures, of which {args.drawn} are drawn and the others links")


if __name__ == "__main__":
    main()
