"""The card of a store: under which terms its data and its teacher may be used. It is printed, shared with the store, and demanded
before the store is published; it is no part of the identity, so a store without one stays valid.

<store>/card.json is sealed JSON: {"format": 1, "store": digest, "card": {"data": {"licence": ..., ...}, "teacher": {...}}}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.errors import StoreError
from pipeline.store.files import FORMAT, append_history, check_and_parse, locked, read, with_checksum, write

if TYPE_CHECKING:
    from pipeline.store.store import Store

CARD = "card.json"
KEYS = ("licence", "citation", "terms")
Card = dict[str, dict[str, str]]  # part -> key -> one line of text


def parts(store: Store) -> tuple[str, ...]:
    """Whose terms count: prepared images are the data's, targets are the data's and the teacher's."""
    return ("data",) if store.kind == "prepared" else ("data", "teacher")


def read_card(store: Store) -> Card:
    """What is noted so far. Raises StoreError if the file is damaged, or no card."""
    path = store.path(CARD)
    if not path.exists():
        return {}
    content = check_and_parse(read(path), path)
    card: Any = content.get("card")
    if content.get("store") != store.identity["digest"] or not is_card(card):
        raise StoreError(f"{path}: is no card of this store; remove it, and write it again with `pipeline cache card`")
    return card


def is_card(card: object) -> bool:
    return isinstance(card, dict) and all(
        part in ("data", "teacher")
        and isinstance(entries, dict)
        and all(key in KEYS and isinstance(text, str) and text == one_line(text) for key, text in entries.items())
        for part, entries in card.items()
    )


def one_line(text: str) -> str:
    """Without line breaks, and without characters that a terminal might obey."""
    return "".join(letter for letter in " ".join(text.split()) if letter.isprintable())


def write_card(store: Store, changes: Mapping[str, Mapping[str, str]]) -> Card:
    """The card with these texts; an empty one strikes its entry."""
    with locked(store.folder):
        before = read_card(store)
        merged = {part: {**before.get(part, {}), **changes.get(part, {})} for part in parts(store)}
        card = {part: {key: line for key, text in entries.items() if (line := one_line(text))} for part, entries in merged.items()}
        if card != before:
            content = {"format": FORMAT, "store": store.identity["digest"], "card": card}
            write([(store.path(CARD), with_checksum(content))])
            append_history(store.folder, "card")
    return card


def lacking(store: Store) -> list[str]:
    """What must be noted before the store is published: "data.licence"."""
    card = read_card(store)
    return [f"{part}.{key}" for part in parts(store) for key in KEYS if not card.get(part, {}).get(key)]


def in_lines(store: Store) -> list[str]:
    """A line for each entry, and one for those that lack."""
    card = read_card(store)
    found = [f"{part} {key}: {card[part][key]}" for part in parts(store) for key in KEYS if card.get(part, {}).get(key)]
    without = lacking(store)
    return [*found, *([f"not noted: {', '.join(without)} (`pipeline cache card` does)"] if without else [])]
