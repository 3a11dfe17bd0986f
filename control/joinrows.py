"""Rows of the joiner, packed in a ring: a checkpoint of them is one copy of memory. Pure.

Owns their layout, order and index. Refuses to know what a row means.
"""

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple, Self

NO_GROUP: Final = 0xFFFFFFFF
_ROW = struct.Struct("<QQqIQQQqH24sdd")
_ROW_1 = struct.Struct("<QQqIQQQqB24s")  # before scores and costs
_REQUEST = struct.Struct(f"<Q{_ROW.size - 8}x")
_CAPACITY_MIN: Final = 1024


class Row(NamedTuple):
    """What is known of one request; 0 = nothing.

    Attributes:
        request: Hash of its id.
        unit: Hash of its unit.
        time_ms: When it was, unix milliseconds.
        group: Index of its exposure's key, NO_GROUP = not exposed.
        prediction, shadow, label: Hashes of the served answer, the copy's and the truth.
        seen_ms: When the row was made, by the control plane's clock.
        flags: The joiner's.
        trace: Ids of a trace (16 bytes) and of a span in it (8).
        score, cost: As a span told; the flags say whether one did.
    """

    request: int
    unit: int = 0
    time_ms: int = 0
    group: int = NO_GROUP
    prediction: int = 0
    shadow: int = 0
    label: int = 0
    seen_ms: int = 0
    flags: int = 0
    trace: bytes = b""
    score: float = 0.0
    cost: float = 0.0


class Ring:
    """Rows by request, oldest first."""

    def __init__(self) -> None:
        self._capacity = _CAPACITY_MIN
        self._buffer = bytearray(self._capacity * _ROW.size)
        self._places: dict[int, int] = {}  # request -> place; places grow, and wrap in the buffer
        self._first = self._next = 0

    def __len__(self) -> int:
        return len(self._places)

    def get(self, request: int) -> Row | None:
        """The request's row."""
        place = self._places.get(request)
        return None if place is None else self._at(place)

    def put(self, row: Row) -> None:
        """Replaces the row of this request where it is, or appends it as the youngest."""
        place = self._places.get(row.request)
        if place is None:
            if self._next - self._first == self._capacity:
                self._make_room()
            place = self._next
            self._next += 1
            self._places[row.request] = place
        _ROW.pack_into(self._buffer, place % self._capacity * _ROW.size, *row)

    def remove(self, request: int) -> None:
        """Takes the request's row out; raises KeyError when there is none."""
        del self._places[request]  # the packed row stays until its place is the first

    def oldest(self) -> Row | None:
        """The row that was appended first."""
        while self._first < self._next:
            row = self._at(self._first)
            if self._places.get(row.request) == self._first:
                return row
            self._first += 1
        return None

    def __iter__(self) -> Iterator[Row]:
        for place in range(self._first, self._next):
            row = self._at(place)
            if self._places.get(row.request) == place:
                yield row

    def to_bytes(self) -> bytes:
        """All rows, oldest first: equal rows give equal bytes."""
        self.oldest()  # passes over removed rows at the front
        if len(self._places) != self._next - self._first:
            return b"".join(_ROW.pack(*row) for row in self)
        size, capacity = _ROW.size, self._capacity
        first = self._first % capacity
        after = first + len(self._places)
        head = self._buffer[first * size : min(after, capacity) * size]
        return bytes(head + self._buffer[: max(0, after - capacity) * size])

    @classmethod
    def from_bytes(cls, data: bytes, *, version: int = 2) -> Self:
        """The ring of `to_bytes`.

        Args:
            data: What it gave.
            version: Of the rows: 1 had no scores and costs.

        Raises:
            ValueError: Not made by it.
        """
        if version == 1:
            if len(data) % _ROW_1.size:
                raise ValueError(f"{len(data)} bytes, must be a multiple of {_ROW_1.size}")
            data = b"".join(_ROW.pack(*row, 0.0, 0.0) for row in _ROW_1.iter_unpack(data))
        if len(data) % _ROW.size:
            raise ValueError(f"{len(data)} bytes, must be a multiple of {_ROW.size}")
        ring = cls()
        ring._load(data)
        return ring

    def _load(self, packed: bytes) -> None:
        """Becomes these rows, with at least as much room again."""
        count = len(packed) // _ROW.size
        self._capacity = max(_CAPACITY_MIN, 1 << (2 * count - 1).bit_length() if count else 0)
        self._buffer = bytearray(self._capacity * _ROW.size)
        self._buffer[: len(packed)] = packed
        self._places = {
            request: place for place, (request,) in enumerate(_REQUEST.iter_unpack(packed))
        }
        self._first, self._next = 0, count

    def _make_room(self) -> None:
        self._load(self.to_bytes())

    def _at(self, place: int) -> Row:
        return Row._make(_ROW.unpack_from(self._buffer, place % self._capacity * _ROW.size))
