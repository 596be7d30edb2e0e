"""The report of an experiment: `results` reads what its runs left, `table` compares them, `charts` draws curves,
`feature_pictures` runs the networks, `page` puts all of it on one HTML page. And `study`: arms and seeds, with
`statistics` of their difference; `record_pictures` draws one record of a cache."""
