"""Metrics as they are asked for: `NAME`, `NAME:kind`, `NAME=COLUMN:kind`, built-in names.

Owns the grammar, the built-in names with the columns that they look for, and which direction is
good. Refuses a column that is not there or cannot be a number; it never counts anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from control.analyze.errors import BadInput, closest, listed, require_column

LOWER: Final = "lower_is_better"
HIGHER: Final = "higher_is_better"
CLASSIFIER: Final = ("accuracy", "precision", "recall", "specificity", "false_positive_rate", "f1")
KINDS: Final = ("mean", "proportion", "count", "ratio", "quantile")
_OF_MODELS: Final = (*CLASSIFIER, "auc")  # kinds that have their columns by role
CAPPED: Final = ("mean", "count", "ratio")
GUESSED_MAX: Final = 20

_NUMERIC: Final = re.compile(
    r"(U?(TINY|SMALL|BIG|HUGE)INT|U?INTEGER|FLOAT|DOUBLE|DECIMAL.*|BIGNUM)"
)
_ID: Final = re.compile(
    r"(^|_)(id|uuid|guid|key|hash|index)$|^unnamed|^(user|customer|session|visitor|account)$",
    re.IGNORECASE,
)
# Words of a column's name, between underscores, by which less of it is better: faults, times, cost.
_LESS_IS_BETTER: Final = re.compile(
    r"(?:^|_)(?:err(?:or)?s?|fail(?:ed|ures?|s)?|timeouts?|crash(?:es|ed)?|exceptions?|[45](?:xx|\d\d)"
    r"|latency|latencies|duration|delays?|waits?|waited|ttft|tpot|downtime|p(?:50|75|90|95|99|999)"
    r"|(?:response|processing|load|queue|service|inference|waiting)_time|time_to_[a-z]+|ms|millis"
    r"|costs?|loss(?:es)?|churn(?:ed)?|bounced?|bounces|refund(?:s|ed)?|complaints?|unsubscribed?"
    r"|unsubscribes|abandon(?:ed|ment)|cancell?ations?|incidents?)(?:_|$)"
)
# Words that turn these round: of cost savings more is better.
_TURNED_ROUND: Final = re.compile(
    r"(?:^|_)(?:saved?|savings?|saves|no|non|not|without|free|less|improve(?:d|ment|ments)?|gains?"
    r"|prevented|prevention|avoided|avoidance|reduced|reductions?|recovered|recovery|resolved)(?:_|$)"
)


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric that can be computed.

    kind: "mean", "proportion", "count", "ratio", "quantile", a classifier metric's name, "auc",
    "drift"; "" is guessed from the values. column: Of the value, a ratio's numerator. denominator:
    A ratio's. q: A quantile's. total: A unit's value is the sum of its rows; any_of: it is 1 if
    any row's is; otherwise the mean is over rows, with errors clustered by unit. cap: Greater
    values (a ratio's numerator) count as this much; None = no cap.
    """

    name: str
    kind: str
    column: str = ""
    denominator: str = ""
    q: float = 0.0
    direction: str = HIGHER
    guessed_direction: bool = False
    total: bool = False
    any_of: bool = False
    cap: float | None = None


class Roles(NamedTuple):
    """Columns with a meaning of their own; None: not given."""

    variant: str
    unit: str | None = None
    strata: str | None = None
    covariate: str | None = None
    time: str | None = None
    label: str | None = None
    prediction: str | None = None
    score: str | None = None

    def named(self) -> dict[str, str]:
        """Role -> column, those that were given."""
        return {role: column for role, column in self._asdict().items() if column is not None}


class BuiltIn(NamedTuple):
    """A name with a meaning. columns: What a column of that meaning may be called."""

    kind: str
    columns: tuple[str, ...]
    direction: str = HIGHER
    denominators: tuple[str, ...] = ()
    q: float = 0.0
    total: bool = False
    any_of: bool = False


_LATENCY: Final = ("latency", "latency_ms", "latency_s", "duration", "duration_ms", "response_time")
BUILT_IN: Final[Mapping[str, BuiltIn]] = {
    "error_rate": BuiltIn("proportion", ("error", "errors", "is_error", "failed"), LOWER),
    **{
        f"latency_p{percent}": BuiltIn("quantile", _LATENCY, LOWER, q=percent / 100)
        for percent in (50, 90, 95, 99)
    },
    "click_through_rate": BuiltIn(
        "proportion",
        ("clicked", "click", "clicks", "is_click", "ctr"),
        denominators=("impressions", "views", "impression"),
    ),
    "conversion_rate": BuiltIn(
        "proportion",
        ("converted", "conversion", "conversions", "is_converted", "purchased"),
        any_of=True,
    ),
    "revenue_per_user": BuiltIn("mean", ("revenue", "amount", "spend", "sales"), total=True),
    "satisfaction": BuiltIn("mean", ("satisfaction", "rating", "csat", "stars", "nps")),
    "cost_per_request": BuiltIn("mean", ("cost", "costs", "price", "cost_usd"), LOWER),
    "prediction_drift": BuiltIn("drift", (), LOWER),
    "auc": BuiltIn("auc", ()),
    **{
        name: BuiltIn(name, (), LOWER if name == "false_positive_rate" else HIGHER)
        for name in CLASSIFIER
    },
}


def parse_metrics(
    texts: Sequence[str], columns: Mapping[str, str], roles: Roles
) -> tuple[Metric, ...]:
    """The metrics that are asked for, in their order, with names that differ.

    Args:
        texts: As on the command line; none: every column that can be one.
        columns: Name -> type of what the data have.
        roles: Columns with a meaning of their own.

    Raises:
        BadInput: A metric cannot be read or computed from these columns; names both.
    """
    found = [_parse(text, columns, roles) for text in texts] or _all(columns, roles)
    if not found:
        raise BadInput(
            f"metric: none given and no column is a number or yes/no; columns: {listed(columns)}: "
            "name one with --metric NAME:mean or NAME:proportion"
        )
    taken: dict[str, Metric] = {}
    for metric in found:
        name = metric.name
        if name in taken:
            tail = f"p{metric.q * 100:g}" if metric.kind == "quantile" else metric.kind
            name = f"{metric.name}_{tail}" if tail else name
        same = any(replace(metric, name="") == replace(other, name="") for other in taken.values())
        if name in taken or (same and metric.name in taken):
            raise BadInput(f"metric: {metric.name!r}: given twice; give each metric once")
        taken[name] = replace(metric, name=name)
    return tuple(taken.values())


def with_caps(metrics: Sequence[Metric], caps: Mapping[str, float]) -> tuple[Metric, ...]:
    """The metrics, each with its cap; without a kind of its own a capped one is a mean.

    Raises:
        BadInput: The metric's kind has no use for one.
    """
    for metric in metrics:
        if metric.name in caps and metric.kind not in ("", *CAPPED):
            raise BadInput(
                f"cap: {metric.name!r} is a {metric.kind}: caps are for {', '.join(CAPPED)}"
            )
    return tuple(
        replace(metric, cap=caps[metric.name], kind=metric.kind or "mean")
        if metric.name in caps
        else metric
        for metric in metrics
    )


def is_number(kind: str) -> bool:
    """Whether a column of this DuckDB type holds numbers."""
    return _NUMERIC.fullmatch(kind) is not None


def _all(columns: Mapping[str, str], roles: Roles) -> list[Metric]:
    used = set(roles.named().values())
    found = [_directed(name) for name in _classifiers(roles)]
    for column, kind in columns.items():
        numeric = is_number(kind) or kind == "BOOLEAN"
        if column not in used and numeric and not _ID.search(column):
            found.append(_of_column(column, "", column))
    return found[:GUESSED_MAX]


def _classifiers(roles: Roles) -> list[str]:
    names: list[str] = []
    if roles.label and roles.prediction:
        names += ["accuracy"]
    if roles.label and roles.score:
        names += ["auc"]
    return names


def _parse(text: str, columns: Mapping[str, str], roles: Roles) -> Metric:
    name, kind, rest = _split(text, columns)
    name, _, column = name.partition("=") if name not in columns else (name, "", "")
    if not name:
        raise BadInput(f"metric: {text!r}: has no name; say NAME:KIND, as revenue:mean")
    if kind == "ratio":
        return _ratio(text, name, rest, columns)
    if kind in _OF_MODELS and (column or rest):
        raise BadInput(f"metric: {text!r}: takes no column: {kind} is of labels and predictions")
    if kind in _OF_MODELS:
        _require_roles(name, kind, roles)
        return replace(_directed(kind), name=name)
    if kind and rest and kind != "quantile":
        raise BadInput(f"metric: {text!r}: nothing may follow {kind!r}")
    if name == "throughput" and name not in columns:
        raise BadInput("metric: 'throughput': is measured live; rows do not tell what was possible")
    if not kind and name in BUILT_IN and name not in columns:
        return _built_in(name, column, columns, roles)
    column = require_column(f"metric {name!r}", column or name, columns)
    _require_number(text, column, columns[column])
    metric = _of_column(name, kind, column)
    return replace(metric, q=_level(text, rest)) if kind == "quantile" else metric


def _split(text: str, columns: Mapping[str, str]) -> tuple[str, str, str]:
    """Name, kind and what follows it; a column's name may contain colons."""
    if text in columns:
        return text, "", ""
    parts = text.split(":")
    for place in range(len(parts) - 1, 0, -1):
        if parts[place].strip() in (*KINDS, *_OF_MODELS):
            kind = parts[place].strip()
            return ":".join(parts[:place]).strip(), kind, ":".join(parts[place + 1 :]).strip()
    if len(parts) > 1:
        known = (*KINDS, *_OF_MODELS)
        raise BadInput(
            f"metric: {text!r}: {parts[1]!r} is no kind{closest(parts[1], known)}; kinds: "
            f"{', '.join(known)}"
        )
    return text.strip(), "", ""


def _ratio(text: str, name: str, rest: str, columns: Mapping[str, str]) -> Metric:
    halves = [
        (rest[:place].strip(), rest[place + 1 :].strip())
        for place, letter in enumerate(rest)
        if letter == "/"
    ]
    if not halves:
        raise BadInput(f"metric: {text!r}: a ratio is NAME:ratio:NUMERATOR/DENOMINATOR")
    known = [half for half in halves if half[0] in columns and half[1] in columns]
    top, bottom = known[0] if known else halves[0]
    top = require_column(f"numerator of {name!r}", top, columns)
    bottom = require_column(f"denominator of {name!r}", bottom, columns)
    for column in (top, bottom):
        _require_number(text, column, columns[column])
    return replace(_of_column(name, "ratio", top), denominator=bottom)


def _level(text: str, rest: str) -> float:
    try:
        level = float(rest)
    except ValueError:
        level = float("nan")
    if not 0 < level < 1:
        raise BadInput(f"metric: {text!r}: {rest!r}: a quantile is between 0 and 1, as 0.95")
    return level


def _built_in(name: str, column: str, columns: Mapping[str, str], roles: Roles) -> Metric:
    known = BUILT_IN[name]
    if known.kind in (*CLASSIFIER, "auc", "drift"):
        _require_roles(name, known.kind, roles)
        return _directed(name)
    spelled = {each.casefold(): each for each in columns}
    candidates = (column,) if column else (name, *known.columns)
    found = next((spelled[each] for each in candidates if each in spelled), None)
    if column:
        found = require_column(f"metric {name!r}", column, columns)
    if found is None:
        raise BadInput(
            f"metric: {name!r}: no column of that meaning ({', '.join(known.columns)}); name it: "
            f"{name}=COLUMN; columns: {listed(columns)}"
        )
    _require_number(name, found, columns[found])
    below = next((spelled[each] for each in known.denominators if each in spelled), "")
    return Metric(
        name,
        "ratio" if below else known.kind,
        found,
        below,
        known.q,
        known.direction,
        total=known.total,
        any_of=known.any_of,
    )


def _require_roles(name: str, kind: str, roles: Roles) -> None:
    needed = {"auc": ("label", "score"), "drift": ("prediction",)}.get(
        kind, ("label", "prediction")
    )
    if kind == "drift" and roles.score:
        return
    missing = [role for role in needed if getattr(roles, role) is None]
    if missing:
        options = " and ".join(f"--{role}-column" for role in missing)
        raise BadInput(f"metric: {name!r}: needs {options}")


def _directed(name: str) -> Metric:
    return Metric(name, BUILT_IN[name].kind, direction=BUILT_IN[name].direction)


def _of_column(name: str, kind: str, column: str) -> Metric:
    if name in BUILT_IN:
        return Metric(name, kind, column, direction=BUILT_IN[name].direction)
    words = re.sub(r"[^a-z0-9]+", "_", name.casefold())
    if not _LESS_IS_BETTER.search(words):
        return Metric(name, kind, column)
    direction = HIGHER if _TURNED_ROUND.search(words) else LOWER
    return Metric(name, kind, column, direction=direction, guessed_direction=True)


def _require_number(text: str, column: str, kind: str) -> None:
    if not (is_number(kind) or kind in ("BOOLEAN", "VARCHAR")):
        raise BadInput(
            f"metric: {text!r}: column {column!r} is of type {kind}; it must be numbers or yes/no"
        )
