"""The report of an experiment: `results` reads what its runs left, `table` compares them, `charts` draws curves, `looks` runs the
networks for pictures, `page` puts all of it on one HTML page."""
