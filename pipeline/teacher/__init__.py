"""Stage one's values: what the `cache` holds, the same rows `online`, and the `parity` of the two."""
