"""Force tokens: signed texts that give their bearer a variant. `turnout.contract` has the format.

Pure: the moments are arguments. Verifying is the sidecar's; `tests/vectors/tokens.json` proves that
both sides mean the same.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Final

from turnout.contract import (
    FORCE_MAC_BYTES,
    FORCE_PERSON,
    FORCE_SECONDS_MAX,
    FORCE_SEPARATOR,
    FORCE_TOKEN_BYTES_MAX,
    FORCE_VERSION,
    TENANT_KEY_BYTES,
)

UNIT_BYTES_MAX: Final = 256
TTL_DEFAULT_S: Final = 3600
TTL_MIN_S: Final = 60
TTL_MAX_S: Final = FORCE_SECONDS_MAX


def mint(
    key: bytes,
    *,
    tenant: str,
    experiment: str,
    variant: str,
    unit: bytes,
    issued_s: int,
    expires_s: int,
) -> str:
    """A token: the value of the header `contract.HEADER_FORCE`.

    Args:
        key: The tenant's, `contract.TENANT_KEY_BYTES`.
        tenant: DNS label.
        experiment: Its id within the tenant.
        variant: Name of one of its variants.
        unit: Good for this unit only; empty = for whoever bears it. At most `UNIT_BYTES_MAX`.
        issued_s: Unix seconds from which on it is good.
        expires_s: Unix seconds from which on it is not, at most `contract.FORCE_SECONDS_MAX` later.

    Raises:
        ValueError: The key, the unit or the time between the two moments is out of bounds.
    """
    if len(key) != TENANT_KEY_BYTES:
        raise ValueError(f"the key has {len(key)} bytes, must have {TENANT_KEY_BYTES}")
    if len(unit) > UNIT_BYTES_MAX:
        raise ValueError(f"the unit has {len(unit)} bytes, at most {UNIT_BYTES_MAX}")
    if not 0 < expires_s - issued_s <= FORCE_SECONDS_MAX:
        raise ValueError(f"good for {expires_s - issued_s} s, must be 1 to {FORCE_SECONDS_MAX}")
    fields = (tenant, experiment, variant, str(issued_s), str(expires_s), _base64url(unit))
    payload = FORCE_SEPARATOR.join(fields).encode()
    mac = hashlib.blake2b(payload, key=key, digest_size=FORCE_MAC_BYTES, person=FORCE_PERSON)
    token = f"{FORCE_VERSION}.{_base64url(payload)}.{_base64url(mac.digest())}"
    assert len(token) <= FORCE_TOKEN_BYTES_MAX, "labels and unit are bounded"
    return token


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
