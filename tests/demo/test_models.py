"""The demo's models are what its story says they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from envoy.demo.models import Classifier, digits, fails, fit, load, thin


def accuracy(classifier: Classifier) -> float:
    _, serve = digits()
    right = sum(
        classifier.answer(row).digit == label
        for row, label in zip(serve.rows, serve.labels, strict=True)
    )
    return float(right / len(serve.labels))


def test_data_set_has_the_same_halves_every_time() -> None:
    learn, serve = digits()
    assert (len(learn.labels), len(serve.labels)) == (897, 900)
    assert (digits()[1].rows == serve.rows).all()


def test_honest_models_are_good_and_the_second_is_better() -> None:
    first, second = accuracy(fit("1")), accuracy(fit("2"))
    assert 0.93 < first < second


def test_fifth_model_is_wrong_half_as_often_as_the_second() -> None:
    assert 1 - accuracy(fit("5")) < 0.6 * (1 - accuracy(fit("2")))


def test_fourth_model_is_clearly_worse() -> None:
    assert accuracy(fit("4")) < 0.7


def test_sixth_model_is_as_good_as_the_fifth_but_for_thin_pens() -> None:
    _, serve = digits()
    fifth, sixth = (
        np.array([classifier.answer(row).digit for row in serve.rows])
        for classifier in (fit("5"), fit("6"))
    )
    drawn = thin(serve.rows)
    assert 0.1 < drawn.mean() < 0.15
    assert (fifth == sixth)[~drawn].all()
    assert (fifth == serve.labels)[drawn].mean() > 0.95
    assert (sixth == serve.labels)[drawn].mean() < 0.1


def test_third_model_fails_on_at_most_a_fifth_of_the_inputs() -> None:
    _, serve = digits()
    share = sum(fails(row.tobytes()) for row in serve.rows) / len(serve.labels)
    assert 0.1 < share <= 0.2


def test_model_is_read_from_disk_when_it_was_fitted_before(tmp_path: Path) -> None:
    first = load("4", tmp_path)
    (kept,) = tmp_path.iterdir()
    written = kept.stat().st_mtime_ns
    again = load("4", tmp_path)
    _, serve = digits()
    assert kept.stat().st_mtime_ns == written
    assert again.answer(serve.rows[0]) == first.answer(serve.rows[0])


def test_unknown_version_is_refused() -> None:
    with pytest.raises(ValueError, match="no version '9'"):
        fit("9")
