"""What the benchmark writes, without running it: it needs wrk and an idle machine."""

from __future__ import annotations

from tests.benchmarks.split import Run, _milliseconds, cells, document


def test_results_name_machine_commit_and_every_setup() -> None:
    runs = {
        "no ext_proc": [Run(20_000.4, 41.2, None, 2.5), Run(21_000.0, 40.0, None, 3.0)],
        "Turnout": [Run(4_000.0, 151.0, 208.25, 24.0), Run(4_100.0, 150.0, 209.0, 20.0)],
    }
    text = document(runs, seconds=5, load=0.1)
    assert "| no ext_proc | 20,000 · 21,000 | 41 · 40 | - | 2.5 · 3.0 |" in text
    assert "| Turnout | 4,000 · 4,100 | 151 · 150 | 208.2 · 209.0 | 24.0 · 20.0 |" in text
    assert "- Machine: " in text
    assert "- Commit: " in text
    assert "2 rounds of 5 s" in text


def test_cells_show_a_dash_when_there_is_no_sidecar() -> None:
    assert cells([Run(1.0, 2.0, None, 3.0)])[2] == "-"


def test_wrk_latencies_are_read_in_every_unit() -> None:
    assert [_milliseconds(text) for text in ("250us", "1.5ms", "2.00s")] == [0.25, 1.5, 2000.0]
