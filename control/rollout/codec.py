"""Frozen dataclasses <-> canonical JSON.

Owns one encoding: keys sorted, no white space, NaN and infinity refused. Equal values give equal
bytes, so that a decision can be replayed and compared byte for byte. Refuses unknown and missing
fields; only a field that is `added` may be missing, and is while it has its default, so that what
was written before there was such a field reads and writes as ever.
"""

import dataclasses
import json
import types
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")
Json = dict[str, "Json"] | list["Json"] | str | int | float | bool | None


_ADDED = "added"
ADDED = types.MappingProxyType({_ADDED: True})
"""Metadata of a dataclass's field that older texts do not have."""


class CorruptJson(ValueError):
    """The text is not an encoding of the type asked for."""


def to_json(value: object) -> str:
    """Canonical JSON of a frozen dataclass (or a tuple, dict or scalar of such)."""
    return json.dumps(
        to_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False
    )


def from_json(kind: type[T], text: str | bytes) -> T:
    """The value whose canonical JSON this is.

    Raises:
        CorruptJson: Not JSON, an unknown or missing field, or a value of another type.
    """
    try:
        plain = json.loads(text)
    except ValueError as error:
        raise CorruptJson(f"not JSON: {error}") from error
    return from_plain(kind, plain)


def to_plain(value: object) -> Json:
    """Lists, dicts and scalars."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: to_plain(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if _ADDED not in f.metadata or getattr(value, f.name) != f.default
        }
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    if isinstance(value, StrEnum):
        return str(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"no JSON for {type(value).__name__}")


def from_plain(kind: type[T], plain: object) -> T:
    """The typed value of lists, dicts and scalars.

    Raises:
        CorruptJson: An unknown or missing field, or a value of another type.
    """
    return cast("T", _decode(kind, plain))


def _decode(kind: Any, plain: object) -> object:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if plain is None and type(None) in arguments:
            return None
        (kind,) = [a for a in arguments if a is not type(None)]
        return _decode(kind, plain)
    if origin is tuple:
        return _decode_tuple(arguments, plain)
    if origin is dict:
        _expect(isinstance(plain, dict), kind, plain)
        return {k: _decode(arguments[1], v) for k, v in cast("dict[str, object]", plain).items()}
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(cast("type", kind), plain)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        try:
            return kind(cast("str", plain))
        except ValueError as error:
            raise CorruptJson(str(error)) from error
    if kind is float and type(plain) in (int, float):
        return float(cast("float", plain))
    _expect(type(plain) is kind, kind, plain)
    return plain


def _decode_tuple(arguments: tuple[Any, ...], plain: object) -> tuple[object, ...]:
    _expect(isinstance(plain, list), tuple, plain)
    items = cast("list[object]", plain)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_decode(arguments[0], item) for item in items)
    _expect(len(items) == len(arguments), tuple, plain)
    return tuple(_decode(a, item) for a, item in zip(arguments, items, strict=True))


def _decode_dataclass(kind: type, plain: object) -> object:
    _expect(isinstance(plain, dict), kind, plain)
    hints = _hints(kind)
    fields = cast("dict[str, object]", plain)
    odd = sorted((fields.keys() ^ hints.keys()) - (_added(kind) - fields.keys()))
    if odd:
        raise CorruptJson(f"{kind.__name__}: unknown or missing fields {', '.join(odd)}")
    return kind(**{name: _decode(hints[name], item) for name, item in fields.items()})


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind)}


@cache
def _added(kind: type) -> frozenset[str]:
    return frozenset(f.name for f in dataclasses.fields(kind) if _ADDED in f.metadata)


def _expect(condition: bool, kind: object, plain: object) -> None:
    if not condition:
        raise CorruptJson(f"expected {kind}, found {type(plain).__name__}")
