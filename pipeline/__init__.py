"""Offline distillation for semantic segmentation: run the teacher once, train students from its cached answers."""

import os
from typing import TYPE_CHECKING

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from pipeline.api import Cache, Record, collate, evaluate, make_loss, open_cache
    from pipeline.data import transforms
    from pipeline.losses.base import Batch
    from pipeline.models.base import Output

__all__ = ["Batch", "Cache", "Output", "PipelineError", "Record", "collate", "evaluate", "make_loss", "open_cache", "transforms"]
__version__ = "0.1.0"

if os.environ.get("PIPELINE_PLUGINS"):  # before anything is unpickled that one's own plug-ins made
    from pipeline.lookup import extend_search, own_folders

    extend_search(own_folders())


def __getattr__(name: str) -> object:
    """The Python API, which imports torch, when it is first asked for: `pipeline --help` needs none of it."""
    if name in __all__:
        from pipeline import api

        return getattr(api, name)
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
