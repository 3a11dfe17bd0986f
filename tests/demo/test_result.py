"""summary.json has exactly the agreed keys, and an act is right only if every claim held."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console as Terminal

from envoy.demo.report import print_act, print_summary
from envoy.demo.result import ActResult, Row, write_summary


def act() -> ActResult:
    made = ActResult("errors", "Act 3", requests=10, final_state="ROLLED_BACK", reason="because")
    made.unstamped = {"timeout": 1, "unknown": 2}
    made.seconds_to_zero, made.exposed_requests, made.exposed_users = 3.14159, 7, 5
    made.variants = {"v3": Row(7, 2, 0.98765, 1.0, 2.0), "v2": Row(3, 0, None, None, None)}
    made.claim("it holds", held=True)
    return made


def test_summary_has_exactly_the_agreed_keys(tmp_path: Path) -> None:
    write_summary(tmp_path / "summary.json", [act()])
    assert json.loads((tmp_path / "summary.json").read_text()) == {
        "acts": [
            {
                "name": "errors",
                "ok": True,
                "requests": 10,
                "failed": 0,
                "unstamped": 3,
                "final_state": "ROLLED_BACK",
                "reason": "because",
                "seconds_to_zero": 3.14,
                "exposed_requests": 7,
                "variants": {
                    "v3": {"requests": 7, "errors": 2, "accuracy": 0.9877, "p95_ms": 2.0},
                    "v2": {"requests": 3, "errors": 0, "accuracy": None, "p95_ms": None},
                },
            }
        ]
    }


def test_act_is_wrong_when_one_claim_did_not_hold() -> None:
    wrong = act()
    wrong.claim("it does not", held=False)
    assert not wrong.ok


def test_act_is_wrong_when_nothing_was_claimed() -> None:
    assert not ActResult("x", "x").ok


def test_tables_show_claims_that_did_not_hold() -> None:
    wrong, out = act(), io.StringIO()
    wrong.claim("it does not", held=False, detail="3 of 4")
    terminal = Terminal(file=out, width=120)
    print_act(terminal, wrong)
    print_summary(terminal, [wrong])
    assert "FAIL it does not (3 of 4)" in out.getvalue()
    assert "exposed 5 users, 7 requests" in out.getvalue()
    assert "NO" in out.getvalue()
