"""A key that came later is left out of records while it says what was done before."""

from dataclasses import dataclass
from typing import Annotated

import pytest

from pipeline import config, lookup
from pipeline.config import keys
from pipeline.files import plain
from pipeline.later import AddedLater, added_later, fill_in, leave_out


@dataclass(frozen=True, kw_only=True)
class Section:
    steps: int
    ema: Annotated[float, AddedLater(0.0)] = 0.0
    parts: Annotated[tuple[int, ...], AddedLater((1, 1))] = (2, 2)  # its default has changed since


class Model:
    def __init__(self, num_classes: int, *, width: int = 4, extra: Annotated[bool, AddedLater(False)] = False):
        pass


def test_a_record_leaves_a_later_key_out_while_it_has_its_old_value():
    assert plain({"a": Section(steps=3)}) == {"a": {"steps": 3, "parts": [2, 2]}}
    assert plain([Section(steps=3, ema=0.5, parts=(1, 1))]) == [{"steps": 3, "ema": 0.5}]
    assert leave_out({"width": 4, "extra": False}, Model) == {"width": 4}
    assert leave_out({"width": 4, "extra": True}, Model) == {"width": 4, "extra": True}


def test_what_a_record_leaves_out_is_filled_in_when_it_is_read():
    assert fill_in({"steps": 3}, Section) == {"steps": 3, "ema": 0.0, "parts": (1, 1)}
    assert fill_in({"width": 8, "extra": True}, Model) == {"width": 8, "extra": True}


def test_a_plug_in_leaves_out_its_classs_later_keys(monkeypatch):
    monkeypatch.setattr("pipeline.models.erfnet.Model", Model)
    student = config.Plugin(kind="models", name="erfnet", args={"width": 4, "extra": False})
    assert plain(student) == {"kind": "models", "name": "erfnet", "args": {"width": 4}}
    other = config.Plugin(kind="models", name="erfnet", args={"width": 4, "extra": True})
    assert plain(other) == {"kind": "models", "name": "erfnet", "args": {"width": 4, "extra": True}}


@pytest.mark.parametrize("kind, name", [(kind, name) for kind in lookup.KINDS for name in lookup.names(kind)])
def test_a_later_key_is_optional(kind, name):
    made = lookup.find_class(kind, name)
    found = keys.keys_of(made, config.INJECTED[kind])
    assert all(not found[later].required for later in added_later(made))
