"""Metrics of a classifier from its confusion counts.

Owns their definitions, and each as a ratio of sums so that `clusters.bucket_ratio` gives it a valid
variance. Refuses a number where the denominator is 0: NaN, undecided.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from control.stats.errors import FloatArray, check, check_shapes

Metric = Literal["accuracy", "precision", "recall", "specificity", "false_positive_rate", "f1"]


class Confusion(NamedTuple):
    """Counts of true and false positives and negatives; whole, >= 0, shapes that fit."""

    tp: npt.ArrayLike
    fp: npt.ArrayLike
    fn: npt.ArrayLike
    tn: npt.ArrayLike


class Scores(NamedTuple):
    """Every metric, in [0, 1] (mcc [-1, 1]); NaN without a denominator. Arrays of one shape."""

    accuracy: FloatArray
    precision: FloatArray
    recall: FloatArray
    specificity: FloatArray
    false_positive_rate: FloatArray
    f1: FloatArray
    mcc: FloatArray


def ratio_sums(counts: Confusion, metric: Metric) -> tuple[FloatArray, FloatArray]:
    """Numerator and denominator of a metric; both add over users, buckets and sidecars.

    Args:
        counts: Any shape, such as (buckets,).
        metric: Which.

    Raises:
        ValueError: Counts that are no counts, or an unknown metric.

    Source: textbook; F1 = 2 tp / (2 tp + fp + fn). O(1) per cell.
    """
    tp, fp, fn, tn = _counts(counts)
    if metric not in get_args(Metric):
        raise ValueError(f"metric == {metric!r}, must be one of {get_args(Metric)}")
    return {
        "accuracy": (tp + tn, tp + fp + fn + tn),
        "precision": (tp, tp + fp),
        "recall": (tp, tp + fn),
        "specificity": (tn, tn + fp),
        "false_positive_rate": (fp, tn + fp),
        "f1": (2 * tp, 2 * tp + fp + fn),
    }[metric]


def classifier_scores(counts: Confusion) -> Scores:
    """All metrics of confusion counts; vectorised.

    Args:
        counts: Whole, >= 0.

    Raises:
        ValueError: Counts that are no counts.

    Source: textbook; mcc by Matthews 1975. Checked against: classifier.json (scikit-learn).
    O(1) per cell.
    """
    tp, fp, fn, tn = _counts(counts)
    # Roots one by one: the product of four margins of 1e9 each is near the end of float64's digits.
    margins = np.sqrt(tp + fp) * np.sqrt(tp + fn) * np.sqrt(tn + fp) * np.sqrt(tn + fn)
    mcc = (tp * tn - fp * fn) / np.where(margins > 0, margins, np.nan)
    scores = {metric: _ratio(*ratio_sums(counts, metric)) for metric in get_args(Metric)}
    return Scores(mcc=np.asarray(mcc)[()], **scores)


def _ratio(top: FloatArray, bottom: FloatArray) -> FloatArray:
    return np.asarray(top / np.where(bottom > 0, bottom, np.nan))[()]


def _counts(counts: Confusion) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    tp, fp, fn, tn = (
        check(name, value, ge=0, whole=True)
        for name, value in zip(Confusion._fields, counts, strict=True)
    )
    shape = check_shapes(tp=tp, fp=fp, fn=fn, tn=tn)
    return (
        np.broadcast_to(tp, shape),
        np.broadcast_to(fp, shape),
        np.broadcast_to(fn, shape),
        np.broadcast_to(tn, shape),
    )
