"""Strict reading of TOML tables: unknown keys and wrong types are refused."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import tomli

SHIPPED = Path(__file__).parent / "tables"


class DataError(ValueError):
    """A user's mistake about data. The message is one line: what, where, and how to mend it."""


def nearest(word: str, known: Collection[str]) -> str:
    """A remedy for an unknown word: the nearest known one, else all of them."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"


def shipped_table(kind: str, name: str, where: str) -> dict[str, Any]:
    """The shipped table `tables/<kind>/<name>.toml`. Raises DataError for a name that is not shipped."""
    known = sorted(path.stem for path in (SHIPPED / kind).glob("*.toml"))
    if name not in known:
        raise DataError(f"{where}: no shipped table {name!r} in {kind}; {nearest(name, known)}")
    return tomli.loads((SHIPPED / kind / f"{name}.toml").read_text(encoding="utf-8"))


class Table:
    """One TOML table read strictly. `where` opens every message, e.g. `configs/own.toml [source]`."""

    def __init__(self, entries: Mapping[str, Any], known: Collection[str], where: str) -> None:
        if not isinstance(entries, Mapping):
            raise DataError(f"{where}: expected a table, found {entries!r}")
        for key in entries:
            if key not in known:
                raise DataError(f"{where}: unknown key {key!r}; {nearest(str(key), known)}")
        self.entries = entries
        self.where = where

    def __contains__(self, key: str) -> bool:
        return key in self.entries

    def wrong(self, key: str, expected: str) -> DataError:
        return DataError(f"{self.where}: {key} must be {expected}, found {self.entries.get(key)!r}")

    def required(self, *keys: str) -> None:
        for key in keys:
            if key not in self.entries:
                raise DataError(f"{self.where}: {key} is missing")

    def text(self, key: str, default: str) -> str:
        """A string; paths given by a program are taken too."""
        value = self.entries.get(key, default)
        if not isinstance(value, (str, os.PathLike)):
            raise self.wrong(key, "a string")
        return os.fspath(value)

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.entries.get(key, ())
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
            raise self.wrong(key, "a list of strings")
        return tuple(value)

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        value = self.entries.get(key, default)
        if not is_integer(value, low, high):
            raise self.wrong(key, f"an integer within {low}..{high}")
        return int(value)

    def integers(self, key: str, default: tuple[int, ...], low: int, high: int) -> tuple[int, ...]:
        value = self.entries.get(key, default)
        if not is_integers(value, low, high):
            raise self.wrong(key, f"a list of integers within {low}..{high}")
        return tuple(value)

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self.entries.get(key, {})
        if not isinstance(value, Mapping):
            raise self.wrong(key, "a table")
        return value


def is_integer(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_integers(value: Any, low: int, high: int) -> bool:
    return isinstance(value, (list, tuple)) and all(is_integer(item, low, high) for item in value)
