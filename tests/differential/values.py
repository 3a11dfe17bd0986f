"""The oracle's own reading of values: numbers, versions, percent and base64url, cookies, tokens.

Owns letter-by-letter parsers written from the contract's words. Imports nothing of the sidecar and
no clever library: what is slow and plain here judges what is quick there.
"""

from __future__ import annotations

import hashlib
import json
from decimal import Decimal
from typing import Any, Final

from turnout.contract import (
    CLOCK_SKEW_S,
    FORCE_MAC_BYTES,
    FORCE_PERSON,
    FORCE_SECONDS_MAX,
    FORCE_TOKEN_BYTES_MAX,
    HOP_MAC_BYTES,
    HOP_PERSON,
    HOP_SECONDS_MAX,
)

DIGITS: Final = b"0123456789"
HEX: Final = "0123456789abcdef"
LETTERS: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
BASE64URL: Final = LETTERS + DIGITS + b"-_"
NUMBER_BYTES_MAX: Final = 64


# -- Numbers ---------------------------------------------------------------------------------------


def number(value: bytes) -> float | None:
    """A decimal number with an optional sign, fraction and exponent; None when it is none."""
    if len(value) > NUMBER_BYTES_MAX:
        return None
    rest = value[1:] if value[:1] in (b"+", b"-") else value
    mantissa, exponent = rest, b"0"
    for letter in (b"e", b"E"):
        if letter in rest:
            mantissa, _, exponent = rest.partition(letter)
            break
    if exponent[:1] in (b"+", b"-"):
        exponent = exponent[1:]
    whole, dot, fraction = mantissa.partition(b".")
    if not digits(exponent) or not (digits(whole) and (digits(fraction) or not dot)):
        return None
    found = float(value.decode("ascii"))
    return None if found in (float("inf"), float("-inf")) else found


def digits(value: bytes) -> bool:
    """One decimal digit or more, and nothing else."""
    return value != b"" and all(letter in DIGITS for letter in value)


# -- Versions --------------------------------------------------------------------------------------

Version = tuple[list[int], list[str]]


def version(value: bytes) -> Version | None:
    """A Semantic Version 2.0.0, a leading v allowed: its numbers, its pre-release."""
    if value[:1] == b"v":
        value = value[1:]
    rest, plus, build = value.partition(b"+")
    core, dash, pre = rest.partition(b"-")
    numbers = core.split(b".")
    if len(numbers) != 3 or not all(plain(part) for part in numbers):
        return None
    if plus and not all(identifier(part) for part in build.split(b".")):
        return None
    parts = pre.split(b".") if dash else []
    for part in parts:
        if not identifier(part) or (digits(part) and not plain(part)):
            return None
    return [int(part) for part in numbers], [part.decode() for part in parts]


def plain(value: bytes) -> bool:
    """A number without leading zeros."""
    return digits(value) and (value == b"0" or value[:1] != b"0")


def identifier(value: bytes) -> bool:
    """Letters, digits and hyphens."""
    return value != b"" and all(letter in LETTERS + DIGITS + b"-" for letter in value)


def compare(one: Version, two: Version) -> int:
    """-1, 0 or 1 by the precedence of Semantic Versioning, section 11."""
    if one[0] != two[0]:
        return -1 if one[0] < two[0] else 1
    if not one[1] or not two[1]:
        return (not one[1]) - (not two[1])
    for left, right in zip(one[1], two[1], strict=False):
        if left == right:
            continue
        if left.isdigit() and right.isdigit():
            return -1 if int(left) < int(right) else 1
        if left.isdigit() != right.isdigit():
            return -1 if left.isdigit() else 1
        return -1 if left < right else 1
    return (len(one[1]) > len(two[1])) - (len(one[1]) < len(two[1]))


def fits(value: bytes, constraints: str) -> bool:
    """Whether a version fits all constraints."""
    found = version(value)
    if found is None:
        return False
    return all(fits_one(found, constraint) for constraint in constraints.split(" ") if constraint)


def fits_one(found: Version, constraint: str) -> bool:
    """Whether a version fits one constraint, such as ">=1.2.0"."""
    mark = "".join(letter for letter in constraint[:2] if letter in "=!<>^~")
    wanted = version(constraint[len(mark) :].encode())
    assert wanted is not None, constraint
    order = compare(found, wanted)
    if mark in ("^", "~"):
        major, minor, patch = wanted[0]
        if mark == "~" or (major == 0 and minor > 0):
            above = [major, minor + 1, 0]
        elif major == 0:
            above = [0, 0, patch + 1]
        else:
            above = [major + 1, 0, 0]
        # No pre-release of the version above: it is a version of that series.
        return order >= 0 and found[0] < above
    tests = {"": 0, "=": 0, "!=": 0, "<": -1, "<=": -1, ">": 1, ">=": 1}
    if mark == "!=":
        return order != 0
    return order == tests[mark] or (mark in ("<=", ">=") and order == 0)


# -- Encodings -------------------------------------------------------------------------------------


def percent_decoded(text: bytes) -> bytes:
    """Percent-decoded, '+' as a blank; what is no escape stays as it is."""
    out = b""
    place = 0
    while place < len(text):
        pair = text[place + 1 : place + 3].decode("latin-1").lower()
        if text[place : place + 1] == b"+":
            out += b" "
        elif text[place : place + 1] == b"%" and len(pair) == 2 and set(pair) <= set(HEX):
            out += bytes([16 * HEX.index(pair[0]) + HEX.index(pair[1])])
            place += 2
        else:
            out += text[place : place + 1]
        place += 1
    return out


def base64url(text: bytes) -> bytes | None:
    """Decoded base64url without padding; None when it is not the one encoding of something."""
    if any(letter not in BASE64URL for letter in text) or len(text) % 4 == 1:
        return None
    bits = "".join(f"{BASE64URL.index(letter):06b}" for letter in text)
    spare = len(bits) % 8
    if "1" in bits[len(bits) - spare :]:
        return None
    whole = bits[: len(bits) - spare]
    return bytes(int(whole[place : place + 8], 2) for place in range(0, len(whole), 8))


def base64url_text(data: bytes) -> bytes:
    """Base64url without padding."""
    bits = "".join(f"{byte:08b}" for byte in data)
    bits += "0" * (-len(bits) % 6)
    return bytes(BASE64URL[int(bits[p : p + 6], 2)] for p in range(0, len(bits), 6))


# -- Cookies and claims ----------------------------------------------------------------------------


def cookies(values: list[bytes], wanted: bytes) -> list[bytes]:
    """The values of all cookies of a name, in order."""
    found = []
    for value in values:
        for pair in value.split(b";"):
            name, equals, content = pair.partition(b"=")
            if equals and name.strip() == wanted:
                found.append(content.strip())
    return found


def parameters(path: bytes, wanted: bytes) -> list[bytes]:
    """The values of all parameters of a name in the path's query, in order."""
    query = path.partition(b"#")[0].partition(b"?")[2]
    found = []
    for pair in query.split(b"&"):
        name, _, value = pair.partition(b"=")
        if percent_decoded(name) == wanted:
            found.append(percent_decoded(value))
    return found


def claim_text(value: Any) -> bytes:
    """A claim as a unit: a string, an integer or a boolean; everything else is none.

    An integer is what a double holds exactly, as Envoy's metadata is doubles: 5.0 is 5.
    """
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, str):
        try:
            return value.encode("utf-8")
        except UnicodeEncodeError:  # half a surrogate pair is no text
            return b""
    if isinstance(value, int | float) and -(2**53) < value < 2**53 and value % 1 == 0:
        return str(Decimal(int(value))).encode()
    return b""


def claim_of(payload: Any, claim: str) -> bytes:
    """The claim of a payload: of this name, or else nested ones with dots."""
    if isinstance(payload, dict) and claim in payload:
        return claim_text(payload[claim])
    for name in claim.split("."):
        if not isinstance(payload, dict) or name not in payload:
            return b""
        payload = payload[name]
    return claim_text(payload)


def unverified_payload(token: bytes) -> Any:
    """What a JSON Web Token says, believed as it is; None when it says nothing."""
    if token[:7].lower() == b"bearer ":
        token = token[7:]
    parts = token.strip(b" ").split(b".")
    if len(parts) != 3:
        return None
    data = base64url(parts[1].rstrip(b"="))
    try:
        return None if data is None else json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        return None


# -- Force tokens and hop marks --------------------------------------------------------------------


def force_token(
    token: bytes, *, key: bytes, tenant: str, now_s: float
) -> tuple[str, str, bytes] | None:
    """(experiment, variant, unit) of a token that is believed."""
    if len(token) > FORCE_TOKEN_BYTES_MAX:
        return None
    parts = token.split(b".")
    if len(parts) != 3 or parts[0] != b"v1":
        return None
    payload, mac = base64url(parts[1]), base64url(parts[2])
    if payload is None or mac is None:
        return None
    wanted = hashlib.blake2b(
        payload, key=key, digest_size=FORCE_MAC_BYTES, person=FORCE_PERSON
    ).digest()
    fields = payload.split(b";")
    if mac != wanted or len(fields) != 6 or fields[0] != tenant.encode():
        return None
    if not digits(fields[3]) or not digits(fields[4]):
        return None
    issued, expires, unit = int(fields[3]), int(fields[4]), base64url(fields[5])
    if unit is None or issued > now_s + CLOCK_SKEW_S or not issued < expires:
        return None
    if expires - issued > FORCE_SECONDS_MAX or now_s >= expires:
        return None
    return fields[1].decode(), fields[2].decode(), unit


def hop_mark(seconds: bytes, *, key: bytes, tenant: str, request_id: bytes) -> bytes:
    """The mark of a request at a time that is given in hex."""
    text = seconds + b"\0" + tenant.encode() + b"\0" + request_id
    digest = hashlib.blake2b(text, key=key, digest_size=HOP_MAC_BYTES, person=HOP_PERSON)
    return seconds + b"." + digest.hexdigest().encode()


def is_hop(mark: bytes, *, key: bytes, tenant: str, request_id: bytes, now_s: float) -> bool:
    """Whether a mark says that another sidecar has decided this request just now."""
    seconds = mark.partition(b".")[0]
    if not seconds or len(seconds) > 16 or any(c not in HEX.encode() for c in seconds):
        return False
    if mark != hop_mark(seconds, key=key, tenant=tenant, request_id=request_id):
        return False
    return abs(int(seconds, 16) - int(now_s)) <= HOP_SECONDS_MAX
