"""Snapshots: canonical bytes, cluster names, what is refused; `turnout snapshot` on files."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from control import snapshot as snapshots
from control.commands.snapshot import build as build_files
from control.model import split_at
from control.snapshot import RunningExperiment, cluster_name, derived_salt, encode, grow
from sidecar.snapshotcheck import validate
from tests.control.resources import EXPERIMENT, TARGET, document, replaced
from turnout.contract import BUCKET_COUNT, SNAPSHOT_MAGIC
from turnout.v1alpha1.common_pb2 import (
    BAD_EVENT_KIND_ERROR,
    BAD_EVENT_KIND_SLOW,
    BAD_EVENT_KIND_WRONG,
    Tombstone,
    Upstream,
    UpstreamTls,
)
from turnout.v1alpha1.experiment_pb2 import ExperimentSpec
from turnout.v1alpha1.snapshot_pb2 import Snapshot
from turnout.v1alpha1.target_pb2 import Baseline, TargetSpec


def target() -> TargetSpec:
    """The spec of `TARGET`."""
    spec = document(TARGET).spec
    assert isinstance(spec, TargetSpec)
    return spec


def running(step: int = 1, *, text: str = EXPERIMENT, epoch: int = 3) -> RunningExperiment:
    """`EXPERIMENT` at a step."""
    spec = document(text).spec
    assert isinstance(spec, ExperimentSpec)
    spec.salt = "pepper"
    return RunningExperiment(
        name="fraud-v2",
        spec=spec,
        epoch=epoch,
        epoch_start_ms=1_700_000_000_000,
        allocation=grow({}, split_at(spec, step), control="control"),
        shadow=("v2", 0.5) if step == 0 else None,
    )


def built(experiment: RunningExperiment) -> Snapshot:
    """A snapshot of one target and one experiment."""
    return snapshots.build("risk", 7, {"fraud": target()}, [experiment])


def test_snapshot_is_servable_when_a_canary_runs() -> None:
    snapshot = built(running())
    assert validate(snapshot) == []  # the sidecar's own rules
    (plan,) = snapshot.experiments
    assert [variant.name for variant in plan.variants] == ["control", "v2", "v3"]
    spans = [[(piece.start, piece.end) for piece in variant.ranges] for variant in plan.variants]
    assert spans == [[(20_000, BUCKET_COUNT)], [(0, 10_000)], [(10_000, 20_000)]]
    assert list(plan.kinds) == [BAD_EVENT_KIND_ERROR, BAD_EVENT_KIND_SLOW, BAD_EVENT_KIND_WRONG]
    assert plan.slow_after.ToMilliseconds() == 200
    assert (snapshot.tenant, snapshot.version, plan.epoch) == ("risk", 7, 3)
    assert plan.variants[0].cluster == snapshot.targets[0].baseline
    assert not plan.HasField("shadow")


def test_snapshot_carries_the_warm_up_and_the_longer_slos() -> None:
    more = "  metrics:\n    warmUp: 90s"
    text = replaced(EXPERIMENT, "  metrics:", more)
    for metric, slo in (("latency_p99", "2s"), ("latency_p90", "500ms"), ("latency_p50", "2s")):
        guardrail = f"    guardrails:\n    - {{metric: {metric}, slo: {slo}}}"
        text = replaced(text, "    guardrails:", guardrail)
    snapshot = built(running(text=text))
    assert validate(snapshot) == []
    (plan,) = snapshot.experiments
    assert plan.warm_up.ToSeconds() == 90
    assert plan.slow_after.ToMilliseconds() == 200
    assert [one.ToMilliseconds() for one in plan.latency_thresholds] == [500, 2_000]


def test_control_comes_first_when_the_spec_names_it_last() -> None:
    text = replaced(EXPERIMENT, "  - {name: control}\n", "")
    text = replaced(text, "  metrics:", "  - {name: control}\n  metrics:")
    (plan,) = built(running(text=text)).experiments
    assert [variant.name for variant in plan.variants] == ["control", "v2", "v3"]


def test_everybody_is_control_when_a_shadow_runs() -> None:
    snapshot = built(running(0))
    assert validate(snapshot) == []
    (plan,) = snapshot.experiments
    assert [len(variant.ranges) for variant in plan.variants] == [1, 0, 0]
    assert plan.shadow.variant == "v2"
    assert [(piece.start, piece.end) for piece in plan.shadow.ranges] == [(0, 500_000)]


def test_bytes_are_equal_when_inputs_come_in_another_order() -> None:
    first, second = replace(running(), layer_ranges=((500_000, 1_000_000),)), running(epoch=9)
    other = RunningExperiment(
        "another", second.spec, 9, 1, second.allocation, layer_ranges=((0, 500_000),)
    )
    targets = {"fraud": target(), "b": target()}
    dead = [Tombstone(experiment="x", epoch=2), Tombstone(experiment="a", epoch=1)]
    one = snapshots.build("risk", 1, targets, [first, other], dead)
    two = snapshots.build(
        "risk", 1, dict(reversed(targets.items())), [other, first], reversed([*dead, *dead])
    )
    assert encode(one) == encode(two)
    assert [tombstone.experiment for tombstone in one.tombstones] == ["a", "x"]
    assert [plan.name for plan in one.experiments] == ["another", "fraud-v2"]


def test_control_is_the_pinned_baseline_when_the_target_has_moved_on() -> None:
    pinned = Baseline(upstream=Upstream(address="fraud-v0:8080"))
    base = running()
    experiment = RunningExperiment(
        base.name, base.spec, base.epoch, base.epoch_start_ms, base.allocation, baseline=pinned
    )
    snapshot = built(experiment)
    assert snapshot.experiments[0].variants[0].cluster.upstream.address == "fraud-v0:8080"
    assert snapshot.targets[0].baseline.upstream.address == "fraud-v1:8080"


def test_cluster_name_changes_when_anything_of_the_upstream_does() -> None:
    upstreams = [
        Upstream(address="a:1"),
        Upstream(address="a:2"),
        Upstream(address="a:1", http2=True),
        Upstream(address="a:1", health_path="/health"),
        Upstream(address="a:1", tls=UpstreamTls(sni="a")),
        Upstream(address="a:1", tls=UpstreamTls(sni="a", ca="/ca.pem")),
    ]
    names = [cluster_name("fraud", upstream) for upstream in upstreams]
    assert len(set(names)) == len(names)
    assert all(name.startswith("turnout.fraud.") and len(name) == 22 for name in names)
    assert cluster_name("fraud", Upstream(address="a:1")) == names[0]
    assert cluster_name("fraud", Upstream(cluster="mine")) == "mine"
    # Fixed: a new name would make Envoy build a cluster anew at an upgrade of Turnout.
    assert names[0] == "turnout.fraud.42331733"


def test_snapshot_is_refused_when_a_sidecar_could_not_serve_it() -> None:
    good = running()
    with pytest.raises(ValueError, match="names no target: fraud"):
        snapshots.build("risk", 1, {}, [good])
    tombstones = [Tombstone(experiment="fraud-v2", epoch=3)]
    with pytest.raises(ValueError, match="was rolled back at epoch 3"):
        snapshots.build("risk", 1, {"fraud": target()}, [good], tombstones)
    broken = RunningExperiment("x", good.spec, 1, 1, {"control": ((0, 10),)})
    with pytest.raises(ValueError, match="do not tile"):
        snapshots.build("risk", 1, {"fraud": target()}, [broken])
    unknown = RunningExperiment("x", good.spec, 1, 1, {"nobody": ((0, BUCKET_COUNT),)})
    with pytest.raises(ValueError, match="unknown variants"):
        snapshots.build("risk", 1, {"fraud": target()}, [unknown])
    good.spec.salt = ""
    with pytest.raises(ValueError, match="has no salt"):
        built(good)


def test_epoch_is_served_again_when_it_is_above_its_tombstone() -> None:
    tombstones = [Tombstone(experiment="fraud-v2", epoch=2)]
    snapshot = snapshots.build("risk", 1, {"fraud": target()}, [running()], tombstones)
    assert len(snapshot.experiments) == 1


# -- Files -----------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """The two resources in two files."""
    for name, text in (("target.yaml", TARGET), ("experiment.yaml", EXPERIMENT)):
        (tmp_path / name).write_text(text)
    return [tmp_path / "target.yaml", tmp_path / "experiment.yaml"]


def turnout(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    """Run the command."""
    command = [sys.executable, "-m", "turnout.cli", *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=60)
    return subprocess.CompletedProcess(
        command, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


def test_files_give_the_same_bytes_when_they_are_built_twice(files: list[Path]) -> None:
    payload = build_files(files)
    assert payload == build_files(list(reversed(files)))
    snapshot = Snapshot.FromString(payload)
    assert validate(snapshot) == []
    assert snapshot.experiments[0].salt == derived_salt("risk", "fraud-v2") == "cef9d6d19849ac8a"
    assert snapshot.experiments[0].shadow.variant == "v2"  # the first step


def test_snapshot_file_is_written_and_shown_when_resources_are_good(
    files: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.snapshot"
    done = turnout("snapshot", "build", "-f", files[0], "-f", files[1], "-o", out)
    assert (done.returncode, done.stderr) == (0, "")
    data = out.read_bytes()
    assert data.startswith(SNAPSHOT_MAGIC)
    assert snapshots.from_file(data) == build_files(files)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    shown = turnout("snapshot", "show", out)
    assert shown.returncode == 0
    assert '"pathPrefix": "/v2/models/fraud"' in shown.stdout


def test_nothing_is_written_and_every_violation_is_told_when_files_are_bad(
    files: list[Path], tmp_path: Path
) -> None:
    files[0].write_text(replaced(TARGET, "60s", "61m"))
    files[1].write_text(replaced(EXPERIMENT, "v2: 0.05", "v2: 5"))
    out = tmp_path / "out.snapshot"
    done = turnout("snapshot", "build", "-f", files[0], "-f", files[1], "-o", out)
    assert done.returncode == 3
    assert done.stderr.splitlines() == [
        f"{files[0]}:8: spec.timeout: 1h1m: must be at least 1ms and at most 1h",
        f"{files[1]}:22: spec.steps[2].canary.split.v2: 5.0: must be at least 0 and at most 1",
    ]
    assert not out.exists()


def test_exit_code_says_what_failed_when_a_build_fails(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.snapshot"
    missing = turnout("snapshot", "build", "-f", tmp_path / "none.yaml", "-o", out)
    assert (missing.returncode, "No such file" in missing.stderr) == (1, True)
    assert turnout("snapshot", "build", "-o", out).returncode == 2
    files[1].write_text(replaced(EXPERIMENT, "for: 1h,", "for: 1h, lease: 1m,"))
    done = turnout("snapshot", "build", "-f", files[0], "-f", files[1], "-o", out)
    assert done.returncode == 7
    assert done.stderr == f"{files[1]}:22: spec.steps[2].canary.lease: set: not implemented\n"


def test_resources_come_from_standard_input_when_the_file_is_a_dash(tmp_path: Path) -> None:
    out = tmp_path / "out.snapshot"
    text = f"{TARGET}---{EXPERIMENT}".encode()
    assert turnout("snapshot", "build", "-f", "-", "-o", out, stdin=text).returncode == 0
    assert out.exists()


@pytest.mark.parametrize("position", [0, 20, 45, -1])
def test_snapshot_file_is_refused_when_one_byte_is_damaged(
    files: list[Path], tmp_path: Path, position: int
) -> None:
    data = bytearray(snapshots.to_file(build_files(files)))
    data[position] ^= 1
    damaged = tmp_path / "damaged"
    damaged.write_bytes(data)
    done = turnout("snapshot", "show", damaged)
    assert done.returncode == 3
    assert "not a snapshot file" in done.stderr or "checksum is wrong" in done.stderr
