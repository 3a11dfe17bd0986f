"""Shares of units: what each variant should have, and whether it has it."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Final

from control.analyze.errors import BadInput, closest, listed
from control.analyze.result import SampleRatio
from control.stats.counts import count_evidence
from control.stats.srm import srm_chi2

ALPHA: Final = 0.001  # of the sequential sample ratio
_SUM_TOLERANCE: Final = 1e-6
_ROUNDING: Final = 0.02  # of shares that were written with few digits, as 0.33 three times


def check_expected(
    expected: Mapping[str, float], variants: tuple[str, ...]
) -> tuple[dict[str, float], str]:
    """Shares that sum to 1, for every variant of the data, and a warning or "".

    Raises:
        BadInput: A share is no positive number, a variant has none, or is not in the data; shares
            below 1, which cannot be weights by their looks, do not sum to 1.
    """
    for name, share in expected.items():
        if not (math.isfinite(share) and share > 0):
            raise BadInput(f"expected: {name}={share:g}: a share must be above 0")
        if name not in variants:
            raise BadInput(
                f"expected: {name!r}: no such variant in the data{closest(name, variants)}; "
                f"variants: {listed(variants)}"
            )
    missing = [name for name in variants if name not in expected]
    if missing:
        raise BadInput(
            f"expected: no share for {listed(missing)}; give one to every variant of the data"
        )
    total = math.fsum(expected.values())
    if max(expected.values()) < 1 and abs(total - 1) > _ROUNDING:
        raise BadInput(
            f"expected: the shares sum to {total:g}, must sum to 1: correct them (is a variant "
            "missing?), or give weights, as 3 and 2"
        )
    usual = any(abs(total - whole) <= _SUM_TOLERANCE * whole for whole in (1.0, 100.0))
    said = " : ".join(f"{expected[name]:g}" for name in variants)
    warning = "" if usual else f"expected shares sum to {total:g}, not 1: taken as {said}"
    return {name: expected[name] / total for name in variants}, warning


def sample_ratio(counts: Mapping[str, int], shares: Mapping[str, float]) -> SampleRatio | None:
    """Both tests of the units per variant; None without any unit."""
    names = [name for name in shares if name in counts] if len(counts) < 2 else list(shares)
    observed = {name: counts.get(name, 0) for name in names}
    if sum(observed.values()) == 0 or len(names) < 2:
        return None
    weights = [shares[name] for name in names]
    fixed = srm_chi2(list(observed.values()), weights)
    expected = {name: float(units) for name, units in zip(names, fixed.expected, strict=True)}
    # A smaller e-value is one, too: what no float can hold is given as the largest.
    log_e = min(log_evidence(observed, shares), math.log(sys.float_info.max))
    return SampleRatio(float(fixed.p_value), math.exp(log_e), expected, observed)


def log_evidence(observed: Mapping[str, int], shares: Mapping[str, float]) -> float:
    """The ln of the e-value against units that fall by these shares."""
    weights = [shares[name] for name in observed]
    return float(count_evidence(list(observed.values()), weights).log_e)
