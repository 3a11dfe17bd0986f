"""Group sequential bounds: a few looks, planned beforehand, against a known maximum of information.

Owns Lan-DeMets alpha spending with the power family. Refuses looks that were not planned to grow:
for streams without a plan `confseq` is right.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from control.stats.distributions import normal_pdf, normal_ppf, normal_sf
from control.stats.errors import FloatArray, check_alpha, check_scalar, check_vector, require

_NODES: Final = 512
_FAR: Final = 9.0  # standard deviations below which the score process has no mass to speak of
_Z_MAX: Final = 38.0  # beyond it a float64 tail is 0


def spent_alpha(information_fractions: npt.ArrayLike, *, alpha: float, phi: float) -> FloatArray:
    """Error probability spent by each look: alpha t^phi.

    Args:
        information_fractions: Of the planned maximum, increasing, in (0, 1], shape (looks,).
        alpha: In (0, 1).
        phi: > 0; 1 is like Pocock, 3 like O'Brien-Fleming.

    Raises:
        ValueError: An argument is outside its range.

    Source: Kim, DeMets 1987, Biometrika 74.
    """
    t = check_vector("information_fractions", information_fractions, ge=0, le=1)
    require("information_fractions", t, t > 0, "> 0")
    require("information_fractions", t[1:], np.diff(t) > 0, "increasing")
    return np.asarray(check_alpha(alpha) * t ** check_scalar("phi", phi, gt=0))


def group_sequential_bounds(
    information_fractions: npt.ArrayLike, *, alpha: float = 0.05, phi: float = 2.0, sides: int = 2
) -> FloatArray:
    """Z bounds per look, shape (looks,): stop when z (sides = 2: |z|) exceeds its look's bound.

    Each side spends alpha / sides on its own, as if the other bound were not there; that errs on
    the safe side, by less than 1e-3 for common alphas.

    Args:
        information_fractions: Of the planned maximum, increasing, in (0, 1].
        alpha: Total error probability, in (0, 1).
        phi: Of the spending function, > 0.
        sides: 1 or 2.

    Raises:
        ValueError: An argument is outside its range.

    Source: Lan, DeMets 1983; recursive integration of Armitage, McPherson, Rowe 1969. Checked
    against: group_sequential.json (spotify-confidence). O(looks x 512^2).
    """
    if sides not in (1, 2):
        raise ValueError(f"sides == {sides!r}, must be 1 or 2")
    t = check_vector("information_fractions", information_fractions)
    steps = np.diff(spent_alpha(t, alpha=alpha, phi=phi) / sides, prepend=0.0)
    unit_nodes, unit_weights = np.polynomial.legendre.leggauss(_NODES)
    bounds = [min(float(-normal_ppf(steps[0])), _Z_MAX)]
    nodes = density = weights = np.empty(0)
    for look in range(1, len(t)):
        # The score process, z sqrt(t), has independent increments; keep what has not crossed yet.
        before = np.sqrt(t[look - 1])
        low, high = -_FAR * before, bounds[-1] * before
        grid = (high - low) / 2 * unit_nodes + (high + low) / 2
        if look == 1:
            density_here = normal_pdf(grid / before) / before
        else:
            sd = np.sqrt(t[look - 1] - t[look - 2])
            kernel = normal_pdf((grid[:, None] - nodes) / sd) / sd
            density_here = kernel @ (weights * density)
        nodes, density, weights = grid, density_here, (high - low) / 2 * unit_weights
        bounds.append(_bound(nodes, density * weights, t[look], t[look] - t[look - 1], steps[look]))
    return np.asarray(bounds)


def _bound(nodes: FloatArray, mass: FloatArray, t: float, step: float, spend: float) -> float:
    def excess(z: float) -> float:
        tail = normal_sf((z * np.sqrt(t) - nodes) / np.sqrt(step))
        return float(np.sum(mass * tail) - spend)

    if excess(_Z_MAX) >= 0:
        return _Z_MAX
    from scipy import optimize  # slow to import, and only needed here

    return float(optimize.brentq(excess, -_FAR, _Z_MAX, xtol=1e-12))
