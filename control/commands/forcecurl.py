"""The request that uses a force token: a curl command, and what it leaves to the caller.

Owns which headers, cookie, parameter and path make a request the target's and give it a unit.
Refuses to know whether the token is good. Pure.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple
from urllib.parse import quote_plus

from turnout.contract import HEADER_FORCE, SESSION_COOKIE
from turnout.v1alpha1.common_pb2 import Predicate, Unit
from turnout.v1alpha1.target_pb2 import RequestMatch

ENVOY: Final = "127.0.0.1:8080"  # as in the README
UNIT_HERE: Final = "PUT-A-UNIT-HERE"
HOST_HERE: Final = "PUT-THE-HOST-HERE"
PATH_HERE: Final = "PUT-THE-PATH-HERE"
# Ways to satisfy a match's predicates that are looked at; real ones have a handful.
WAYS_MAX: Final = 4_096


class Printed(NamedTuple):
    """What is printed below a token.

    Attributes:
        curl: One line for a shell.
        notes: Sentences: what the line alone cannot do.
    """

    curl: str
    notes: list[str]


class _Parts(NamedTuple):
    """What a unit adds to a request."""

    headers: Mapping[str, str] = {}
    cookie: str = ""
    query: str = ""
    note: str = ""


def unknown_target(token: str, value: str) -> Printed:
    """A request to a target of which nothing is known: its parts are the caller's.

    Args:
        token: The token.
        value: The unit that it is good for; "" = its bearer.
    """
    words = ["curl", "-H", f"{HEADER_FORCE}: {token}", "-H", f"host: {HOST_HERE}"]
    unit = f"the unit {value!r}" if value else "a unit"
    note = (
        f"The target is not known here: host and path are yours to fill in, and so are {unit} "
        "where the experiment looks for it, and the headers of the target's match."
    )
    return Printed(shlex.join([*words, f"http://{ENVOY}/{PATH_HERE}"]), [note])


def known_target(token: str, match: RequestMatch, unit: Unit, value: str) -> Printed:
    """A request of the target's, with a unit, through an Envoy on this machine.

    Args:
        token: The token.
        match: The target's.
        unit: The experiment's.
        value: The unit that the token is good for; "" = its bearer.
    """
    parts = _unit_parts(unit, value)
    notes = [parts.note] if parts.note else []
    wanted = headers_of(match.headers)
    if wanted is None:
        notes.append("Add headers that fit the target's match; none were found here.")
    headers = {**(wanted or {}), **parts.headers}
    if parts.cookie:
        headers["cookie"] = "; ".join(filter(None, (headers.get("cookie", ""), parts.cookie)))
    words = ["curl", "-H", f"{HEADER_FORCE}: {token}"]
    host = _host(match.hosts)
    if host:
        words += ["-H", f"host: {host}"]
    for name, text in headers.items():
        # curl leaves out a header that has no value, unless it ends with a semicolon.
        words += ["-H", f"{name}: {text}" if text else f"{name};"]
    if match.methods and "GET" not in match.methods:
        words += ["-I"] if match.methods[0] == "HEAD" else ["-X", match.methods[0]]
    url = f"http://{ENVOY}{_path(match)}{parts.query}"
    if any(character in url for character in "[]{}"):
        words.append("-g")
    return Printed(shlex.join([*words, url]), notes)


def _host(patterns: Sequence[str]) -> str:
    """A host that fits; "" = any does."""
    exact = [pattern for pattern in patterns if "*" not in pattern]
    if exact:
        return exact[0]
    if not patterns or "*" in patterns:
        return ""
    return f"any{patterns[0].removeprefix('*')}"


def _path(match: RequestMatch) -> str:
    prefix = match.path_prefix or "/"
    if not match.model_name:
        return prefix
    version = f"/versions/{match.model_version}" if match.model_version else ""
    path = f"/v2/models/{match.model_name}{version}/infer"
    return path if path.startswith(prefix) else prefix.rstrip("/") + path


# -- The unit --------------------------------------------------------------------------------------


def _unit_parts(unit: Unit, value: str) -> _Parts:
    text = value or UNIT_HERE
    if unit.header:
        note = "" if value else f"Put a unit, a value of {unit.header}, for {UNIT_HERE}."
        return _Parts(headers={unit.header: text}, note=note)
    if unit.cookie:
        note = "" if value else f"Put a unit, a value of cookie {unit.cookie}, for {UNIT_HERE}."
        return _Parts(cookie=f"{unit.cookie}={text}", note=note)
    if unit.query_parameter:
        name = unit.query_parameter
        note = "" if value else f"Put a unit, a value of parameter {name}, for {UNIT_HERE}."
        return _Parts(query=f"?{quote_plus(name)}={quote_plus(text)}", note=note)
    if unit.HasField("session"):
        return _session_parts(unit.session.cookie or SESSION_COOKIE, value)
    if unit.HasField("jwt_claim"):
        return _Parts(note=_claim_note(unit, value))
    return _Parts()


def _session_parts(cookie: str, value: str) -> _Parts:
    if value:
        return _Parts(cookie=f"{cookie}={value}")
    return _Parts(
        note=f"The unit is the session in cookie {cookie}: the client sends the cookie that it "
        "has, or none and gets a new one with the answer."
    )


def _claim_note(unit: Unit, value: str) -> str:
    claim = unit.jwt_claim
    which = f"claim {claim.claim}" + (f" is {value!r}" if value else "")
    if claim.unverified:
        place = f"in header {claim.header or 'authorization'}"
        return f"The client must add a JSON Web Token whose {which}, {place}."
    return f"The client must add a JSON Web Token whose {which}, where Envoy's jwt_authn reads it."


# -- The match -------------------------------------------------------------------------------------


class _Literal(NamedTuple):
    leaf: Predicate
    wanted: bool


def headers_of(predicates: Iterable[Predicate]) -> dict[str, str] | None:
    """Headers with which all these predicates of a match hold; None = none were found."""
    ways = _conjunction([_ways(one, wanted=True) for one in predicates])
    for way in itertools.islice(ways, WAYS_MAX):
        found = _values(way)
        if found is not None:
            return found
    return None


def _ways(predicate: Predicate, *, wanted: bool) -> list[list[_Literal]]:
    """Every way in which it is what is wanted, up to WAYS_MAX of them."""
    if predicate.HasField("negated"):
        return _ways(predicate.negated, wanted=not wanted)
    parts = [_ways(part, wanted=wanted) for part in predicate.all or predicate.any]
    if not parts:
        return [[_Literal(predicate, wanted)]]
    # De Morgan: a negated conjunction is a disjunction.
    if bool(predicate.all) == wanted:
        return list(itertools.islice(_conjunction(parts), WAYS_MAX))
    return list(itertools.islice(itertools.chain.from_iterable(parts), WAYS_MAX))


def _conjunction(parts: Sequence[list[list[_Literal]]]) -> Iterator[list[_Literal]]:
    for choice in itertools.product(*parts):
        yield [literal for way in choice for literal in way]


def _values(literals: Sequence[_Literal]) -> dict[str, str] | None:
    """A value for each header that must have one; None = they contradict each other."""
    found: dict[str, str] = {}
    for name in dict.fromkeys(literal.leaf.header for literal in literals):
        mine = [literal for literal in literals if literal.leaf.header == name]
        for value in _candidates(mine):
            if all(_holds(one.leaf, value) == one.wanted for one in mine):
                break
        else:
            return None
        if value is not None:
            found[name] = value
    return found


def _candidates(literals: Sequence[_Literal]) -> Iterator[str | None]:
    yield None
    yield "1"
    for leaf, _ in literals:
        yield from leaf.in_values
        for text in (leaf.equals, leaf.prefix):
            yield from (text, f"{text}1", f"{text}x")


def _holds(leaf: Predicate, value: str | None) -> bool:
    """A leaf that Envoy's routes can repeat; common.proto has the rules."""
    if leaf.HasField("present"):
        return leaf.present == (value is not None)
    if value is None:
        return False
    if leaf.HasField("equals"):
        return value == leaf.equals
    return value.startswith(leaf.prefix) if leaf.HasField("prefix") else value in leaf.in_values
