"""What a benchmark needs beyond the pipeline itself: the extra `bench`."""

import importlib.util


def need(*modules: str) -> None:
    """Ends the program with one line if one of these is not installed."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise SystemExit(f"Error: this benchmark needs {' and '.join(missing)}; run `pip install -e '.[bench]'` in the checkout")
