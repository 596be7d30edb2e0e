"""File systems of a test's own: one that is full soon, one that is read-only."""

import contextlib
import shutil
import subprocess

import pytest


@contextlib.contextmanager
def mounted(*arguments, folder):
    """A mount for a while; the test is skipped where one may not mount."""
    folder.mkdir(exist_ok=True)
    if shutil.which("mount") is None or subprocess.run(["mount", *arguments, folder], capture_output=True).returncode:
        pytest.skip("needs leave to mount (root, and not in an ordinary container)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@contextlib.contextmanager
def read_only(folder):
    """The folder, bound to itself, read-only."""
    with mounted("--bind", folder, folder=folder):
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        yield
