"""A table that a benchmark writes into a page of docs/, between `<!-- begin: NAME -->` and `<!-- end -->`."""

from pathlib import Path


def insert(page: Path, name: str, text: str) -> None:
    begin, end = f"<!-- begin: {name} -->", "<!-- end -->"
    before, marker, rest = page.read_text().partition(begin)
    if not marker:
        raise SystemExit(f"Error: {page}: no table `{name}`; write {begin} and {end} where it belongs")
    page.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}")
