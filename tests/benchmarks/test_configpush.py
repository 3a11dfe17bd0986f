"""The configuration-push benchmark runs: everybody acknowledges, and comes back after a crash."""

from __future__ import annotations

from tests.benchmarks.configpush import measure


async def test_every_sidecar_is_current_when_a_target_changes_and_when_the_control_plane_dies() -> (
    None
):
    """A short form of `python -m tests.benchmarks.configpush`; its figures are not judged here."""
    push, herd = await measure([20], 50, 3, 2)
    assert push["changes"] == 3
    assert 0 < push["p50_ms"] <= push["p99_ms"] <= push["max_ms"]
    assert push["snapshot_bytes"] > 0
    assert herd["sidecars"] == 50
    assert 0 < herd["all_current_s"] <= herd["since_kill_s"]
