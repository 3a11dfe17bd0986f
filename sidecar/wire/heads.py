"""Header blocks: their decoding by the `hpack` library, and what they say of a request.

Owns the rules of RFC 9113 section 8.2 and 8.3 and when a block need not be decoded. Refuses to know
any method: `calls` does.

Our SETTINGS ask for a header table of size 0. From the first block on that obeys, a block cannot
change the decoder, so the same bytes always mean the same, and decoding can be skipped: for a block
seen before, and, on the fast path, for one that begins with a learned method and path
(`83 04 <length> <path>`: :method POST, then :path, never indexed) - what follows there, like a
trace id, differs from request to request and means nothing for a request that is whole. So what is
wrong with the rest of such a block is not found either; it harms nobody but its sender.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import hpack
from hpack.exceptions import HPACKError, OversizedHeaderListError

from sidecar.wire.frames import ConnectionFault, ErrorCode
from sidecar.wire.limits import HEADER_LIST_BYTES_MAX, PREFIXES_MAX

_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
# Section 8.2.1: no NUL, CR or LF anywhere, no blank at either end.
_VALUE: Final = re.compile(rb"(?:[^\0\r\n \t](?:[^\0\r\n]*[^\0\r\n \t])?)?")
_DIGITS: Final = re.compile(rb"[0-9]{1,18}")
_CONNECTION_NAMES: Final = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade")
)
_PSEUDO: Final = frozenset((b":method", b":scheme", b":path", b":authority"))
_REQUIRED: Final = (b":method", b":scheme", b":path")
# Section 8.5: these and no others.
_OF_CONNECT: Final = frozenset((b":method", b":authority"))
_POST_AND_PATH: Final = b"\x83\x04"


class Malformed(ValueError):
    """The header list is no request (section 8.1.1): a stream error."""


class Head(NamedTuple):
    """What a request's headers say.

    Attributes:
        method: Of HTTP.
        path: As given.
        length: Of the body, by content-length; -1 = not said.
        content_type: b"" = not said.
        encoding: grpc-encoding, b"" = not said.
        timeout: grpc-timeout as given, b"" = none.
    """

    method: bytes
    path: bytes
    length: int
    content_type: bytes
    encoding: bytes
    timeout: bytes


class HeaderDecoder:
    """The decoder of one connection."""

    def __init__(self, *, strict: bool) -> None:
        """Decode everything when `strict`."""
        self._decoder = hpack.Decoder(HEADER_LIST_BYTES_MAX)
        self._strict = strict
        self._known: dict[bytes, Head] = {}
        self._asked = False
        self.prefixes: tuple[bytes, ...] = ()
        # A block must be as long as the longest to be recognised by any.
        self.prefix_bytes = 0

    def acknowledged(self) -> None:
        """The peer has our SETTINGS: its next block must shrink its table to nothing."""
        if not self._strict and not self._asked:
            self._asked = True
            self._decoder.max_allowed_table_size = 0

    @property
    def skippable(self) -> bool:
        """Whether no block can change the decoder any more."""
        return self._asked and self._decoder.header_table_size == 0

    def known(self, block: bytes) -> Head | None:
        """What a block says that was decoded before."""
        return self._known.get(block)

    def decode(self, block: bytes) -> list[tuple[bytes, bytes]]:
        """All header fields of a block.

        Raises:
            ConnectionFault: The block, and with it the connection's table, is broken, or too large.
        """
        try:
            return [(bytes(f[0]), bytes(f[1])) for f in self._decoder.decode(block, raw=True)]
        except OversizedHeaderListError as error:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header list too large") from error
        except (HPACKError, IndexError, ValueError, TypeError) as error:
            # The library lets some of Python's own errors through.
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, "bad header block") from error

    def remember(self, block: bytes, head: Head) -> None:
        """Skip this very block from now on, if that is safe."""
        if self.skippable and len(self._known) < PREFIXES_MAX:
            self._known[block] = head

    def learn(self, block: bytes) -> None:
        """Skip what begins like this block from now on, if that is safe."""
        if not self.skippable or not block.startswith(_POST_AND_PATH):
            return
        length = block[2] & 0x7F
        if length == 0x7F or len(self.prefixes) >= PREFIXES_MAX:
            return  # A path of 127 bytes and more has a longer length; none of ours has.
        prefix = block[: 3 + length]
        if len(block) >= 3 + length and prefix not in self.prefixes:
            self.prefixes = (*self.prefixes, prefix)
            self.prefix_bytes = max(map(len, self.prefixes))


def head_of(fields: list[tuple[bytes, bytes]]) -> Head:
    """Read a request's header list.

    Raises:
        Malformed: Something of section 8.2 or 8.3 is broken.
    """
    _check(fields)
    pseudo: dict[bytes, bytes] = {}
    regular: dict[bytes, bytes] = {}
    for name, value in fields:
        if name.startswith(b":"):
            if regular or name in pseudo or name not in _PSEUDO:
                raise Malformed("a pseudo-header that is late, twice, or unknown")
            pseudo[name] = value
        elif name == b"content-length" and regular.get(name, value) != value:
            raise Malformed("two content-lengths")
        else:
            regular.setdefault(name, value)
    if pseudo.get(b":method") == b"CONNECT":
        if pseudo.keys() != _OF_CONNECT or not pseudo[b":authority"]:
            raise Malformed("a CONNECT has other pseudo-headers")
    elif any(not pseudo.get(name) for name in _REQUIRED):
        raise Malformed("a pseudo-header is missing or empty")
    return Head(
        method=pseudo[b":method"],
        path=pseudo.get(b":path", b""),
        length=_length(regular.get(b"content-length")),
        content_type=regular.get(b"content-type", b""),
        encoding=regular.get(b"grpc-encoding", b""),
        timeout=regular.get(b"grpc-timeout", b""),
    )


def check_trailers(fields: list[tuple[bytes, bytes]]) -> None:
    """Read what ends a request (section 8.1).

    Raises:
        Malformed: Something of section 8.2 is broken, or there is a pseudo-header.
    """
    _check(fields)
    if any(name.startswith(b":") for name, _ in fields):
        raise Malformed("a pseudo-header in trailers")


def _check(fields: list[tuple[bytes, bytes]]) -> None:
    for name, value in fields:
        if not _NAME.fullmatch(name.removeprefix(b":")) or not _VALUE.fullmatch(value):
            raise Malformed("a name or value with forbidden characters")
        if name in _CONNECTION_NAMES or (name == b"te" and value != b"trailers"):
            raise Malformed("a header of HTTP/1.1 connections")


def _length(value: bytes | None) -> int:
    if value is None:
        return -1
    if not _DIGITS.fullmatch(value):
        raise Malformed("a content-length that is no number")
    return int(value)
