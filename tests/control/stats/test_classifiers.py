"""Classifier metrics add as ratios of sums and are NaN without a denominator."""

from __future__ import annotations

import numpy as np
import pytest

from control.stats.classifiers import Confusion, classifier_scores, ratio_sums
from control.stats.clusters import bucket_ratio


def test_metrics_of_buckets_add_up_to_those_of_all() -> None:
    rng = np.random.default_rng(6)
    buckets = Confusion(*rng.poisson([[80], [20], [15], [185]], (4, 64)))
    whole = classifier_scores(Confusion(*(np.sum(part) for part in buckets)))
    for metric in ("accuracy", "precision", "recall", "specificity", "false_positive_rate", "f1"):
        ratio = bucket_ratio(*ratio_sums(buckets, metric))
        assert ratio.ratio == pytest.approx(float(getattr(whole, metric)), rel=1e-12)
        assert ratio.variance > 0


def test_metrics_are_nan_where_their_denominator_is_0() -> None:
    r = classifier_scores(Confusion(0, 0, 3, 4))
    assert np.isnan([r.precision, r.mcc]).all()
    assert [float(x) for x in (r.recall, r.f1, r.specificity)] == [0, 0, 1]
    assert np.isnan(classifier_scores(Confusion(0, 0, 0, 0))).all()


def test_metrics_work_on_cells_and_at_1e9() -> None:
    r = classifier_scores(Confusion([10**9, 1], 10**9, [1, 1], 10**9))
    assert r.precision[0] == 0.5
    assert 0 < r.mcc[0] < 1


def test_metrics_refuse_bad_input() -> None:
    with pytest.raises(ValueError, match=r"fn == -1"):
        classifier_scores(Confusion(1, 1, -1, 1))
    with pytest.raises(ValueError, match=r"tp == 0.5, must be whole"):
        classifier_scores(Confusion(0.5, 1, 1, 1))
    with pytest.raises(ValueError, match=r"metric == 'auc'"):
        ratio_sums(Confusion(1, 1, 1, 1), "auc")  # type: ignore[arg-type]
