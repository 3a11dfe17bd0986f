"""What is refused in data and options, in one form: the field, its value, what to do instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Final

SHOWN_MAX: Final = 20  # names listed in a message


class BadInput(ValueError):
    """Data or an option that no honest number can be made of; the message says what to do."""


class Unreadable(BadInput):
    """A file that is not there or cannot be opened."""


def listed(names: Iterable[str]) -> str:
    """Names in a message, few enough to be read."""
    names = list(names)
    shown = ", ".join(repr(name) for name in names[:SHOWN_MAX])
    return shown + (f" and {len(names) - SHOWN_MAX} more" if len(names) > SHOWN_MAX else "")


def closest(name: str, known: Iterable[str]) -> str:
    """'; did you mean ...?' for a name that is nearly one of the known, else nothing."""
    names = {each.casefold(): each for each in known}
    found = difflib.get_close_matches(name.casefold(), names, n=1, cutoff=0.6)
    return f"; did you mean {names[found[0]]!r}?" if found else ""


def require_column(field: str, name: str, columns: Mapping[str, str]) -> str:
    """The column's name as the data spell it.

    Raises:
        BadInput: There is none; names the columns there are.
    """
    if name in columns:
        return name
    same = [column for column in columns if column.casefold() == name.casefold()]
    if len(same) == 1:
        return same[0]
    raise BadInput(
        f"{field}: {name!r}: no such column{closest(name, columns)} Columns: {listed(columns)}"
        if closest(name, columns)
        else f"{field}: {name!r}: no such column; columns: {listed(columns)}"
    )
