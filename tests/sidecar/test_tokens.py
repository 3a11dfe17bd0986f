"""Force tokens and hop marks: what the shared vectors say, and what is remembered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sidecar.tokens import REMEMBERED_MAX, HopMarks, TokenVerifier

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "tokens.json").read_text()
)


def named(kind: str) -> pytest.MarkDecorator:
    cases = [{**VECTORS[kind], **case} for case in VECTORS[kind]["cases"]]
    return pytest.mark.parametrize("case", cases, ids=[case["name"] for case in cases])


def verifier(case: dict[str, Any]) -> TokenVerifier:
    return TokenVerifier(bytes.fromhex(case["key"]), case["tenant"])


@named("force_good")
def test_token_is_believed(case: dict[str, Any]) -> None:
    checking = verifier(case)
    for _ in range(2):  # the second time it is remembered
        found = checking.verify(case["token"].encode(), case["now"])
        assert found is not None
        assert (found.experiment, found.variant) == (case["experiment"], case["variant"])
        assert found.unit == bytes.fromhex(case["unit"])
        assert (found.issued_s, found.expires_s) == (case["issued"], case["expires"])


@named("force_bad")
def test_token_is_not_believed(case: dict[str, Any]) -> None:
    checking = verifier(case)
    for _ in range(2):
        assert checking.verify(case["token"].encode(), case["now"]) is None


def test_token_ends_although_it_was_believed_before() -> None:
    case = VECTORS["force_good"]["cases"][0]
    checking, token = verifier(case), case["token"].encode()
    assert checking.verify(token, case["expires"] - 0.001) is not None
    assert checking.verify(token, case["expires"]) is None
    assert checking.verify(token, case["issued"] - 61) is None


def test_remembered_tokens_are_bounded() -> None:
    case = VECTORS["force_good"]["cases"][0]
    checking = verifier(case)
    for number in range(3 * REMEMBERED_MAX):
        assert checking.verify(b"v1.%d.x" % number, case["now"]) is None
    assert len(checking._known) <= REMEMBERED_MAX
    assert checking.verify(case["token"].encode(), case["now"]) is not None


@named("hop")
def test_mark_is_good_when_the_vectors_say_so(case: dict[str, Any]) -> None:
    marks = HopMarks(bytes.fromhex(case["key"]), case["tenant"])
    request_id, mark = bytes.fromhex(case["request_id"]), case["mark"].encode()
    assert marks.is_good(mark, request_id, case["now"]) is case["valid"]
    if case["valid"]:
        assert marks.make(request_id, case["seconds"]) == mark
