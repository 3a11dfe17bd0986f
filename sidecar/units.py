"""What is kept on one variant: where in a request it is, and how it is read.

Owns the kinds of units and what counts as one. Refuses to draw chance (the caller's bytes) and to
decide anything. Values are never decoded: a unit with invalid UTF-8 is a unit. Empty is no unit;
longer than UNIT_BYTES_MAX is an invalid one, which the processor says. Of several values the first
counts. What cannot be read is no unit, never an error.
"""

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, Protocol

from google.protobuf.struct_pb2 import Value

from turnout.contract import SESSION_COOKIE, SESSION_ID_HEX_DIGITS
from turnout.envoy.ext_proc_pb2 import ProcessingRequest
from turnout.v1alpha1.common_pb2 import JwtClaim, Session, Unit

RANDOM_UNIT_BYTES: Final = 16
SESSION_MAX_AGE_S: Final = 720 * 3600
JWT_AUTHN_NAMESPACE: Final = "envoy.filters.http.jwt_authn"
JWT_DEFAULT_HEADER: Final = "authorization"
# A longer token is not read; Envoy takes 60 KiB of headers by default.
JWT_BYTES_MAX: Final = 65_536
# Beyond it a Struct's numbers, which are doubles, are not exact: 2**53 may have been 2**53 + 1.
INTEGER_MAX: Final = 2**53 - 1
_BLANKS: Final = rb"[ \t\n\r\x0b\x0c]*"
_SESSION_ID: Final = re.compile(rb"[0-9a-f]{%d}\Z" % SESSION_ID_HEX_DIGITS)
_SURROGATE: Final = re.compile(f"[{chr(0xD800)}-{chr(0xDFFF)}]")
_ESCAPED: Final = re.compile(rb"%([0-9A-Fa-f]{2})")


class Request(NamedTuple):
    """A request as units are read from it.

    Attributes:
        headers: Values by name, repeated ones joined (see `requests`).
        first: First values of repeated names; None when no name is repeated.
        path: With its query.
        encoded: The ProcessingRequest.
    """

    headers: Mapping[str, bytes]
    first: Mapping[str, bytes] | None
    path: bytes
    encoded: bytes


class Taken(NamedTuple):
    """A unit that was read.

    Attributes:
        value: Empty = none.
        several: There were more; this is the first.
        issued: It is a new session's: the client must be told.
    """

    value: bytes
    several: bool = False
    issued: bool = False


_NOTHING: Final = Taken(b"")


class Source(Protocol):
    """Where an experiment's unit comes from."""

    def take(self, request: Request, random_unit: Callable[[], bytes]) -> Taken:
        """Read the unit of a request; `random_unit` draws RANDOM_UNIT_BYTES."""
        ...

    def describe(self) -> str:
        """The source in words."""
        ...


def source_of(unit: Unit) -> Source:
    """The source that a validated unit names."""
    if unit.header:
        return HeaderSource(unit.header)
    if unit.cookie:
        return CookieSource(unit.cookie)
    if unit.query_parameter:
        return QuerySource(unit.query_parameter)
    if unit.HasField("session"):
        return SessionSource(unit.session)
    if unit.HasField("jwt_claim"):
        claim = unit.jwt_claim
        return UnverifiedClaimSource(claim) if claim.unverified else ClaimSource(claim)
    return RandomSource()


class HeaderSource:
    """The value of a header."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def take(self, request: Request, random_unit: Callable[[], bytes]) -> Taken:
        """The header's value."""
        if request.first is not None and self.name in request.first:
            return Taken(request.first[self.name], several=True)
        return Taken(request.headers.get(self.name, b""))

    def describe(self) -> str:
        """In words."""
        return f"header {self.name}"


class RandomSource:
    """A fresh unit for each request."""

    __slots__ = ()

    def take(self, request: Request, random_unit: Callable[[], bytes]) -> Taken:
        """Bytes of the caller's."""
        return Taken(random_unit())

    def describe(self) -> str:
        """In words."""
        return "a random one for each request: the next may get another variant"


class CookieSource:
    """The value of a cookie (RFC 6265 section 5.4: pairs with ';' between them)."""

    __slots__ = ("_find", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        pattern = rb"(?:^|;)%b%b%b=([^;]*)" % (_BLANKS, re.escape(name.encode()), _BLANKS)
        self._find = re.compile(pattern).findall

    def take(self, request: Request, random_unit: Callable[[], bytes]) -> Taken:
        """The cookie's value."""
        values = self.values(request)
        return Taken(values[0], several=len(values) > 1) if values else _NOTHING

    def values(self, request: Request) -> list[bytes]:
        """All values of the cookie, in the order in which they came."""
        cookies = request.headers.get("cookie")
        return [value.strip() for value in self._find(cookies)] if cookies else []

    def describe(self) -> str:
        """In words."""
        return f"cookie {self.name}"


class SessionSource:
    """The value of a cookie that we issue when it is missing or not of our form."""

    __slots__ = ("_cookie", "max_age_s", "name")

    def __init__(self, session: Session) -> None:
        self.name = session.cookie or SESSION_COOKIE
        self.max_age_s = session.max_age.ToSeconds() or SESSION_MAX_AGE_S
        self._cookie = CookieSource(self.name)

    def take(self, request: Request, random_unit: Callable[[], bytes]) -> Taken:
        """The session's id, or a new one."""
        values = self._cookie.values(request)
        for value in values:
            # One that is not ours may stand before it: of a longer path, which ours cannot replace.
            if _SESSION_ID.match(value):
                return Taken(value, several=len(values) > 1)
        return Taken(random_unit().hex().encode(), issued=True)

    def describe(self) -> str:
        """In words."""
        return f"session cookie {self.name}"


class QuerySource:
    """The value of a parameter of the URL's query (application/x-www-form-urlencoded)."""

    __slots__ = ("_name", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self._name = name.encode()

    def take(self, request: Request, random_unit: Callable[[], bytes]) -> Taken:
        """The parameter's value."""
        query = request.path.partition(b"#")[0].partition(b"?")[2]
        if not query:
            return _NOTHING
        pairs = [pair.partition(b"=") for pair in query.split(b"&")]
        values = [value for name, _, value in pairs if _unescaped(name) == self._name]
        return Taken(_unescaped(values[0]), several=len(values) > 1) if values else _NOTHING

    def describe(self) -> str:
        """In words."""
        return f"query parameter {self.name}"


def _unescaped(text: bytes) -> bytes:
    text = text.replace(b"+", b" ")
    if b"%" not in text:
        return text
    return _ESCAPED.sub(lambda found: bytes((int(found[1], 16),)), text)


class ClaimSource:
    """A claim that Envoy's jwt_authn filter has verified and put into the metadata."""

    __slots__ = ("_last", "_parents", "_payload", "claim")

    def __init__(self, claim: JwtClaim) -> None:
        self.claim = claim.claim
        *self._parents, self._last = claim.claim.split(".")
        self._payload = claim.payload_in_metadata

    def take(self, request: Request, random_unit: Callable[[], bytes]) -> Taken:
        """The claim's value."""
        metadata = ProcessingRequest.FromString(request.encoded).metadata_context
        fields = metadata.filter_metadata[JWT_AUTHN_NAMESPACE].fields
        if self._payload not in fields:
            return _NOTHING
        fields = fields[self._payload].struct_value.fields
        # A claim's own name may have dots: https://example.com/user (RFC 7519 section 4.2).
        if self.claim in fields:
            return Taken(_claim_text(fields[self.claim]))
        for step in self._parents:
            if step not in fields:
                return _NOTHING
            fields = fields[step].struct_value.fields
        return Taken(_claim_text(fields[self._last])) if self._last in fields else _NOTHING

    def describe(self) -> str:
        """In words."""
        return f"verified claim {self.claim}"


def _claim_text(value: Value) -> bytes:
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        return value.string_value.encode()
    if kind == "bool_value":
        return b"true" if value.bool_value else b"false"
    return _integer_text(value.number_value) if kind == "number_value" else b""


def _integer_text(number: float) -> bytes:
    if -INTEGER_MAX <= number <= INTEGER_MAX and number == int(number):
        return b"%d" % int(number)
    return b""


class UnverifiedClaimSource:
    """A claim of a token that nobody has verified: the client may write what it likes."""

    __slots__ = ("_steps", "claim", "header")

    def __init__(self, claim: JwtClaim) -> None:
        self.claim = claim.claim
        self.header = claim.header or JWT_DEFAULT_HEADER
        self._steps = claim.claim.split(".")

    def take(self, request: Request, random_unit: Callable[[], bytes]) -> Taken:
        """The claim's value."""
        several = request.first is not None and self.header in request.first
        values = request.first if several else request.headers
        token = values.get(self.header, b"") if values is not None else b""
        if token[:7].lower() == b"bearer ":
            token = token[7:].strip()
        parts = token.split(b".")
        if len(token) > JWT_BYTES_MAX or len(parts) != 3:
            return Taken(b"", several)
        try:
            found = json.loads(_base64url(parts[1].rstrip(b"=")).decode())
        except (ValueError, RecursionError):  # binascii.Error and UnicodeError are ValueErrors
            return Taken(b"", several)
        whole = isinstance(found, dict) and self.claim in found
        for step in (self.claim,) if whole else self._steps:
            found = found.get(step) if isinstance(found, dict) else None
        return Taken(_json_text(found), several)

    def describe(self) -> str:
        """In words."""
        return f"claim {self.claim} of the token in {self.header}, which nobody has verified"


def _base64url(text: bytes) -> bytes:
    """Decoded base64url without padding.

    Raises:
        ValueError: It is not how its bytes are encoded: the decoder alone drops foreign letters.
    """
    found = urlsafe_b64decode(text + b"=" * (-len(text) % 4))
    if urlsafe_b64encode(found).rstrip(b"=") != text:
        raise ValueError("not base64url")
    return found


def _json_text(value: object) -> bytes:
    if isinstance(value, str):
        # A lone surrogate, which JSON can write, is no text.
        return b"" if _SURROGATE.search(value) else value.encode()
    if isinstance(value, bool):
        return b"true" if value else b"false"
    return _integer_text(value) if isinstance(value, int | float) else b""
