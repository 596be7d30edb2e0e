"""The report of an experiment: a page to look at, a table to quote, and numbers for `dvc metrics`.

Reads files and runs no network, unless it is asked for pictures; those imports wait until then.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pipeline.config import Config
from pipeline.files import write_json, write_text
from pipeline.reporting import page, results, table


def run(
    config: Config,
    *,
    scores: Path,
    runs: Path,
    cache_reports: Sequence[Path],
    latency: Path,
    root: Path,
    weights_files: Mapping[str, Path],
    out: Path,
    device: str | None,
    projection: str = "pca",
) -> str:
    """`weights_files`: the teachers', by the names of their scores. Writes <name>.md, <name>.json and <name>.html into the folder
    `out`; where a `device` is given, to run networks on,
    <name>-pictures.html in the place of the last, with features by `projection`. Returns the table, and where the page is."""
    name, dataset, students, evaluate = config.name, config.dataset, config.students, config.evaluate
    methods = dict(sorted(config.methods.items(), key=lambda item: bool(item[1])))  # the baseline first
    found = results.read(scores, runs, weights_files, students, methods)
    teachers = dict(zip(weights_files, (one.teacher for one in config.by_teacher.values())))
    given = all(one.checkpoint is not None for one in teachers.values()) or config.teacher_training is None
    lines, notes = table.lines(found, found.metric, methods, given)
    pictures = None
    if device is not None:
        from pipeline.reporting import feature_pictures

        pictures = feature_pictures.draw_networks(config, found, runs, next(iter(weights_files.values())), device, projection)
    text = table.markdown(found, lines, notes)
    write_text(out / f"{name}.md", text + "\n")
    write_json(out / f"{name}.json", {name: table.summary(found, lines)})
    page_file = out / f"{name}{'' if pictures is None else '-pictures'}.html"
    cached = next(filter(None, (results.all_cached(cache_reports, root, home) for home in dataset.homes)), None)
    write_text(
        page_file,
        page.render(
            name=name,
            dataset=dataset.title or dataset.name,
            teachers=teachers,
            split=evaluate.split,
            results=found,
            lines=lines,
            notes=notes,
            methods=methods,
            cached=cached,
            latencies=results.latencies(
                latency, {name: one.model for name, one in teachers.items()} | students, evaluate.window or config.prepare.size
            ),
            written=datetime.now(UTC).date(),
            settings=config.text,
            pictures=pictures,
        ),
    )
    return f"{text}\n\n{page_file}"
