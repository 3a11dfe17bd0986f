"""From the bytes of a ProcessingRequest to what the plan asks of it.

Owns decoding. Refuses what is not a request-headers message.

Two ways read the same bytes alike (`tests/properties/test_requests.py` holds them against each
other). `read_headers` has protobuf decode the message: four microseconds, most of them for Python
objects that nobody asks for. `Decoder` follows the bytes as Envoy writes them, checks every tag and
every length on its way, and gives up (None) at anything unusual, which the first way then decides.
What comes again and again is looked up whole: the outer lengths, the three pseudo-headers (see
`Page`), and what follows the headers.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from sidecar.assignment import Target
from sidecar.matching import Candidate, Matcher
from sidecar.predicates import REPEATED
from turnout.envoy.ext_proc_pb2 import HttpHeaders, ProcessingRequest

# Each remembers this many at most, and then begins anew.
PAGES_MAX: Final = 1_024  # about 1 KB each
PAGE_BYTES_MAX: Final = 1_024  # a longer one is looked up each time
HEADS_MAX: Final = 4_096  # 0.2 KB
NAMES_MAX: Final = 512
TAILS_MAX: Final = 64
TAIL_BYTES_MAX: Final = 64  # a longer one has something of the request in it

_HEADERS: Final = 0x0A  # HeaderMap.headers, HeaderValue.key, HttpHeaders.headers: field 1, bytes
_REQUEST_HEADERS: Final = 0x12
_RAW_VALUE: Final = 0x1A
_LONG: Final = 0x80  # a varint of more than one byte


class MalformedRequest(ValueError):
    """The peer sent what is not a ProcessingRequest with request headers."""


class Page:
    """What host, method and path say: the same for all requests to one page of one target.

    Attributes:
        path: With its query.
        candidates: Targets that fit as far as that; the first whose test holds is the one.
        target: It, when it has no test to hold.
    """

    __slots__ = ("candidates", "path", "target")

    def __init__(
        self, matcher: Matcher[Target], authority: bytes, method: bytes | None, path: bytes
    ) -> None:
        self.path = path
        self.candidates: tuple[Candidate[Target], ...] = matcher.candidates(authority, method, path)
        certain = bool(self.candidates) and self.candidates[0].test is None
        self.target = self.candidates[0].target if certain else None


class Decoded(NamedTuple):
    """A request as decoded.

    Attributes:
        page: What host, method and path say.
        headers: Values by lower-case name, repeated ones joined.
        first: First values of repeated names; None when no name is repeated.
    """

    page: Page
    headers: Mapping[str, bytes]
    first: Mapping[str, bytes] | None


def read_headers(request: bytes) -> tuple[dict[str, bytes], dict[str, bytes] | None]:
    """Values by name, repeated ones joined; and the first value of each repeated name.

    Raises:
        MalformedRequest: The bytes are not a ProcessingRequest with request headers.
    """
    try:
        message = ProcessingRequest.FromString(request)
    except DecodeError as error:
        raise MalformedRequest("not an encoded ProcessingRequest") from error
    if not message.HasField("request_headers"):
        phase = message.WhichOneof("request") or "nothing"
        raise MalformedRequest(f"no request headers but {phase}")
    headers: dict[str, bytes] = {}
    first: dict[str, bytes] | None = None
    for header in message.request_headers.headers.headers:
        name = header.key
        if name not in headers:
            headers[name] = header.raw_value
            continue
        if first is None:
            first = {}
        first.setdefault(name, headers[name])
        # RFC 9113 section 8.2.3 for cookies; the others are looked at one by one (`predicates`).
        separator = b"; " if name == "cookie" else REPEATED
        headers[name] += separator + header.raw_value
    return headers, first


def page_of(
    matcher: Matcher[Target], headers: Mapping[str, bytes], first: Mapping[str, bytes] | None = None
) -> Page:
    """The page that decoded headers name; of a repeated pseudo-header, the first one says it."""
    if first is not None:
        headers = {**headers, **first}
    path = headers.get(":path", b"/")
    return Page(matcher, headers.get(":authority", b""), headers.get(":method"), path)


class Decoder:
    """Reads what Envoy writes, for one plan."""

    __slots__ = ("_heads", "_matcher", "_names", "_pages", "_tails")

    def __init__(self, matcher: Matcher[Target]) -> None:
        self._matcher = matcher
        # First six bytes -> where the header map begins and ends, and the end of HttpHeaders.
        self._heads: dict[bytes, tuple[int, int, int]] = {}
        # The bytes of three pseudo-headers.
        self._pages: dict[bytes, Page] = {}
        # Tag, length and bytes of a key, and the tag of the value -> the key.
        self._names: dict[bytes, str] = {}
        # What follows the header map -> how many bytes of it belong to HttpHeaders.
        self._tails: dict[bytes, int] = {}

    def read(self, data: bytes) -> Decoded:
        """Decode a request.

        Raises:
            MalformedRequest: The bytes are not a ProcessingRequest with request headers.
        """
        found = self.quick(data)
        if found is not None:
            return Decoded(*found, None)
        headers, first = read_headers(data)
        return Decoded(page_of(self._matcher, headers, first), headers, first)

    def quick(self, data: bytes) -> tuple[Page, dict[str, bytes]] | None:
        """Page and other headers of a request as Envoy writes it; None = not looked at.

        Of names that are repeated nothing is said: such a request is not looked at either.
        """
        try:
            head = self._heads.get(data[:6]) or self._learn_head(data)
            if head is None:
                return None
            at, end, stop = head
            if stop > len(data):
                # Cut short, and a longer one began alike: slices would not notice.
                return None
            if self._tails.get(data[end:]) != stop - end and not self._learn_tail(data, end, stop):
                return None
            third = at + 2 + data[at + 1]
            third += 2 + data[third + 1]
            after = third + 2 + data[third + 1]
            page = self._pages.get(data[at:after])
            if page is None:
                learnt = self._learn_page(data, at, end)
                if learnt is None:
                    return None
                page, after = learnt
            names = self._names
            headers: dict[str, bytes] = {}
            count = 0
            while after < end:
                place = after + 5 + data[after + 3]
                length = data[after + 1]
                name = names.get(data[after + 2 : place])
                next_ = after + 2 + length
                if (
                    name is None
                    or length >= _LONG
                    or data[after] != _HEADERS
                    or place + 1 + data[place] != next_
                ):
                    entry = self._entry(data, after, end)
                    if entry is None:
                        return None
                    name, value, after = entry
                    if name.startswith(":"):
                        return None
                    headers[name] = value
                else:
                    headers[name] = data[place + 1 : next_]
                    after = next_
                count += 1
        except IndexError:
            return None
        return (page, headers) if after == end and len(headers) == count else None

    # -- What is seen for the first time, or seldom -----------------------------------------------

    def _learn_head(self, data: bytes) -> tuple[int, int, int] | None:
        outer = _field(data, 0, len(data), _REQUEST_HEADERS)
        inner = _field(data, outer[0], outer[1], _HEADERS) if outer is not None else None
        if outer is None or inner is None:
            return None
        head = (inner[0], inner[1], outer[1])
        if inner[0] <= 6:
            _remember(self._heads, HEADS_MAX, data[:6], head)
        return head

    def _learn_tail(self, data: bytes, end: int, stop: int) -> bool:
        """Whether nothing of what follows the header map is about request headers."""
        if len(data) < stop:
            return False
        if len(data) == end:
            return True  # never remembered: a message that was cut short would look the same
        try:
            inner = HttpHeaders.FromString(data[end:stop])
            outer = ProcessingRequest.FromString(data[stop:])
        except DecodeError:
            return False
        if inner.HasField("headers") or outer.WhichOneof("request") is not None:
            return False
        if len(data) - end <= TAIL_BYTES_MAX:
            _remember(self._tails, TAILS_MAX, data[end:], stop - end)
        return True

    def _learn_page(self, data: bytes, at: int, end: int) -> tuple[Page, int] | None:
        values: dict[str, bytes] = {}
        after = at
        for _ in range(3):
            entry = self._entry(data, after, end)
            if entry is None:
                return None
            name, values[name], after = entry
        page = self._pages.get(data[at:after])
        if page is None:
            if values.keys() != {":authority", ":method", ":path"}:
                return None
            page = page_of(self._matcher, values)
            if after - at <= PAGE_BYTES_MAX:
                _remember(self._pages, PAGES_MAX, data[at:after], page)
        return page, after

    def _entry(self, data: bytes, at: int, end: int) -> tuple[str, bytes, int] | None:
        """One entry of the header map: key and raw_value, in this order, and nothing else."""
        outer = _field(data, at, end, _HEADERS)
        key = _field(data, outer[0], outer[1], _HEADERS) if outer is not None else None
        if outer is None or key is None:
            return None
        value = _field(data, key[1], outer[1], _RAW_VALUE)
        if value is None or value[1] != outer[1]:
            return None
        try:
            name = data[key[0] : key[1]].decode()
        except UnicodeDecodeError:
            return None
        if not name.startswith(":") and key[0] == outer[0] + 2:
            _remember(self._names, NAMES_MAX, data[outer[0] : key[1]] + b"\x1a", name)
        return name, data[value[0] : value[1]], value[1]


def _field(data: bytes, at: int, end: int, tag: int) -> tuple[int, int] | None:
    """Where a length-delimited field's content begins and ends; lengths of one or two bytes."""
    if data[at] != tag:
        return None
    length, start = data[at + 1], at + 2
    if length >= _LONG:
        high = data[start]
        if not 0 < high < _LONG:
            return None
        length, start = length & 0x7F | high << 7, start + 1
    return (start, start + length) if start + length <= end else None


def _remember(known: dict, limit: int, key: bytes, value: object) -> None:  # type: ignore[type-arg]
    if len(known) >= limit:
        known.clear()
    known[key] = value
