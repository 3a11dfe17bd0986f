"""`turnout explain` without a control plane: the story, the ways to say a request, the refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from sidecar.disk import StateDir
from sidecar.explain import Explanation, explain
from sidecar.explainwords import shown
from sidecar.snapshotfile import encode
from tests.control.clirunning import Done, turnout
from tests.control.resources import EXPERIMENT, TARGET
from tests.sidecar.samples import snapshot, target
from turnout.contract import UNIT_BYTES_MAX
from turnout.v1alpha1.common_pb2 import Predicate, Tombstone
from turnout.v1alpha1.config_service_pb2 import TombstoneSet
from turnout.v1alpha1.snapshot_pb2 import BucketRange, Snapshot


def kept(directory: Path, message: Snapshot) -> Path:
    """A snapshot file."""
    path = directory / "risk.snapshot"
    path.write_bytes(encode(message.SerializeToString()))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Of the target fraud under /v2, where v2 has 10 % of the users."""
    return kept(tmp_path, snapshot())


def asked(file: Path, *words: object) -> Done:
    return turnout("explain", "--snapshot", file, *words)


def steps(done: Done) -> dict[str, str]:
    """The story's lines by what they are about."""
    assert done.code == 0, done.err
    lines = [line.partition(" ") for line in done.lines]
    return {name: rest for name, _, rest in lines if rest.startswith(("ok ", "NO "))}


def test_story_names_every_step_when_a_request_is_enrolled(file: Path) -> None:
    done = asked(file, "fraud-v2", "x-user-id: 42")
    assert done.lines[0] == "Variant control serves it, at turnout.fraud.control (control:8080)."
    assert steps(done) == {
        "target": "ok fraud: host any fits *; path begins with /v2",
        "experiment": "ok fraud-v2, epoch 1: control 90 %, v2 10 %",
        "unit": "ok 42 (header x-user-id)",
        "bucket": "ok 1946 of 1000000 (hash of salt salt and the unit)",
        "variant": "ok control (control) has buckets 0..899999, so the unit is its own",
    }
    assert "x-turnout: fraud-v2;1;control;0;<unit hash>" in done.lines
    # Nothing but the answer: the same file and request give the same words.
    assert asked(file, "fraud-v2", "-H", "X-User-Id:42").out == done.out


def test_data_has_bucket_range_upstream_and_steps_when_json_or_yaml_is_asked(file: Path) -> None:
    words = ("fraud", "x-user-id: 7", "-o")
    found = json.loads(asked(file, *words, "json").out)
    assert found == yaml.safe_load(asked(file, *words, "yaml").out)
    assert found["outcome"] == "STAMPED"
    assert found["bucketRange"][0] <= found["bucket"] < found["bucketRange"][1]
    assert found["upstream"] == f"turnout.fraud.{found['variant']}"
    assert [step["name"] for step in found["steps"]] == [
        "target", "experiment", "unit", "bucket", "variant",
    ]  # fmt: skip


def test_baseline_serves_when_the_unit_is_missing_or_too_long(file: Path) -> None:
    done = asked(file, "fraud")
    assert done.lines[0].endswith("outside the experiment: it has no unit.")
    assert steps(done)["unit"].startswith("NO header x-user-id is not there or empty")
    long = f"x-user-id: {'x' * (UNIT_BYTES_MAX + 1)}"
    assert steps(asked(file, long))["unit"].startswith("NO header x-user-id has")


def test_first_unit_counts_when_there_are_several(file: Path) -> None:
    text = steps(asked(file, "x-user-id: 1", "x-user-id: 2"))["unit"]
    assert text == "ok 1 (header x-user-id) (there are several: the first counts)"


def test_every_condition_is_judged_when_the_segment_decides(tmp_path: Path) -> None:
    message = snapshot()
    country = Predicate(header="x-country", in_values=["DE", "FR"])
    segment = Predicate(all=[country, Predicate(negated=Predicate(header="x-bot", present=True))])
    message.experiments[0].segment.CopyFrom(segment)
    file = kept(tmp_path, message)
    inside = asked(file, "x-user-id: 1", "x-country: FR")
    assert steps(inside)["segment"] == (
        "ok all of (x-country is one of DE, FR (is FR): yes; "
        "not (x-bot is present (is (none)): no): yes): yes"
    )
    outside = asked(file, "x-user-id: 1", "x-country: US")
    assert "x-country is one of DE, FR (is US): no" in steps(outside)["segment"]
    assert outside.lines[0].endswith("it is not in the segment.")


def test_copy_is_told_when_a_shadow_has_the_bucket_and_when_it_has_not(tmp_path: Path) -> None:
    message = snapshot(share=0)
    message.experiments[0].shadow.variant = "v2"
    message.experiments[0].shadow.ranges.append(BucketRange(start=0, end=500_000))
    file = kept(tmp_path, message)
    told = {steps(asked(file, f"x-user-id: {user}"))["shadow"] for user in range(30)}
    copied = {text for text in told if text.startswith("ok copied to v2 (50 % of the units are)")}
    assert copied
    assert all("is not in the 50 % that go to v2" in text for text in told - copied)
    assert told - copied


def test_each_miss_is_named_when_no_target_matches(tmp_path: Path) -> None:
    message = snapshot()
    message.targets[0].hosts.append("a.svc")
    message.targets[0].methods.append("GET")
    message.targets[0].headers.append(Predicate(header="x-team", equals="risk"))
    done = asked(kept(tmp_path, message), "--path", "/v3", "--host", "b.svc", "--method", "POST")
    assert done.code == 0
    assert done.lines[0] == "No target matches: Envoy's own routes decide."
    assert done.lines[2] == (
        "target NO fraud does not match: host b.svc does not fit a.svc; path /v3 does not begin "
        "with /v2; method POST is none of GET; x-team equals risk (is (none)): no"
    )


def test_no_target_is_told_when_the_snapshot_is_empty(tmp_path: Path) -> None:
    file = kept(tmp_path, Snapshot(format=1, tenant="risk", version=1))
    done = asked(file, "--path", "/")
    assert steps(done) == {"target": "NO there is no target"}
    nothing = asked(file, "x-user-id: 1")
    assert (nothing.code, "of a target: there is none" in nothing.err) == (2, True)


def test_wider_target_is_named_when_a_narrower_one_matches(tmp_path: Path) -> None:
    message = snapshot()
    message.targets[0].name = "narrow"
    message.targets[0].hosts.append("a.svc")
    del message.experiments[:]
    message.targets.append(target("wide"))
    done = asked(kept(tmp_path, message), "--path", "/v2/x", "--host", "a.svc")
    assert "(fits less exactly: wide)" in steps(done)["target"]
    assert steps(done)["experiment"] == "NO none runs on narrow"


def test_rollback_and_its_reason_are_told_when_the_epoch_is_dead(tmp_path: Path) -> None:
    message = snapshot()
    message.tombstones.append(Tombstone(experiment="fraud-v2", epoch=1, reason="18 errors of v2"))
    done = asked(kept(tmp_path, message), "fraud", "x-user-id: 1")
    assert steps(done)["experiment"] == "NO fraud-v2 was rolled back (epoch 1): 18 errors of v2"


def test_sidecars_own_tombstones_count_when_its_state_directory_is_read(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    message = snapshot(epoch=3)
    message.tombstones.append(Tombstone(experiment="fraud-v2", epoch=2, reason="an older one"))
    state.save_snapshot(message.SerializeToString())
    assert asked(state.path, "fraud-v2", "x-user-id: 1").lines[0].startswith("Variant control")
    newer = Tombstone(experiment="fraud-v2", epoch=3, reason="18 errors of v2")
    state.save_tombstones(TombstoneSet(tombstones=[newer]).SerializeToString())
    state.close()
    done = asked(state.path, "fraud-v2", "x-user-id: 1")
    assert steps(done)["experiment"] == "NO fraud-v2 was rolled back (epoch 3): 18 errors of v2"
    empty = tmp_path / "empty"
    empty.mkdir()
    missing = asked(empty, "fraud-v2")
    assert (missing.code, f"{empty}/snapshot: No such file" in missing.err) == (1, True)


def test_gate_is_told_when_upstreams_are_waited_for() -> None:
    headers = [(":authority", b"a"), (":path", b"/v2"), ("x-user-id", b"1")]

    def told(gates: set[tuple[str, int]] | None) -> Explanation:
        return explain(
            snapshot(), headers, open_gates=gates, random_unit=lambda: b"r", now_s=lambda: 0.0
        )

    found = told(set())
    assert found.steps[-1].name == "gate"
    assert found.outcome == "WAITING"
    assert told(None).outcome == "STAMPED"


def test_random_unit_is_said_to_change_when_it_is_drawn_for_each_request(tmp_path: Path) -> None:
    message = snapshot()
    message.experiments[0].unit.Clear()
    message.experiments[0].unit.random = True
    assert "the next may get another variant" in steps(asked(kept(tmp_path, message)))["unit"]


def test_header_is_left_out_and_noted_when_envoy_takes_it_from_clients(file: Path) -> None:
    done = asked(file, "x-user-id: 1", "x-variant: v2")
    assert done.lines[-1] == (
        "Note: Envoy removes x-variant when a client sends it: it was left out."
    )


def test_request_is_noted_to_be_another_targets_when_it_is_not_the_named_ones(
    tmp_path: Path,
) -> None:
    message = snapshot()
    other = target("other")
    other.path_prefix = "/v3"
    message.targets.append(other)
    done = asked(kept(tmp_path, message), "fraud-v2", "--path", "/v3/x")
    assert done.lines[-1] == "Note: This is not fraud-v2's: the request is other's."


def test_resource_files_are_explained_at_their_first_step(tmp_path: Path) -> None:
    (tmp_path / "both.yaml").write_text(f"{TARGET}---{EXPERIMENT}")
    words = ("-f", tmp_path / "both.yaml", "fraud-v2", "x-user-id: 1", "x-country: DE")
    found = json.loads(turnout("explain", *words, "-o", "json").out)
    assert (found["variant"], found["shadow"]) == ("control", "v2")
    assert found["address"] == "fraud-v1:8080"


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["fraud", "x-user-id 42"], "'x-user-id 42' must be 'NAME: VALUE', like 'x-user-id: 42'"),
        (["-H", "x-user-id"], "'x-user-id' must be 'NAME: VALUE'"),
        ([": x"], "': x' is no header: say --host, --path or --method"),
        ([":path: /x"], "is no header: say --host, --path or --method"),
        (["x user: 1"], "'x user: 1' must be 'NAME: VALUE'"),
        (["host: fraud.svc"], "say --host fraud.svc"),
        (["x-a: b\nc"], "a value has no line ends"),
        (["No_Name"], "'No_Name' is neither the name of an experiment or a target"),
        (["thing/fraud"], "'thing/fraud' is neither the name"),
        (["-f", "x.yaml"], "give --snapshot or -f, and not both"),
    ],
)
def test_request_is_refused_with_the_remedy_when_it_is_malformed(
    file: Path, words: list[str], fault: str
) -> None:
    done = asked(file, *words)
    assert done.code == 2
    assert fault in done.err


def test_path_is_asked_for_when_there_are_several_targets(tmp_path: Path) -> None:
    message = snapshot()
    other = target("other")
    other.path_prefix = "/v3"
    message.targets.append(other)
    done = asked(kept(tmp_path, message), "x-user-id: 1")
    assert done.code == 2
    assert "say --path (and --host), or the name of a target: fraud, other" in done.err


def test_name_is_not_found_when_the_snapshot_has_none_of_it(file: Path) -> None:
    done = asked(file, "nobody")
    assert done.code == 4
    assert done.err == (
        "nobody is no target and no experiment that enrols anybody now; in the snapshot: "
        "fraud, fraud-v2\n"
    )


def test_snapshot_is_refused_when_it_is_missing_foreign_or_invalid(tmp_path: Path) -> None:
    missing = asked(tmp_path / "missing", "fraud")
    assert (missing.code, "No such file" in missing.err) == (1, True)
    foreign = tmp_path / "foreign"
    foreign.write_bytes(b"not one")
    done = asked(foreign, "fraud")
    assert (done.code, "`turnout snapshot build` makes one" in done.err) == (3, True)
    message = snapshot()
    message.experiments[0].variants[0].ranges[0].end = 5
    broken = asked(kept(tmp_path, message), "fraud")
    assert broken.code == 3
    assert "experiments" in broken.err
    bad = tmp_path / "bad.yaml"
    bad.write_text("kind: Nothing")
    assert turnout("explain", "-f", bad, "fraud").code == 3
    assert turnout("explain", "-f", tmp_path / "missing.yaml", "fraud").code == 1


def test_control_plane_is_named_with_the_remedy_when_it_cannot_be_asked() -> None:
    nobody = turnout("explain", "fraud", "--control", "127.0.0.1:1")
    assert nobody.code == 6
    assert nobody.err.startswith("control plane at 127.0.0.1:1: ")
    assert nobody.err.rstrip().endswith("Say --control HOST:PORT, or --snapshot FILE")
    for place in ("http://127.0.0.1:1", "127.0.0.1", "::1:7700"):
        wrong = turnout("explain", "fraud", "--control", place)
        assert (wrong.code, f"'{place}' is not HOST:PORT" in wrong.err) == (2, True)
    assert turnout("explain", "fraud", "--tenant", "-x").code == 2


def test_value_is_printable_and_short_whatever_it_is() -> None:
    assert shown(b"\xff\x01") == "\\\\xff\\x01"
    assert len(shown(b"x" * 1000)) == 120
