"""Force tokens and hop marks: who may say what becomes of a request.

Owns their verification, and the making of hop marks; `turnout.contract` has the formats and
`tests/vectors/tokens.json` fixes them. Refuses everything that is not exactly of the format: what
is forged, out of date or of another tenant is None, never an error. Tokens are made by the control
plane.
"""

import binascii
import hashlib
import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Final, NamedTuple

from turnout.contract import (
    CLOCK_SKEW_S,
    FORCE_MAC_BYTES,
    FORCE_PERSON,
    FORCE_SECONDS_MAX,
    FORCE_SEPARATOR,
    FORCE_TOKEN_BYTES_MAX,
    FORCE_VERSION,
    HOP_MAC_BYTES,
    HOP_PERSON,
    HOP_SECONDS_MAX,
)

# Verified tokens that are remembered, about 1 KB each: whoever holds one sends it again and again.
REMEMBERED_MAX: Final = 1_024
_FIELDS: Final = 6
_SECONDS: Final = re.compile(r"[0-9]{1,15}\Z")
_HOP: Final = re.compile(rb"([0-9a-f]{1,15})\.([0-9a-f]{%d})\Z" % (2 * HOP_MAC_BYTES))


class ForceToken(NamedTuple):
    """What a token says that the tenant's key has signed; its times are the caller's to judge."""

    experiment: str
    variant: str
    issued_s: int  # Unix time
    expires_s: int
    unit: bytes  # that may use it, b"" = any

    def is_current(self, now_s: float) -> bool:
        """Whether it may be used now, and was not made to last longer than any may."""
        return (
            self.issued_s <= now_s + CLOCK_SKEW_S
            and now_s < self.expires_s
            and 0 < self.expires_s - self.issued_s <= FORCE_SECONDS_MAX
        )


class TokenVerifier:
    """Verifies the force tokens of one tenant."""

    __slots__ = ("_key", "_known", "_tenant")

    def __init__(self, key: bytes, tenant: str) -> None:
        self._key = key
        self._tenant = tenant
        self._known: dict[bytes, ForceToken | None] = {}

    def verify(self, token: bytes, now_s: float) -> ForceToken | None:
        """The token's content, when it is ours and good now.

        Args:
            token: The header's value.
            now_s: Unix time.
        """
        if len(token) > FORCE_TOKEN_BYTES_MAX:
            return None
        known = self._known
        if token in known:
            found = known[token]
        else:
            found = self._read(token)
            if len(known) >= REMEMBERED_MAX:
                known.clear()
            known[token] = found
        return found if found is not None and found.is_current(now_s) else None

    def _read(self, token: bytes) -> ForceToken | None:
        version, _, rest = token.partition(b".")
        if version != FORCE_VERSION.encode():
            return None
        head, _, tail = rest.partition(b".")
        payload, mac = _decode(head), _decode(tail)
        if payload is None or mac is None:
            return None
        # Constant time: an answer's delay must not tell how much of a guess is right.
        if not hmac.compare_digest(mac, self._mac(payload)):
            return None
        return self._parse(payload)

    def _mac(self, payload: bytes) -> bytes:
        return hashlib.blake2b(
            payload, key=self._key, digest_size=FORCE_MAC_BYTES, person=FORCE_PERSON
        ).digest()

    def _parse(self, payload: bytes) -> ForceToken | None:
        fields = payload.decode(errors="replace").split(FORCE_SEPARATOR)
        if len(fields) != _FIELDS:
            return None
        tenant, experiment, variant, issued, expires, unit_text = fields
        unit = _decode(unit_text.encode()) if unit_text else b""
        if tenant != self._tenant or unit is None:
            return None
        if not (_SECONDS.match(issued) and _SECONDS.match(expires)):
            return None
        return ForceToken(experiment, variant, int(issued), int(expires), unit)


class HopMarks:
    """Makes and verifies the marks between the sidecars of one tenant."""

    __slots__ = ("_key", "_tenant")

    def __init__(self, key: bytes, tenant: str) -> None:
        self._key = key
        self._tenant = tenant.encode()

    def make(self, request_id: bytes, now_s: float) -> bytes:
        """A mark for one request."""
        seconds = b"%x" % int(now_s)
        return seconds + b"." + self._mac(seconds, request_id)

    def is_good(self, mark: bytes, request_id: bytes, now_s: float) -> bool:
        """Whether a peer made the mark for this request, a moment ago."""
        found = _HOP.match(mark)
        if found is None:
            return False
        seconds, mac = found.groups()
        if abs(int(now_s) - int(seconds, 16)) > HOP_SECONDS_MAX:
            return False
        return hmac.compare_digest(mac, self._mac(seconds, request_id))

    def _mac(self, seconds: bytes, request_id: bytes) -> bytes:
        text = b"\0".join((seconds, self._tenant, request_id))
        made = hashlib.blake2b(text, key=self._key, digest_size=HOP_MAC_BYTES, person=HOP_PERSON)
        return made.hexdigest().encode()


def _decode(text: bytes) -> bytes | None:
    """Base64url without padding, canonical: each value has one text, so a token has one form."""
    try:
        found = urlsafe_b64decode(text + b"=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        return None
    return found if urlsafe_b64encode(found).rstrip(b"=") == text else None
