"""Makes tokens.json: `python -m tests.vectors.make_tokens` rewrites it.

Owns an independent writing of the force token and of the hop mark, after contract.py's words with
`hashlib` and `base64` alone. Imports neither the sidecar nor the control plane: it is what both are
compared with.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

TOKENS: Final = Path(__file__).parent / "tokens.json"
KEY: Final = bytes(range(32))
OTHER_KEY: Final = bytes(range(1, 33))
NOW: Final = 1_760_000_000
HOUR: Final = 3600
PROVENANCE: Final = (
    "made by tests/vectors/make_tokens.py from the words of contract.py with CPython's hashlib and "
    "base64; checked by tests/vectors/checker with Go's base64 and dchest/blake2b"
)


def base64url(data: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def force_payload(
    experiment: str, variant: str, unit: bytes, *, tenant: str, issued: int, expires: int
) -> bytes:
    """What a force token says."""
    fields = (tenant, experiment, variant, str(issued), str(expires), base64url(unit))
    return ";".join(fields).encode()


def seal_force(payload: bytes, key: bytes) -> str:
    """A payload as a token."""
    mac = hashlib.blake2b(payload, key=key, digest_size=16, person=b"turnout-force").digest()
    return f"v1.{base64url(payload)}.{base64url(mac)}"


def hop_mark(seconds: int, tenant: str, request_id: bytes, key: bytes) -> str:
    """A hop mark."""
    text = b"%x\0%b\0%b" % (seconds, tenant.encode(), request_id)
    mac = hashlib.blake2b(text, key=key, digest_size=8, person=b"turnout-hop").hexdigest()
    return f"{seconds:x}.{mac}"


def force_token(
    experiment: str = "new-model",
    variant: str = "v2",
    unit: bytes = b"",
    *,
    tenant: str = "risk",
    issued: int = NOW - 10,
    expires: int = NOW + HOUR,
    key: bytes = KEY,
) -> str:
    """A token of the tenant risk that was good at NOW, unless told otherwise."""
    return seal_force(
        force_payload(experiment, variant, unit, tenant=tenant, issued=issued, expires=expires), key
    )


def good(
    name: str, unit: bytes = b"", *, issued: int = NOW - 10, expires: int = NOW + HOUR, now: int
) -> dict[str, Any]:
    """A case that must be minted to exactly this text, and believed at `now`."""
    return {
        "name": name,
        "key": KEY.hex(),
        "tenant": "risk",
        "experiment": "new-model",
        "variant": "v2",
        "unit": unit.hex(),
        "issued": issued,
        "expires": expires,
        "now": now,
        "token": force_token(unit=unit, issued=issued, expires=expires),
    }


def good_tokens() -> Iterator[dict[str, Any]]:
    """Tokens that are believed."""
    yield good("any_unit", now=NOW)
    yield good("of_one_unit", b"user-1", now=NOW)
    yield good("of_a_unit_that_is_no_utf8", b"\xff\xfe\x00;.", now=NOW)
    yield good("of_a_unit_that_encodes_with_minus_and_underscore", b"\xfb\xef\xbe\xff\xff", now=NOW)
    yield good("of_a_unit_of_256_bytes", b"u" * 256, now=NOW)
    yield good("in_its_last_second", issued=NOW - HOUR, expires=NOW + 1, now=NOW)
    yield good("issued_now", issued=NOW, now=NOW)
    yield good("issued_60_s_ahead", issued=NOW + 60, now=NOW)
    yield good("of_24_hours", issued=NOW, expires=NOW + 24 * HOUR, now=NOW)


def bad_tokens() -> Iterator[tuple[str, str]]:
    """(name, token) of what is not believed by the tenant risk at NOW."""
    yield "forged_with_another_key", force_token(key=OTHER_KEY)
    yield "of_another_tenant", force_token(tenant="fraud")
    yield "expired_this_second", force_token(issued=NOW - HOUR, expires=NOW)
    yield "expired_long_ago", force_token(issued=10, expires=20)
    yield "issued_61_s_ahead", force_token(issued=NOW + 61)
    yield "of_more_than_24_hours", force_token(issued=NOW, expires=NOW + 24 * HOUR + 1)
    yield "expires_before_it_was_issued", force_token(issued=NOW + 30, expires=NOW + 20)
    yield "empty", ""
    yield "two_dots_alone", ".."
    token = force_token()
    version, payload, mac = token.split(".")
    yield "without_mac", f"{version}.{payload}"
    yield "with_empty_mac", f"{version}.{payload}."
    yield "with_a_fourth_part", f"{token}.x"
    yield "of_version_2", f"v2.{payload}.{mac}"
    yield "of_version_V1", f"V1.{payload}.{mac}"
    yield "with_half_a_mac", f"{version}.{payload}.{mac[:11]}"
    yield "with_first_mac_letter_changed", f"{version}.{payload}.{flip(mac)}"
    yield "with_first_payload_letter_changed", f"{version}.{flip(payload)}.{mac}"
    yield "with_padding", f"{version}.{payload}.{mac}=="
    yield "with_spare_bits_in_the_mac", f"{version}.{payload}.{spare(mac)}"
    yield "with_a_blank_inside", f"{version}.{payload[:8]} {payload[8:]}.{mac}"
    yield "with_a_letter_beyond_ascii", f"{version}.{payload[:8]}\u00e9{payload[8:]}.{mac}"
    yield from bad_payloads()


def bad_payloads() -> Iterator[tuple[str, str]]:
    """Tokens that are sealed with the right key, and say what no token says."""
    begin = b"risk;new-model;v2;"
    issued, expires = str(NOW - 10).encode(), str(NOW + HOUR).encode()
    yield "of_five_fields", seal_force(begin + issued + b";" + expires, KEY)
    yield "of_seven_fields", seal_force(begin + issued + b";" + expires + b";;", KEY)
    yield "of_a_signed_time", seal_force(begin + b"+" + issued + b";" + expires + b";", KEY)
    yield "of_a_time_with_blank", seal_force(begin + b" " + issued + b";" + expires + b";", KEY)
    yield (
        "of_a_time_with_underscore",
        seal_force(begin + issued[:1] + b"_" + issued[1:] + b";" + expires + b";", KEY),
    )
    yield "of_an_empty_time", seal_force(begin + b";" + expires + b";", KEY)
    yield "of_a_fraction_of_time", seal_force(begin + issued + b".5;" + expires + b";", KEY)
    arabic = "".join(chr(0x660 + digit - ord("0")) for digit in issued).encode()
    yield "of_a_time_in_arabic_digits", seal_force(begin + arabic + b";" + expires + b";", KEY)
    yield "of_a_unit_with_padding", seal_force(begin + issued + b";" + expires + b";dQ==", KEY)
    yield "of_a_unit_of_one_letter", seal_force(begin + issued + b";" + expires + b";d", KEY)
    yield "of_a_unit_in_plain_base64", seal_force(begin + issued + b";" + expires + b";+/+/", KEY)
    yield "of_nothing", seal_force(b"", KEY)
    # 1,025 letters.
    long = base64url(b"u" * 699)
    token = seal_force(begin + issued + b";" + expires + b";" + long.encode(), KEY)
    assert len(token) > 1024, len(token)
    yield "of_more_than_1024_bytes", token


def flip(text: str) -> str:
    """Another first letter."""
    return ("B" if text[0] == "A" else "A") + text[1:]


def spare(mac: str) -> str:
    """A last letter that decodes to the same bytes: 16 bytes leave 4 bits of it unused."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return mac[:-1] + letters[letters.index(mac[-1]) + 1]


def hop_marks() -> Iterator[dict[str, Any]]:
    """Hop marks, good and bad."""
    request_id = b"6a2f41a3-c54c-fce8-32d2-0324e1c32e22"
    for name, seconds, now in (
        ("fresh", NOW, NOW),
        ("60_s_old", NOW - 60, NOW),
        ("60_s_ahead", NOW + 60, NOW),
        ("61_s_old", NOW - 61, NOW),
        ("61_s_ahead", NOW + 61, NOW),
    ):
        mark = hop_mark(seconds, "risk", request_id, KEY)
        yield hop_case(name, mark, request_id, now, "61" not in name, seconds)
    odd = b"\xff\x00id"
    yield hop_case("of_an_odd_request_id", hop_mark(NOW, "risk", odd, KEY), odd, NOW, True, NOW)
    mark = hop_mark(NOW, "risk", request_id, KEY)
    when, mac = mark.split(".")
    bad: dict[str, str] = {
        "of_another_key": hop_mark(NOW, "risk", request_id, OTHER_KEY),
        "of_another_tenant": hop_mark(NOW, "fraud", request_id, KEY),
        "of_another_request": hop_mark(NOW, "risk", b"other", KEY),
        "empty": "",
        "of_a_dot": ".",
        "without_mac": when,
        "with_empty_mac": f"{when}.",
        "with_half_a_mac": f"{when}.{mac[:8]}",
        "with_two_dots": f"{when}.{mac}.",
        "in_upper_case": f"{when}.{mac}".upper(),
        "with_0x": f"0x{when}.{mac}",
        "with_a_blank": f" {mark}",
        "with_a_sign": f"+{mark}",
        "of_no_hex": f"xyz.{mac}",
        "with_first_mac_digit_changed": f"{when}.{'1' if mac[0] == '0' else '0'}{mac[1:]}",
    }
    assert mac != mac.upper(), "the case has a letter to change"
    for name, text in bad.items():
        yield hop_case(name, text, request_id, NOW, False, None)


def hop_case(
    name: str, mark: str, request_id: bytes, now: int, valid: bool, seconds: int | None
) -> dict[str, Any]:
    """One hop mark; `seconds` says that it is what is minted at that time."""
    return {
        "name": name,
        "key": KEY.hex(),
        "tenant": "risk",
        "request_id": request_id.hex(),
        "seconds": seconds,
        "now": now,
        "mark": mark,
        "valid": valid,
    }


def made() -> dict[str, Any]:
    """The whole file."""
    return {
        "encoding": "key, unit and request_id are hex of the bytes; times are Unix seconds",
        "force_good": {"provenance": PROVENANCE, "cases": list(good_tokens())},
        "force_bad": {
            "provenance": PROVENANCE,
            "key": KEY.hex(),
            "tenant": "risk",
            "now": NOW,
            "cases": [{"name": name, "token": token} for name, token in bad_tokens()],
        },
        "hop": {"provenance": PROVENANCE, "cases": list(hop_marks())},
    }


def file_text() -> str:
    """The file's text."""
    return json.dumps(made(), indent=1) + "\n"


if __name__ == "__main__":
    TOKENS.write_text(file_text())
