"""What an act ended with: claims that held or did not, figures, and the summary file's schema."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple


class Claim(NamedTuple):
    """Something that must be true at the end of an act."""

    text: str
    held: bool
    # The figures that show it.
    detail: str


class Row(NamedTuple):
    """One variant's figures."""

    requests: int
    errors: int
    accuracy: float | None
    p50_ms: float | None
    p95_ms: float | None


@dataclass(slots=True)
class ActResult:
    """One act, as the closing table and the summary show it.

    Attributes:
        name: Short name, unique.
        title: One line for people.
        requests: Requests that clients sent.
        failed: Requests that failed, but those that a model version failed on purpose.
        unstamped: Requests for which the sidecar gave no answer, by reason.
        final_state: State of the experiment, as the API names it, without its prefix.
        reason: Why it ended, Turnout's own sentence.
        seconds_to_zero: From the bad model's first bad answer to the last request that it served.
        exposed_requests, exposed_users: Who met the bad model; None where no model was bad.
        variants: By name.
        claims: What had to hold.
    """

    name: str
    title: str
    requests: int = 0
    failed: int = 0
    unstamped: dict[str, int] = field(default_factory=dict)
    final_state: str = ""
    reason: str = ""
    seconds_to_zero: float | None = None
    exposed_requests: int | None = None
    exposed_users: int | None = None
    variants: dict[str, Row] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)

    def claim(self, text: str, held: bool, detail: object = "") -> None:
        """Add one claim."""
        self.claims.append(Claim(text, held, str(detail)))

    @property
    def ok(self) -> bool:
        """Whether everything held; an act that claims nothing has shown nothing."""
        return bool(self.claims) and all(claim.held for claim in self.claims)

    def summary(self) -> dict[str, Any]:
        """The act in summary.json."""
        return {
            "name": self.name,
            "ok": self.ok,
            "requests": self.requests,
            "failed": self.failed,
            "unstamped": sum(self.unstamped.values()),
            "final_state": self.final_state,
            "reason": self.reason,
            "seconds_to_zero": _rounded(self.seconds_to_zero, 2),
            "exposed_requests": self.exposed_requests,
            "variants": {
                name: {
                    "requests": row.requests,
                    "errors": row.errors,
                    "accuracy": _rounded(row.accuracy, 4),
                    "p95_ms": _rounded(row.p95_ms, 2),
                }
                for name, row in self.variants.items()
            },
        }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def write_summary(path: Path, acts: Sequence[ActResult]) -> None:
    """Write summary.json, whole or not at all."""
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps({"acts": [act.summary() for act in acts]}, indent=2) + "\n")
    draft.replace(path)
