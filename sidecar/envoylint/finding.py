"""What lint says: findings, and the rules that make them.

Owns their form. Refuses to know any rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from sidecar.envoyfiles import cluster_plans
from sidecar.envoyfilter import PSEUDO_HEADERS, forwarded_headers, is_verified
from sidecar.envoylint.config import Config
from sidecar.envoylint.document import Node
from turnout import contract
from turnout.v1alpha1.snapshot_pb2 import Snapshot

ERROR = "error"
WARNING = "warning"


class Needs(NamedTuple):
    """What a plan needs of Envoy.

    Attributes:
        headers: Request headers without which the sidecar finds no target, unit or segment.
        baselines: Clusters of Envoy's own that are a target's baseline.
        candidates: Clusters of Envoy's own that are a candidate; None = no plan was given.
        tokens: There is an experiment, and so may be tokens that force a variant.
        session: A unit is a cookie that the sidecar issues.
        claims: `payload_in_metadata` of units that are verified claims.
    """

    headers: tuple[str, ...] = PSEUDO_HEADERS
    baselines: frozenset[str] = frozenset()
    candidates: frozenset[str] | None = None
    tokens: bool = False
    session: bool = False
    claims: frozenset[str] = frozenset()

    @classmethod
    def of(cls, snapshot: Snapshot) -> Needs:
        """The needs of a snapshot."""
        external = {p.cluster for p in cluster_plans(snapshot) if p.upstream.cluster}
        baselines = {target.baseline.cluster for target in snapshot.targets} & external
        headers = tuple(n for n in forwarded_headers(snapshot) if n != contract.HEADER_FORCE)
        units = [experiment.unit for experiment in snapshot.experiments]
        claims = (u.jwt_claim.payload_in_metadata for u in units if is_verified(u.jwt_claim))
        return cls(
            headers,
            frozenset(baselines),
            frozenset(external - baselines),
            tokens=bool(units),
            session=any(unit.HasField("session") for unit in units),
            claims=frozenset(claims),
        )


class Hit(NamedTuple):
    """A place that breaks a rule, and the fact that breaks it."""

    node: Node
    fact: str
    line: int = 0  # another line than the node's


class Rule(NamedTuple):
    """A trap.

    Attributes:
        id: Stable name.
        severity: "error": requests fail or are not split, or a client chooses its variant;
            "warning": it holds until the first bad day.
        why: What happens.
        remedy: What to write.
        check: Finds the places.
    """

    id: str
    severity: str
    why: str
    remedy: str
    check: Callable[[Config, Needs], Iterable[Hit]]


class Finding(NamedTuple):
    """One trap at one place."""

    file: str
    line: int
    rule: str
    severity: str
    fact: str
    why: str
    remedy: str


def judge(config: Config, needs: Needs, rules: Iterable[Rule]) -> Iterator[Finding]:
    """Apply rules."""
    for rule in rules:
        for hit in rule.check(config, needs):
            line = hit.line or hit.node.line
            yield Finding(
                hit.node.file, line, rule.id, rule.severity, hit.fact, rule.why, rule.remedy
            )
