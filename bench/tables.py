"""Put the demo's table into the pages that show it: run `make demo`, then

    $ python -m bench.tables             # reports/demo.md -> docs/results/demo.json -> README.md, docs/tutorial.md

tests/test_tables.py compares the pages with the JSON.
"""

import json
from pathlib import Path

from bench.machine import described
from bench.page import insert

RESULT = Path("docs/results/demo.json")
PAGES = [Path("README.md"), Path("docs/tutorial.md")]


def main():
    lines = Path("reports/demo.md").read_text().splitlines()
    found = {
        "machine": described("cpu"),
        "table": [line for line in lines if line.startswith("|")],
        "notes": [line for line in lines if line.startswith("- ")],
        "scores": json.loads(Path("reports/demo.json").read_text())["demo"],
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    for page in PAGES:
        insert(page, "demo-table", text(found))


def text(found: dict) -> str:
    machine = found["machine"]
    return "\n".join(
        [
            *found["table"],
            "",
            *found["notes"],
            "",
            f"Written by `python -m bench.tables` after `make demo` on {machine['processor']}, {machine['cores']} cores, PyTorch "
            f"{machine['torch']}.",
        ]
    )


if __name__ == "__main__":
    main()
