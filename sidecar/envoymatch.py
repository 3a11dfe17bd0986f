"""Which requests are a target's, in Envoy's words.

Owns the order in which targets are looked for and the translation of predicates. Refuses nested
conditions beyond MATCH_TERMS_MAX routes.

The order of routes is the order in which a target is looked for, and the plan follows it: an exact
host before `*.suffix` (longer first) before `*`, then the longest path prefix, then the target that
has more header predicates, then one that names methods, then the name. A request that matches no
target of a more exact host falls through to the less exact ones. Ports in :authority are ignored;
hosts are compared without case.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final

from sidecar.envoyyaml import Json
from turnout.v1alpha1.common_pb2 import Predicate
from turnout.v1alpha1.snapshot_pb2 import TargetPlan

# Envoy has no nested conditions: a predicate becomes routes, one for each way to satisfy it.
MATCH_TERMS_MAX: Final = 64

_EXACT: Final = 1_000  # longer than any host name


class UnsupportedMatch(ValueError):
    """A target's header predicates need more routes than MATCH_TERMS_MAX."""

    def __init__(self, target: str, terms: int) -> None:
        super().__init__(f"target {target}: headers need {terms} routes, at most {MATCH_TERMS_MAX}")
        self.target = target
        self.terms = terms


def target_hosts(target: TargetPlan) -> list[str]:
    """The target's host patterns, lower case; none means any."""
    return [host.lower() for host in target.hosts] or ["*"]


def targets_in_order(targets: Iterable[TargetPlan], host: str) -> list[TargetPlan]:
    """The targets that a request to one host pattern is matched against, first match wins."""
    ranked = [(_host_rank(target, host), target) for target in targets]
    matching = [(rank, target) for rank, target in ranked if rank is not None]
    matching.sort(key=lambda item: (item[0], *_match_rank(item[1])))
    return [target for _, target in matching]


def _host_rank(target: TargetPlan, host: str) -> int | None:
    """How exactly the target names the host: the smaller, the more exact; None = not at all."""
    ranks = [
        -len(pattern) - (_EXACT if not pattern.startswith("*") else 0)
        for pattern in target_hosts(target)
        if pattern == host or (pattern.startswith("*") and host.endswith(pattern[1:]))
    ]
    return min(ranks, default=None)


def _match_rank(target: TargetPlan) -> tuple[int, int, bool, str]:
    prefix = target.path_prefix or "/"
    return (-len(prefix), -len(target.headers), not target.methods, target.name)


def matches(target: TargetPlan) -> list[Json]:
    """Envoy matches of which a request of this target satisfies at least one."""
    found = []
    for term in _conjunctions(target):
        headers = [_leaf(predicate, inverted=inverted) for predicate, inverted in term]
        if target.methods:
            headers.insert(0, {"name": ":method", "string_match": _one_of(target.methods)})
        match: Json = {"prefix": target.path_prefix or "/"}
        found.append(match | {"headers": headers} if headers else match)
    return found


_Literal = tuple[Predicate, bool]
_Terms = list[tuple[_Literal, ...]]


def _conjunctions(target: TargetPlan) -> _Terms:
    terms = _product([_terms(p, inverted=False) for p in target.headers])
    if len(terms) > MATCH_TERMS_MAX:
        raise UnsupportedMatch(target.name, len(terms))
    return terms


def _terms(predicate: Predicate, *, inverted: bool) -> _Terms:
    """Disjunctive normal form, negations pushed to the leaves; bounded by `_product`."""
    if predicate.HasField("negated"):
        return _terms(predicate.negated, inverted=not inverted)
    parts, conjunction = (
        (predicate.all, not inverted) if predicate.all else (predicate.any, inverted)
    )
    if not parts:
        return [((predicate, inverted),)]
    children = [_terms(part, inverted=inverted) for part in parts]
    return _product(children) if conjunction else [term for child in children for term in child]


def _product(children: Sequence[_Terms]) -> _Terms:
    terms: _Terms = [()]
    for child in children:
        terms = [left + right for left in terms for right in child]
        if len(terms) > MATCH_TERMS_MAX:
            # Cut here, counted by the caller: 64 leaves could ask for billions of terms.
            return terms[: MATCH_TERMS_MAX + 1]
    return terms


def _leaf(predicate: Predicate, *, inverted: bool) -> Json:
    matcher: Json = {"name": predicate.header}
    if predicate.HasField("present"):
        return matcher | {"present_match": predicate.present != inverted}
    if predicate.HasField("equals"):
        matcher["string_match"] = {"exact": predicate.equals}
    elif predicate.HasField("prefix"):
        matcher["string_match"] = {"prefix": predicate.prefix}
    else:
        matcher["string_match"] = _one_of(predicate.in_values)
    if inverted:
        # Else a request that lacks the header would satisfy neither the leaf nor its negation.
        matcher |= {"invert_match": True, "treat_missing_header_as_empty": True}
    return matcher


def _one_of(values: Sequence[str]) -> Json:
    if len(values) == 1:
        return {"exact": values[0]}
    return {"safe_regex": {"regex": "|".join(re.escape(value) for value in values)}}
