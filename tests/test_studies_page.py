"""Tables of docs/study.md, docs/study-results.md and docs/studies/*.md say what the scores beside them say."""

import re

import numpy as np
import pytest

from bench import studies
from bench.studies import STUDIES, scores

ROW = re.compile(r"^\| (\w+) \| (\d+) \| ([\d.]+) \| ([\d.]*)", re.MULTILINE)
PAGE = studies.RESULTS.read_text()
SECTION = re.compile(r"<!-- begin: ([\w-]+) -->(.*?)<!-- end -->", re.DOTALL)
SECTIONS = {name.removesuffix("-table"): text for name, text in SECTION.findall(PAGE)}


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.tsv")), ids=lambda path: path.stem)
def test_means_and_spreads_are_those_of_the_cells(path):
    own = path.with_suffix(".md")
    if not own.exists() and path.stem not in SECTIONS:
        pytest.skip("weights chosen on val: a table of another form")
    text = own.read_text() if own.exists() else SECTIONS[path.stem]
    found, first = scores(path.stem), text.split("On `test/")[0]  # a page may have more splits
    rows = [row for row in ROW.findall(first) if row[1] != "0"]
    assert rows
    for arm, seeds, mean, sd in rows:
        values = found[arm]
        assert int(seeds) == len(values)
        assert float(mean) == pytest.approx(np.mean(values), abs=0.006)  # the cells are rounded too
        assert float(sd or 0) == pytest.approx(np.std(values, ddof=1) if len(values) > 1 else 0, abs=0.006)


def test_the_page_shows_the_answers_of_the_scores():
    shown = studies.PAGE.read_text().partition("<!-- begin: answers -->\n")[2].partition("\n<!-- end -->")[0]
    assert shown == studies.answers()
