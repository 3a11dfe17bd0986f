"""The assignment benchmark measures what it says: stamped answers, by the short way."""

from __future__ import annotations

import pytest

from sidecar.outcome import Outcome
from sidecar.processor import process
from tests.benchmarks import assignment


def never() -> bytes:
    raise AssertionError("no chance is needed")


@pytest.mark.parametrize(
    ("name", "stamped"), [("1", 1), ("turnout_20", 4), ("20 on one target", 5)]
)
def test_every_request_is_stamped_with_as_many_assignments_as_layers(
    name: str, stamped: int
) -> None:
    plan = assignment.build(assignment.SNAPSHOTS[name]())
    for number in range(50):
        request = assignment.encoded(b"user-%d" % number)
        assert plan.decoder.quick(request) is not None
        answer = process(plan, request, random_unit=never, now_s=lambda: 0.0)
        assert answer.outcome is Outcome.STAMPED
        assert answer.response is not None
        assert b"x-turnout-shadow" not in answer.response
        assert len(answer.slots) == stamped


def test_every_case_can_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignment, "REQUESTS", 20)
    monkeypatch.setattr(assignment, "ROUNDS", 2)
    monkeypatch.setattr(assignment, "OTHERS", 3)
    found = assignment.measure(list(assignment.cases()), dict)
    assert len(found) == 5 * len(assignment.SNAPSHOTS) + 1
    assert all(len(values) == 2 and min(values) > 0 for values in found.values())
    assert all(value > 0 for value in assignment.plan_times().values())
