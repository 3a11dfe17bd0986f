"""The state directory: whole files, the one before, permissions, one user at a time."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from sidecar.disk import StateDir, StateError, write_atomic
from sidecar.envoydir import EnvoyDir, EnvoyDirError
from sidecar.envoyfiles import CLUSTERS_FILE, ROUTES_FILE


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "state")


def test_snapshot_comes_back_when_it_was_saved(state: StateDir) -> None:
    assert state.load_snapshot().payload is None
    state.save_snapshot(b"one")
    assert state.load_snapshot().payload == b"one"


def test_previous_snapshot_comes_back_when_any_byte_of_the_newest_is_changed(
    state: StateDir,
) -> None:
    state.save_snapshot(b"one")
    state.save_snapshot(b"two")
    path = state.path / "snapshot"
    whole = path.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        loaded = state.load_snapshot()
        assert loaded.payload == b"one"
        assert len(loaded.problems) == 1
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert state.load_snapshot().payload == b"one"
    path.write_bytes(whole)
    assert state.load_snapshot().payload == b"two"


def test_old_file_stays_when_the_new_one_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    # The temporary name is taken by a directory: as good as a full disk.
    (tmp_path / f".file.{os.getpid()}.tmp").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"


def test_key_is_private_and_stays_the_same(state: StateDir) -> None:
    assert state.load_key() is None
    key = state.own_key()
    assert state.own_key() == key
    assert stat.S_IMODE((state.path / "tenant.key").stat().st_mode) == 0o600
    (state.path / "tenant.key").write_bytes(b"short")
    assert state.load_key() is None


def test_json_is_nothing_when_it_is_missing_or_damaged(state: StateDir) -> None:
    assert state.load_json("gates.json") is None
    state.save_json("gates.json", {"e": ["c"]})
    assert state.load_json("gates.json") == {"e": ["c"]}
    (state.path / "gates.json").write_text("{")
    assert state.load_json("gates.json") is None


def test_directory_is_refused_when_another_sidecar_has_it(state: StateDir) -> None:
    with pytest.raises(StateError, match="in use by another sidecar"):
        StateDir(state.path)
    state.close()
    StateDir(state.path).close()


def test_directory_is_refused_with_a_reason_when_it_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="not a directory"):
        StateDir(tmp_path / "file")


def test_envoys_file_is_replaced_only_when_its_text_changes(tmp_path: Path) -> None:
    envoy_dir = EnvoyDir(tmp_path)
    assert envoy_dir.write(ROUTES_FILE, "a")
    first = (tmp_path / ROUTES_FILE).stat()
    assert not envoy_dir.write(ROUTES_FILE, "a")
    assert (tmp_path / ROUTES_FILE).stat().st_ino == first.st_ino
    assert envoy_dir.write(ROUTES_FILE, "b")
    assert (tmp_path / ROUTES_FILE).read_text() == "b"
    # Nothing else is ever in a watched directory.
    assert [path.name for path in (tmp_path / ROUTES_FILE).parent.iterdir()] == ["routes.yaml"]
    again = EnvoyDir(tmp_path)
    assert not again.write(ROUTES_FILE, "b")
    assert again.write(CLUSTERS_FILE, "c")


def test_envoys_file_is_written_again_when_somebody_else_wrote_it(tmp_path: Path) -> None:
    envoy_dir = EnvoyDir(tmp_path)
    envoy_dir.write(ROUTES_FILE, "ours")
    assert not envoy_dir.changed_by_others()
    (tmp_path / ROUTES_FILE).write_text("theirs")
    assert envoy_dir.changed_by_others()
    assert not envoy_dir.changed_by_others()
    assert envoy_dir.write(ROUTES_FILE, "ours")
    (tmp_path / ROUTES_FILE).unlink()
    assert envoy_dir.changed_by_others()
    assert envoy_dir.write(ROUTES_FILE, "ours")


def test_envoys_directory_is_refused_when_it_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvoyDirError, match="cannot be used"):
        EnvoyDir(tmp_path / "file")
