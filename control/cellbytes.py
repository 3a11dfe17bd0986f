"""Books of cells as bytes: what a checkpoint keeps. Pure.

Owns the format: a JSON head, then every array in the narrowest kind of number that holds it,
deflated. Refuses to know what the numbers mean (`control.cellbook`).
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_SIZE: Final = struct.Struct("<Q")
_ARRAY: Final = struct.Struct("<cI")
_COUNTS: Final = {b"b": "<u1", b"h": "<u2", b"i": "<u4", b"q": "<i8"}  # integers >= 0, as int64
_FLOATS, _HASHES = b"d", b"Q"
_KINDS: Final = {**_COUNTS, _FLOATS: "<f8", _HASHES: "<u8"}


@dataclass(frozen=True, slots=True)
class Frozen:
    """One book as it was: plain JSON, and arrays that nobody changes."""

    head: Mapping[str, Any]
    arrays: list[Array]


def pack(books: Mapping[str, Frozen]) -> bytes:
    """Books by experiment as bytes: equal books give equal bytes. Slow for big ones."""
    names = sorted(books)
    heads = [[name, books[name].head] for name in names]
    head = json.dumps(heads, sort_keys=True, separators=(",", ":")).encode()
    parts = [_SIZE.pack(len(head)), head]
    for name in names:
        for array in books[name].arrays:
            code = _code(array)
            parts += [_ARRAY.pack(code, len(array)), array.astype(_KINDS[code]).tobytes()]
    return zlib.compress(b"".join(parts), 1)


def unpack(data: bytes) -> tuple[list[tuple[str, Mapping[str, Any]]], Iterator[Array]]:
    """Experiments and heads of `pack`, and all arrays, in their order.

    Raises:
        ValueError: Not made by it; the iterator raises it, too.
    """
    try:
        plain = zlib.decompress(data)
        (size,) = _SIZE.unpack_from(plain)
        heads = json.loads(plain[_SIZE.size : _SIZE.size + size])
    except (zlib.error, struct.error) as error:
        raise ValueError(f"cells: {error}") from error
    return heads, _arrays(plain, _SIZE.size + size)


def _arrays(plain: bytes, place: int) -> Iterator[Array]:
    while place < len(plain):
        try:
            code, length = _ARRAY.unpack_from(plain, place)
            array = np.frombuffer(plain, _KINDS[code], length, place + _ARRAY.size)
        except (struct.error, KeyError) as error:
            raise ValueError(f"cells: {error}") from error
        place += _ARRAY.size + array.nbytes
        yield array.astype(np.int64) if code in _COUNTS else array.copy()


def _code(array: Array) -> bytes:
    """The narrowest kind of number that holds the array."""
    if array.dtype == np.float64:
        return _FLOATS
    if array.dtype == np.uint64:
        return _HASHES
    top = int(array.max(initial=0))
    narrow = (code for code, bits in ((b"b", 8), (b"h", 16), (b"i", 32)) if not top >> bits)
    return next(narrow, b"q")
