"""`turnout explain` for several experiments: layers, holdout, overrides, tokens, claims, models."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from sidecar.disk import KEY_FILE, SNAPSHOT_FILE
from sidecar.snapshotfile import encode
from tests.control.clirunning import Done, turnout
from tests.sidecar.samples import KEY, experiment, snapshot, target
from tests.vectors.make_tokens import force_token
from turnout.v1alpha1.common_pb2 import Predicate
from turnout.v1alpha1.snapshot_pb2 import BucketRange, Snapshot


def layered() -> Snapshot:
    """A model's experiment with everything, and a parameter's, on one target."""
    message = snapshot()
    first = message.experiments[0]
    first.holdout.salt = "tenant"
    first.holdout.ranges.append(BucketRange(start=0, end=300_000))
    first.layer_salt = "of-models"
    first.layer_ranges.append(BucketRange(start=0, end=500_000))
    first.overrides.add(unit="vip", variant="v2")
    limit = experiment("limit")
    limit.layer, limit.layer_salt = "limits", "of-limits"
    for variant, value in zip(limit.variants, ("low", "high"), strict=True):
        variant.ClearField("cluster")
        variant.parameters["limit"] = value
    message.experiments.append(limit)
    return message


def asked(directory: Path, message: Snapshot, *words: object) -> Done:
    (directory / SNAPSHOT_FILE).write_bytes(encode(message.SerializeToString()))
    (directory / KEY_FILE).write_bytes(KEY)
    return turnout("explain", "--snapshot", directory, *words)


def stories(done: Done) -> dict[str, dict[str, str]]:
    """Experiment -> step -> its line."""
    assert done.code == 0, done.err
    found: dict[str, dict[str, str]] = {"": {}}
    name = ""
    for line in done.lines:
        step, _, rest = line.partition(" ")
        rest = rest.strip()
        if not rest.startswith(("ok ", "NO ")):
            continue
        if step == "experiment":
            name = rest.split()[1].rstrip(",")
        found.setdefault(name, {})[step] = rest
    return found


def test_each_layer_has_its_story_when_two_experiments_run(tmp_path: Path) -> None:
    told = {}
    for user in range(40):
        done = asked(tmp_path, layered(), "fraud", f"x-user-id: {user}")
        story = stories(done)
        assert list(story) == ["", "fraud-v2", "limit"]
        assert story["limit"]["variant"].startswith("ok ")
        last = list(story["fraud-v2"].items())[-1]
        told[last[0], last[1][:2]] = done.lines[0]
    assert told.keys() == {("holdout", "NO"), ("layer", "NO"), ("variant", "ok")}
    assert told["layer", "NO"].startswith(
        "The baseline serves it, at turnout.fraud.base (v1:8080), "
    )
    assert "with the parameters of control of limit." in told["layer", "NO"]
    assert told["variant", "ok"].startswith("Variant control serves it, at turnout.fraud.control")


def test_allow_list_is_told_and_the_bucket_is_not_asked(tmp_path: Path) -> None:
    message = layered()
    message.experiments[0].holdout.ranges[0].end = 1
    story = stories(asked(tmp_path, message, "fraud", "x-user-id: vip"))["fraud-v2"]
    assert story["override"].startswith("ok the allow-list gives v2")
    assert "bucket" not in story
    found = json.loads(asked(tmp_path, message, "fraud", "x-user-id: vip", "-o", "json").out)
    assert [one["forced"] for one in found["experiments"]] == [True, False]
    assert found["headers"]["x-turnout"] == (
        "fraud-v2;1;v2;0;<unit hash>;f,limit;1;control;0;<unit hash>"
    )


def test_token_is_verified_with_the_key_of_the_state_directory(tmp_path: Path) -> None:
    now = int(time.time())
    token = force_token("fraud-v2", "v2", issued=now, expires=now + 60, key=KEY)
    message = snapshot()
    story = stories(asked(tmp_path, message, "x-user-id: 42", f"x-force-variant: {token}"))
    assert story[""]["token"] == "ok gives v2 of fraud-v2"
    assert story["fraud-v2"]["override"].startswith("ok the token gives v2")
    forged = stories(asked(tmp_path, message, "x-user-id: 42", f"x-force-variant: {token}A"))
    assert forged[""]["token"] == "NO forged, expired or another tenant's: ignored"
    assert forged["fraud-v2"]["variant"].startswith("ok control")
    other = force_token("gone", "v2", issued=now, expires=now + 60, key=KEY)
    absent = stories(asked(tmp_path, message, "x-user-id: 42", f"x-force-variant: {other}"))
    assert absent[""]["token"] == "NO gives v2 of gone, which does not run: ignored"


def test_token_is_left_out_with_a_note_when_there_is_no_key(tmp_path: Path) -> None:
    path = tmp_path / "risk.snapshot"
    path.write_bytes(encode(snapshot().SerializeToString()))
    done = turnout("explain", "--snapshot", path, "x-user-id: 42", "x-force-variant: v1.a.b")
    assert stories(done)[""]["token"] == "NO not read: that needs the tenant's key"
    assert done.lines[-1].startswith("Note: x-force-variant was left out: only a sidecar's state")
    assert stories(done)["fraud-v2"]["variant"].startswith("ok control")


def test_claims_are_taken_as_verified(tmp_path: Path) -> None:
    message = snapshot()
    message.experiments[0].unit.Clear()
    claim = message.experiments[0].unit.jwt_claim
    claim.claim, claim.payload_in_metadata = "realm.user", "payload"
    words = ("fraud", "--claims", '{"realm": {"user": 42}}')
    story = stories(asked(tmp_path, message, *words))["fraud-v2"]
    assert story["unit"] == "ok 42 (verified claim realm.user)"
    assert stories(asked(tmp_path, message, "fraud"))["fraud-v2"]["unit"].startswith("NO ")
    for text in ("[1]", "{", "1"):
        wrong = asked(tmp_path, message, "fraud", "--claims", text)
        assert (wrong.code, "is no JSON object" in wrong.err) == (2, True)


def test_session_is_told_to_be_new_when_there_is_no_cookie(tmp_path: Path) -> None:
    message = snapshot()
    message.experiments[0].unit.Clear()
    message.experiments[0].unit.session.cookie = "sid"
    done = asked(tmp_path, message, "fraud")
    unit = stories(done)["fraud-v2"]["unit"]
    assert unit.endswith("(session cookie sid) (new: the answer sets the cookie)")
    assert "  x-turnout-set-cookie: sid=" in done.out
    message.experiments[0].holdout.salt = "h"
    message.experiments[0].holdout.ranges.add(start=0, end=1_000_000)
    held = asked(tmp_path, message, "fraud")
    assert stories(held)["fraud-v2"]["holdout"].startswith("NO ")
    assert "  x-turnout-set-cookie: sid=" in held.out


@pytest.mark.parametrize("version", ["", "2"])
def test_model_target_is_asked_for_by_its_own_path(tmp_path: Path, version: str) -> None:
    message = snapshot()
    model = target("iris", model_name="iris", model_version=version)
    model.ClearField("path_prefix")
    message.targets.append(model)
    done = asked(tmp_path, message, "iris")
    named = ", version 2" if version else ""
    assert f"path or header names model iris{named}" in stories(done)[""]["target"]
    missed = asked(tmp_path, message, "--path", "/v3")
    assert f"iris does not match: neither path nor header names model iris{named}" in missed.out


def test_conditions_of_every_kind_are_said(tmp_path: Path) -> None:
    message = snapshot()
    leaves = [
        Predicate(header="x-a", regex="u[0-9]+"),
        Predicate(header="x-b", semver="^1.2.0"),
        Predicate(header="x-c"),
        Predicate(),
    ]
    leaves[2].range.min, leaves[2].range.max = 18, 65
    leaves[3].percentage.salt, leaves[3].percentage.buckets = "s", 1_000_000
    leaves[3].percentage.fraction = 1
    message.experiments[0].segment.CopyFrom(Predicate(all=leaves))
    done = asked(tmp_path, message, "x-user-id: 1", "x-a: u1", "x-b: 1.9.0", "x-c: 64.5")
    assert stories(done)["fraud-v2"]["segment"] == (
        "ok all of (x-a matches u[0-9]+ (is u1): yes; x-b is a version ^1.2.0 (is 1.9.0): yes; "
        "x-c is a number, at least 18 and below 65 (is 64.5): yes; "
        "the unit is in 100 % by salt s: yes): yes"
    )
