"""Which requests are a target's, in Envoy's words.

Owns the order in which targets are looked for, how a request names a model, and the translation of
both and of predicates. Refuses nested conditions beyond MATCH_TERMS_MAX routes.

The order of routes is the order in which a target is looked for, and the plan follows it: an exact
host before `*.suffix` (longer first) before `*`, then `match_rank`. A request that matches no
target of a more exact host falls through to the less exact ones. Ports in :authority are ignored;
hosts are compared without case.

A request names a model by its path or by a header, and a target that has a model name takes both:
`named`     = the path (without its query, `/` added) begins with one of `model_prefixes`, or one of
              MODEL_NAME_HEADERS has the name;
`versioned` = the same with the version in the prefixes, or `named` and one of MODEL_VERSION_HEADERS
              has the version. Of several headers of one name one that fits is enough.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final

from sidecar.envoyyaml import Json
from turnout.contract import MODEL_NAME_HEADERS, MODEL_VERSION_HEADERS
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
    matching.sort(key=lambda item: (item[0], match_rank(item[1])))
    return [target for _, target in matching]


def _host_rank(target: TargetPlan, host: str) -> int | None:
    """How exactly the target names the host: the smaller, the more exact; None = not at all."""
    ranks = [
        -len(pattern) - (_EXACT if not pattern.startswith("*") else 0)
        for pattern in target_hosts(target)
        if pattern == host or (pattern.startswith("*") and host.endswith(pattern[1:]))
    ]
    return min(ranks, default=None)


def match_rank(target: TargetPlan) -> tuple[bool, bool, int, int, bool, str]:
    """How exactly a target matches, among those of one host pattern: the smaller, the earlier.

    One that names a version comes before one that names a model, before all others: a prefix such
    as /v2 would hide them. Then the longest path prefix, then the one with more header predicates,
    then one that names methods, then the name.
    """
    prefix = target.path_prefix or "/"
    named = (not target.model_version, not target.model_name)
    return (*named, -len(prefix), -len(target.headers), not target.methods, target.name)


# -- Models ----------------------------------------------------------------------------------------


def model_prefixes(target: TargetPlan, *, version: bool) -> tuple[str, ...]:
    """What a path, with '/' added, begins with when it names the target's model.

    Open Inference Protocol (kserve/open-inference-protocol, inference_rest): /v2/models/NAME and
    /v2/models/NAME/versions/VERSION, alone or with more below. KServe's first protocol and
    TensorFlow Serving's REST: the same below /v1/models, and with a verb after a colon. At the root
    or below the target's path prefix, as KServe's path-based routing has it.

    Args:
        target: With a model name.
        version: Prefixes that name the version too.
    """
    tail = f"{target.model_name}/versions/{target.model_version}" if version else target.model_name
    base = target.path_prefix.rstrip("/")
    mounts = ("", base) if base else ("",)
    forms = (f"/v2/models/{tail}/", f"/v1/models/{tail}/", f"/v1/models/{tail}:")
    return tuple(mount + form for mount in mounts for form in forms)


def _namings(target: TargetPlan) -> list[Json]:
    """Envoy matches of which a request that names the target's model satisfies at least one."""
    if not target.model_name:
        return [{"prefix": target.path_prefix or "/"}]
    by_path = _path_match(target, version=False)
    named: list[Json] = [] if by_path is None else [by_path]
    named += [
        {"prefix": target.path_prefix or "/", "headers": [exact_header(name, target.model_name)]}
        for name in MODEL_NAME_HEADERS
    ]
    if not target.model_version:
        return named
    by_path = _path_match(target, version=True)
    versioned: list[Json] = [] if by_path is None else [by_path]
    versioned += [
        match | {"headers": [*match.get("headers", ()), exact_header(name, target.model_version)]}
        for match in named
        for name in MODEL_VERSION_HEADERS
    ]
    return versioned


def exact_header(header: str, value: str) -> Json:
    """A header that has exactly this value."""
    return {"name": header, "string_match": {"exact": value}}


def _path_match(target: TargetPlan, *, version: bool) -> Json | None:
    """The paths that begin with the path prefix and name the model; None when there are none."""
    wanted = target.path_prefix or "/"
    prefixes = model_prefixes(target, version=version)
    parts = [part for prefix in prefixes if (part := _path_regex(prefix, wanted))]
    return {"safe_regex": {"regex": "|".join(dict.fromkeys(parts))}} if parts else None


def _path_regex(prefix: str, wanted: str) -> str:
    r"""Paths p that begin with `wanted` and whose p + '/' begins with `prefix`; "" = none.

    \C is any byte: a path need not be UTF-8, and . would not match it.
    """
    stem = prefix.removesuffix("/")
    if stem != prefix and stem.startswith(wanted):
        return rf"{re.escape(stem)}(?:/\C*)?"
    if prefix.startswith(wanted):
        return rf"{re.escape(prefix)}\C*"
    return rf"{re.escape(wanted)}\C*" if wanted.startswith(prefix) else ""


# -- Predicates ------------------------------------------------------------------------------------


def matches(target: TargetPlan) -> list[Json]:
    """Envoy matches of which a request of this target satisfies at least one."""
    methods = [{"name": ":method", "string_match": _one_of(target.methods)}]
    first = methods if target.methods else []
    found = []
    for naming in _namings(target):
        for term in _conjunctions(target):
            leaves = [_leaf(predicate, inverted=inverted) for predicate, inverted in term]
            headers = [*first, *naming.get("headers", ()), *leaves]
            found.append(naming | {"headers": headers} if headers else naming)
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
