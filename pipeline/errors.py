"""What the user can mend. Each message says where, what, and what to do; the command line prints it without a traceback."""

from typing import Any


class PipelineError(Exception):
    """Base of the errors a user can mend; exit code 1."""


class ConfigError(PipelineError):
    """The YAML file, or a name in it, is wrong."""


class DatasetError(PipelineError):
    """A file of the dataset is missing, unreadable, or not what its layout promises."""


class StoreError(PipelineError):
    """A store (prepared data or cache) is missing, incomplete, damaged, or was made from something else."""


class NoStore(StoreError):
    """There is no store of this kind and dataset below the root."""


class OtherStore(StoreError):
    """There are stores, and each was made from something else; `apart` says what differs in the nearest, which is `folder`."""

    def __init__(self, message: str, folder: Any, apart: list[str]):
        super().__init__(message)
        self.folder, self.apart = folder, apart


class CodeChanged(StoreError):
    """A target's code is not what its rows were stored by, while its version is."""
