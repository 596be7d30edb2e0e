"""Put a config's table of scores into the pages that show it: run `make demo`, or `pipeline report` on another config, then

    $ python -m bench.tables                 # reports/demo.md -> docs/results/demo.json -> README.md, docs/tutorial.md
    $ python -m bench.tables idd-lite        # ... and docs/real-roads.md

tests/test_tables.py compares the pages with the JSON.
"""

import argparse
import json
from pathlib import Path

from bench.machine import described
from bench.page import insert

RESULTS = Path("docs/results")
REAL = Path("docs/real-roads.md")
PAGES = {
    "demo": [Path("README.md"), Path("docs/tutorial.md")],
    "idd-lite": [REAL],
    "apolloscape-100": [REAL],
    "culane-120": [REAL],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", nargs="?", choices=PAGES, default="demo")
    name = parser.parse_args().config
    lines = Path(f"reports/{name}.md").read_text().splitlines()
    found = {
        "config": name,
        "machine": described("cpu"),
        "table": [line for line in lines if line.startswith("|")],
        "notes": [line for line in lines if line.startswith("- ")],
        "scores": json.loads(Path(f"reports/{name}.json").read_text())[name],
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    for page in PAGES[name]:
        insert(page, f"{name}-table", text(found))


def text(found: dict) -> str:
    machine, name = found["machine"], found["config"]
    commands = "`python -m bench.tables` after `make demo`" if name == "demo" else f"`python -m bench.tables {name}`"
    written = f"Written by {commands} on {machine['processor']}, {machine['cores']} cores, PyTorch {machine['torch']}."
    return "\n".join([*found["table"], "", *found["notes"], "", written])


if __name__ == "__main__":
    main()
