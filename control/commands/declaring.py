"""Declared metrics for `turnout analyze`: resource files to what its options say.

Owns which part of a declaration an analysis of rows can honour. Refuses the rest by name, and what
contradicts itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from control.commands.files import read_documents
from control.model import Definition, definition
from control.model.metrics import Direction, Kind
from turnout.v1alpha1.metric_pb2 import MetricSpec


class Question(NamedTuple):
    """What is asked of an analysis; see the options of these names."""

    metrics: tuple[str, ...]
    lower_is_better: tuple[str, ...]
    higher_is_better: tuple[str, ...]
    covariate: str | None
    strata: str | None
    caps: dict[str, float]
    label_maturity_s: float


class Asked(NamedTuple):
    """A question, and what to tell of it."""

    question: Question
    warnings: tuple[str, ...]


def asked(
    texts: Sequence[str],
    files: Sequence[Path],
    *,
    covariate: str | None,
    strata: str | None,
    lower: Sequence[str],
    higher: Sequence[str],
    caps: Mapping[str, float],
    label_maturity_s: float | None,
) -> Asked:
    """The metrics that are asked for, declared ones written out.

    Args:
        texts: As given to --metric; none with files: all that the files declare.
        files: Resource files; other kinds in them are passed over.
        covariate: As given; None = what the declarations say.
        strata: As given; None = what the declarations say.
        lower: Metrics of which less is better, as given.
        higher: Metrics of which more is better, as given.
        caps: As given; they overrule the declared ones.
        label_maturity_s: As given, in seconds; None = the longest that is declared.

    Raises:
        ValueError: The declarations ask for what one analysis does not do.
        InvalidFiles, Unimplemented, OSError: As `read_documents`.
    """
    documents = [document for _, document in read_documents(files)] if files else []
    known = {
        document.name: definition(document.name, document.spec)
        for document in documents
        if isinstance(document.spec, MetricSpec)
    }
    names = list(texts) or list(known)
    used = [known[name] for name in names if name in known]
    adjusted = {found.name: (found.covariate,) for found in used if found.covariate}
    apart = {found.name: found.segments for found in used if found.segments}
    before = _Column(covariate, ()) if covariate else _one("covariate", names, adjusted)
    groups = _Column(strata, ()) if strata else _one("segments", names, apart)
    question = Question(
        tuple(_written(known[name]) if name in known else name for name in names),
        (*lower, *(found.name for found in used if found.direction is Direction.LOWER)),
        (*higher, *(found.name for found in used if found.direction is Direction.HIGHER)),
        before.column,
        groups.column,
        {found.name: found.cap for found in used if found.cap is not None} | dict(caps),
        max((found.label_maturity_s for found in used), default=0.0)
        if label_maturity_s is None
        else label_maturity_s,
    )
    return Asked(question, before.warnings + groups.warnings)


def _written(found: Definition) -> str:
    if found.kind is Kind.CLASSIFIER:
        return f"{found.name}:{found.statistic}"
    if found.kind is Kind.RATIO:
        return f"{found.name}:ratio:{found.numerator}/{found.denominator}"
    level = f":{found.quantile}" if found.quantile is not None else ""
    return f"{found.name}={found.value}:{found.kind}{level}"


class _Column(NamedTuple):
    """The one column that all metrics of an analysis share, None = none declares one."""

    column: str | None
    warnings: tuple[str, ...]


def _one(field: str, names: Sequence[str], declared: Mapping[str, Sequence[str]]) -> _Column:
    """The column that metrics declare, with a warning where it reaches others that do not.

    Raises:
        ValueError: They declare several.
    """
    found = sorted({column for columns in declared.values() for column in columns})
    if not found:
        return _Column(None, ())
    if len(found) > 1:
        raise ValueError(
            f"metrics: {field}: {', '.join(found)}: an analysis takes one; ask for these metrics "
            "one after the other, or say which by --covariate or --strata"
        )
    others = [name for name in names if name not in declared]
    if not others:
        return _Column(found[0], ())
    told = f"{field}: {found[0]}, which {', '.join(declared)} declares, is used for"
    return _Column(found[0], (f"{told} {', '.join(others)}, too",))
