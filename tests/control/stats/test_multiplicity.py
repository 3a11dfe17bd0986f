"""Adjusted p-values and e-BH keep their rates and their order."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.stats.multiplicity import adjust, e_bh

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@given(P_VALUES, st.sampled_from(["holm", "bh"]))
def test_adjusted_values_keep_order_and_decide_like_reject(
    p: list[float], method: Literal["holm", "bh"]
) -> None:
    r = adjust(p, method=method)
    assert np.all(r.adjusted >= np.array(p))
    assert np.all(np.diff(r.adjusted[np.argsort(p, kind="stable")]) >= 0)
    clear = np.abs(r.adjusted - 0.05) > 1e-9
    assert np.array_equal(r.reject[clear], (r.adjusted <= 0.05)[clear])


@given(P_VALUES)
def test_holm_rejects_no_more_than_bh_and_no_less_than_bonferroni(p: list[float]) -> None:
    holm, bh = adjust(p, method="holm").reject, adjust(p, method="bh").reject
    assert np.all(bh >= holm)
    assert np.all(holm >= (np.array(p) <= 0.05 / len(p)))


def test_one_test_is_not_adjusted() -> None:
    assert adjust([0.03], method="holm").adjusted == adjust([0.03], method="bh").adjusted == [0.03]


def test_e_bh_rejects_the_largest_set_that_passes() -> None:
    assert list(e_bh([100.0, 1.0, 30.0, np.inf], alpha=0.05)) == [True, False, True, True]
    assert list(e_bh([39.0, 1.0], alpha=0.05)) == [False, False]
    assert list(e_bh([20.0, 20.0], alpha=0.05)) == [True, True]


def test_adjustment_refuses_bad_input() -> None:
    with pytest.raises(ValueError, match=r"p_values == 1.5"):
        adjust([1.5], method="holm")
    with pytest.raises(ValueError, match=r"p_values == nan"):
        adjust([np.nan], method="bh")
    with pytest.raises(ValueError, match=r"p_values has 0 values"):
        adjust([], method="bh")
    with pytest.raises(ValueError, match=r"method == 'none'"):
        adjust([0.5], method="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"e_values == nan"):
        e_bh([np.nan])
    with pytest.raises(ValueError, match=r"e_values has shape \(0,\)"):
        e_bh([])
