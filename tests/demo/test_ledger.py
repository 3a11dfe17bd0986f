"""The ledger's figures follow from its lines."""

from __future__ import annotations

import pytest

from envoy.demo.ledger import Ledger, Line, percentile


def line(
    at_s: float,
    *,
    user: str = "u",
    status: int = 200,
    variant: str = "",
    model: str = "2",
    correct: bool | None = True,
) -> Line:
    return Line(at_s, at_s + 0.01, user, status, variant, model, correct, f"r{at_s}")


def ledger(*lines: Line) -> Ledger:
    made = Ledger()
    for each in lines:
        made.add(each)
    return made


def test_seconds_to_zero_run_from_the_first_bad_answer_to_the_last_request() -> None:
    book = ledger(
        line(1.0, model="3"),
        line(2.0, model="3", status=500, correct=None),
        line(5.0, model="3"),
        line(9.0),
    )
    assert book.seconds_to_zero("3") == pytest.approx(2.99)
    assert book.seconds_to_zero("4") is None


def test_seconds_to_zero_start_with_a_wrong_answer() -> None:
    book = ledger(line(1.0, model="4"), line(2.0, model="4", correct=False), line(4.0, model="4"))
    assert book.seconds_to_zero("4") == pytest.approx(1.99)


def test_failures_leave_out_the_excused_model_only() -> None:
    book = ledger(
        line(1.0, model="3", status=500, correct=None),
        line(2.0, model="2", status=500, correct=None),
        line(3.0, model="", status=503, correct=None),
        line(4.0, model="", status=0, correct=None),
        line(5.0),
    )
    assert [each.sent_s for each in book.failures(excused="3")] == [2.0, 3.0, 4.0]
    assert len(book.failures()) == 4


def test_users_who_moved_are_found_by_their_stamps() -> None:
    book = ledger(
        line(1.0, user="a", variant="v1"),
        line(2.0, user="a", variant="v2"),
        line(3.0, user="b", variant="v1"),
        line(4.0, user="b"),
    )
    assert book.moved() == ["a"]
    assert book.users() == 2


def test_figures_count_unstamped_requests_for_the_baseline() -> None:
    book = ledger(line(1.0), line(2.0, variant="v1", correct=False), line(3.0, variant="v2"))
    figures = book.figures(unstamped="v1")
    assert (figures["v1"].requests, figures["v1"].accuracy) == (2, 0.5)
    assert figures["v2"].requests == 1


def test_percentile_is_the_nearest_rank() -> None:
    assert percentile([3.0, 1.0, 2.0, 4.0], 0.5) == 2.0
    assert percentile([3.0, 1.0, 2.0, 4.0], 0.95) == 4.0
    assert percentile([], 0.5) is None
