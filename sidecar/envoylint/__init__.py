"""Traps in an Envoy configuration that somebody else wrote.

`lint` reads bootstraps, discovery responses, listeners, connection managers, route configurations
and clusters, and says at which line something will hurt beside a sidecar. Rules about ext_proc
look at the filter called `turnout` or calling `turnout_workers`; where there is none, at every
ext_proc filter; and a file without one is no concern of theirs. Owns no IO.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sidecar.envoylint import clusterrules, filerules, filterrules, managerrules, routerules
from sidecar.envoylint.config import Config
from sidecar.envoylint.document import UnreadableFile, load
from sidecar.envoylint.finding import ERROR, WARNING, Finding, Needs, Rule, judge

__all__ = [
    "ERROR", "RULES", "WARNING", "Finding", "Needs", "Rule", "UnreadableFile", "has_processor",
    "lint",
]  # fmt: skip

RULES: Final[tuple[Rule, ...]] = (
    *filterrules.RULES,
    *managerrules.RULES,
    *routerules.RULES,
    *clusterrules.RULES,
    *filerules.RULES,
)


def lint(files: Mapping[str, bytes], needs: Needs | None = None) -> list[Finding]:
    """Find the traps in files that one Envoy reads together.

    Args:
        files: Contents by name; the names appear in the findings.
        needs: What the plan needs; None = no plan is known.

    Returns:
        Findings by file and line.

    Raises:
        UnreadableFile: A file cannot be judged.
    """
    config = _config(files)
    found = set(judge(config, needs or Needs(), RULES))
    return sorted(found, key=lambda f: (f.file, f.line, f.rule, f.fact))


def has_processor(files: Mapping[str, bytes]) -> bool:
    """Whether any of the files has an ext_proc filter.

    Raises:
        UnreadableFile: A file cannot be judged.
    """
    config = _config(files)
    return bool(config.managers or config.processors)


def _config(files: Mapping[str, bytes]) -> Config:
    return Config([document for name, data in files.items() for document in load(data, name)])
