"""Rules about units: where a unit comes from, and the units that are given a variant by name."""

from __future__ import annotations

import re
from typing import Final

from google.protobuf.duration_pb2 import Duration

from control.model import durations
from control.model.rules import MINUTE, check_cookie, check_duration, check_header, check_text
from control.model.violations import Report
from turnout.contract import SESSION_ID_HEX_DIGITS
from turnout.v1alpha1.common_pb2 import JwtClaim, NoUnit, OverrideSpec, Session, Unit
from turnout.v1alpha1.experiment_pb2 import ExperimentSpec

CLAIM_BYTES_MAX: Final = 128
METADATA_BYTES_MAX: Final = 256
QUERY_PARAMETER_BYTES_MAX: Final = 64
SESSION_AGE_MAX: Final = Duration(seconds=8760 * 3600)
OVERRIDES_MAX: Final = 64
OVERRIDE_UNITS_MAX: Final = 256
OVERRIDE_UNITS_TOTAL_MAX: Final = 1024
UNIT_VALUE_BYTES_MAX: Final = 256

_SESSION_ID: Final = re.compile(rf"[0-9a-f]{{{SESSION_ID_HEX_DIGITS}}}")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# RFC 6265bis section 4.1.3; the cookie that we issue also has to work over plain HTTP.
_SECURE_PREFIXES: Final = ("__host-", "__secure-")
_SOURCES: Final = "header, cookie, random, jwtClaim, session, queryParameter"


def check_unit(report: Report, path: str, unit: Unit) -> None:
    """What is kept on one variant."""
    chosen = [
        field
        for field, given in (
            ("header", unit.header),
            ("cookie", unit.cookie),
            ("random", unit.random),
            ("jwtClaim", unit.HasField("jwt_claim")),
            ("session", unit.HasField("session")),
            ("queryParameter", unit.query_parameter),
        )
        if given
    ]
    if len(chosen) != 1:
        report.add(path, ", ".join(chosen) or "none", f"must have exactly one of {_SOURCES}")
    if unit.header:
        check_header(report, f"{path}.header", unit.header)
    if unit.cookie:
        check_cookie(report, f"{path}.cookie", unit.cookie)
    if unit.HasField("jwt_claim"):
        _check_claim(report, f"{path}.jwtClaim", unit.jwt_claim)
    if unit.HasField("session"):
        _check_session(report, f"{path}.session", unit.session)
    if unit.query_parameter:
        here = f"{path}.queryParameter"
        check_text(report, here, unit.query_parameter, QUERY_PARAMETER_BYTES_MAX)
    if unit.no_unit not in NoUnit.values():
        report.add(f"{path}.noUnit", unit.no_unit, "unknown value")


def _check_claim(report: Report, path: str, claim: JwtClaim) -> None:
    check_text(report, f"{path}.claim", claim.claim, CLAIM_BYTES_MAX)
    if claim.claim and not all(claim.claim.split(".")):
        report.add(f"{path}.claim", claim.claim, "must be names between the dots: realm.user")
    here = f"{path}.payloadInMetadata"
    if not claim.unverified:
        if claim.payload_in_metadata:
            check_text(report, here, claim.payload_in_metadata, METADATA_BYTES_MAX)
        else:
            rule = (
                "required: jwt_authn's payload_in_metadata; unverified: true trusts the token "
                "unseen, and lets a client choose its variant"
            )
            report.add(here, "missing", rule)
        if claim.header:
            rule = "only with unverified: true; jwt_authn knows where the token is"
            report.add(f"{path}.header", claim.header, rule)
        return
    if claim.payload_in_metadata:
        rule = "not with unverified: true: a verified payload needs no trust; name one of the two"
        report.add(here, claim.payload_in_metadata, rule)
    if claim.header:
        check_header(report, f"{path}.header", claim.header)


def _check_session(report: Report, path: str, session: Session) -> None:
    if session.cookie:
        check_cookie(report, f"{path}.cookie", session.cookie)
        if session.cookie.lower().startswith(_SECURE_PREFIXES):
            rule = "must not begin with __Host- or __Secure-: no browser keeps it without Secure"
            report.add(f"{path}.cookie", session.cookie, rule)
    if session.HasField("max_age"):
        here = f"{path}.maxAge"
        good = check_duration(report, here, session.max_age, MINUTE, SESSION_AGE_MAX)
        if good and session.max_age.nanos:
            report.add(here, durations.text(session.max_age), "must be whole seconds")


def check_overrides(report: Report, spec: ExperimentSpec) -> None:
    """The allow-lists of an experiment: unit -> variant, each unit once."""
    path = "spec.overrides"
    if not spec.overrides:
        return
    if spec.unit.random:
        rule = "not with unit random: no request has a unit that could be named"
        report.add(path, f"{len(spec.overrides)} entries", rule)
        return
    total = sum(len(override.units) for override in spec.overrides)
    if len(spec.overrides) > OVERRIDES_MAX or total > OVERRIDE_UNITS_TOTAL_MAX:
        rule = f"at most {OVERRIDES_MAX} entries and {OVERRIDE_UNITS_TOTAL_MAX} units in all"
        report.add(path, f"{len(spec.overrides)} entries, {total} units", rule)
        return
    names = [variant.name for variant in spec.variants]
    owners: dict[str, str] = {}
    for index, override in enumerate(spec.overrides):
        here = f"{path}[{index}]"
        if override.variant not in names:
            rule = f"must name a variant: {', '.join(names[:10]) or 'none'}"
            report.add(f"{here}.variant", override.variant or "missing", rule)
        _check_units(report, f"{here}.units", override, owners, spec.unit)


def value_fault(unit: Unit, value: str) -> str:
    """Why no request can have this value as its unit; "" = one can, as far as is known."""
    if unit.random:
        return "the experiment's unit is random: no request has this one; leave it out"
    if unit.HasField("session") and not _SESSION_ID.fullmatch(value):
        digits = SESSION_ID_HEX_DIGITS
        return f"must be a session's id, {digits} digits of 0-9 a-f: no session has another"
    if not (unit.header or unit.cookie):
        return ""
    if value != value.strip(" \t"):
        return "must not begin or end with blanks: no such value does"
    if _CONTROL.search(value):
        return "must not have control characters: no such value does"
    if unit.cookie and ";" in value:
        return "must not have a semicolon: a cookie's value ends there"
    return ""


def _check_units(
    report: Report, path: str, override: OverrideSpec, owners: dict[str, str], kind: Unit
) -> None:
    if not 1 <= len(override.units) <= OVERRIDE_UNITS_MAX:
        report.add(path, f"{len(override.units)} units", f"must be 1 to {OVERRIDE_UNITS_MAX}")
        return
    for index, unit in enumerate(override.units):
        here = f"{path}[{index}]"
        faults = len(report.violations)
        check_text(report, here, unit, UNIT_VALUE_BYTES_MAX)
        rule = value_fault(kind, unit)
        if rule and len(report.violations) == faults:
            report.add(here, unit, rule)
        if unit in owners:
            report.add(here, unit, f"is in {owners[unit]} already; a unit has one variant")
        owners.setdefault(unit, here)
