"""The notebook runs, and prints what it shows, numbers aside. To run it again and keep what it prints and draws:

    WRITE_NOTEBOOK=1 python -m pytest tests/test_notebook.py

Its cells are executed here in their order, without Jupyter: `!command` is a shell command, what a cell prints is its output, and so
is each open figure.
"""

import base64
import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_docs import shape

NOTEBOOK = Path(__file__).parents[1] / "examples/cache_as_dataset.ipynb"


def shell(command: str) -> None:
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    print(done.stdout + done.stderr, end="")


def figures() -> list[str]:
    from matplotlib import pyplot as plt

    found = []
    for number in plt.get_fignums():
        file = io.BytesIO()
        plt.figure(number).savefig(file, format="png", dpi=72)
        found.append(base64.b64encode(file.getvalue()).decode())
    plt.close("all")
    return found


def outputs_of(source: str, names: dict) -> list[dict]:
    """What a cell prints and draws, as a notebook keeps it."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(
            compile(re.sub(r"^!(.*)$", lambda line: f"shell({line[1]!r})", source, flags=re.MULTILINE), NOTEBOOK.name, "exec"),
            names,
        )
    printed = said.getvalue().splitlines(keepends=True)
    streams = [{"name": "stdout", "output_type": "stream", "text": printed}] if printed else []
    return streams + [
        {"data": {"image/png": png, "text/plain": ["<Figure>"]}, "metadata": {}, "output_type": "display_data"} for png in figures()
    ]


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """[(cell as it is kept, outputs of now)] of all code cells."""
    notebook = json.loads(NOTEBOOK.read_text())
    codes = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    before, names, found = os.getcwd(), {"__name__": "__main__", "shell": shell}, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLBACKEND", "agg")
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("notebook")))
        patch.setattr("tempfile.tempdir", None)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        figures()  # those that another test left open
        try:
            found = [(cell, outputs_of("".join(cell["source"]), names)) for cell in codes]
        finally:
            os.chdir(before)
    if os.environ.get("WRITE_NOTEBOOK"):
        for number, (cell, outputs) in enumerate(found, 1):
            cell.update(execution_count=number, outputs=outputs)
        NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    return found


def texts(outputs):
    return [shape(line) for output in outputs for line in output.get("text", [])]


def test_the_notebook_prints_and_draws_what_it_shows(cells):
    for cell, outputs in cells:
        assert texts(outputs) == texts(cell["outputs"]), "".join(cell["source"])
        assert [output["output_type"] for output in outputs] == [output["output_type"] for output in cell["outputs"]]
        assert cell["execution_count"]


def test_the_terms_that_it_names_fall(cells):
    said = "".join(cells[-1][1][0]["text"])
    terms = {
        name: (float(first), float(last)) for name, first, last in re.findall(r"^(\S+) +([\d.]+) -> ([\d.]+)$", said, re.MULTILINE)
    }
    assert len(terms) == 4 and all(terms[name][1] < terms[name][0] for name in ("cross-entropy", "attention", "KD")), said
