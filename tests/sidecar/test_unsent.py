"""Batches on disk: whole or noticed, of one tenant, and which of them are written when."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from sidecar.disk import UNSENT_DIR, StateDir
from sidecar.unsent import CorruptUnsent, Unsent, decode, encode, to_keep
from sidecar.unstamped import Accounted, accounted_of, newest
from turnout.v1alpha1.config_service_pb2 import DeltaBatch, TargetDelta

ACCOUNTED = Accounted(1_700_000_000_000, 41)


def unsent(seq: int, *, unstamped: int = 0, instance: str = "i-1", tenant: str = "risk") -> Unsent:
    targets = [TargetDelta(unstamped={"unknown": unstamped})] if unstamped else []
    batch = DeltaBatch(instance_id=instance, seq=seq, created_unix_ms=seq * 1_000, targets=targets)
    return Unsent(tenant, batch, ACCOUNTED)


def names(batches: list[Unsent]) -> list[int]:
    return [one.batch.seq for one in batches]


def test_batch_comes_back_when_it_was_encoded() -> None:
    assert decode(encode(unsent(7, unstamped=3))) == unsent(7, unstamped=3)
    nothing = Unsent("risk", unsent(1).batch, None)
    assert decode(encode(nothing)) == nothing


def test_batch_is_refused_when_any_byte_is_changed() -> None:
    whole = encode(unsent(7))
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        with pytest.raises(CorruptUnsent):
            decode(bytes(damaged))
    with pytest.raises(CorruptUnsent):
        decode(encode(Unsent("risk", DeltaBatch(), None)))


def test_fresh_batches_are_not_written_when_they_will_soon_be_acknowledged() -> None:
    pending = [unsent(seq) for seq in range(1, 6)]
    assert names(to_keep(pending, "i-1", all_=False)) == [1, 2, 3]
    assert names(to_keep(pending, "i-1", all_=True)) == [1, 2, 3, 4, 5]
    assert names(to_keep(pending[:1], "i-1", all_=False)) == []


def test_batch_is_written_at_once_when_envoys_counter_will_not_tell_it_again() -> None:
    assert names(to_keep([unsent(1), unsent(2, unstamped=1)], "i-1", all_=False)) == [2]


def test_batch_stays_on_disk_when_an_earlier_run_made_it() -> None:
    assert names(to_keep([unsent(9, instance="i-0"), unsent(1)], "i-1", all_=False)) == [9]


def test_batches_are_on_disk_and_private_until_they_are_dropped(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    assert state.load_unsent("risk") == ([], [])
    first, second = unsent(2), unsent(10)
    state.save_unsent([second, first])
    files = list((state.path / UNSENT_DIR).iterdir())
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert state.load_unsent("risk") == ([first, second], [])
    state.drop_unsent([second])
    assert state.load_unsent("risk") == ([second], [])


def test_batch_on_disk_is_passed_over_when_it_is_damaged_or_anothers(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    state.save_unsent([unsent(1), unsent(2), unsent(3, tenant="other")])
    damaged = state.path / UNSENT_DIR / unsent(1).name
    damaged.write_bytes(damaged.read_bytes()[:-1])
    (state.path / UNSENT_DIR / ".half.tmp").write_bytes(b"half")
    state.close()
    state = StateDir(tmp_path / "state")
    found, problems = state.load_unsent("risk")
    assert found == [unsent(2)]
    assert len(problems) == 2
    assert "is lost" in problems[0]
    assert "'other'" in problems[1]
    state.drop_unsent([])
    assert [f.name for f in (state.path / UNSENT_DIR).iterdir()] == [unsent(3).name]


def test_counter_goes_on_where_the_furthest_of_the_same_envoy_was() -> None:
    known = [Accounted(10_000, 5), Accounted(11_000, 7), Accounted(90_000, 2)]
    assert accounted_of(known, 10_500) == 7
    assert accounted_of(known, 50_000) == 0
    assert newest(known) == Accounted(90_000, 2)
    assert newest([]) is None
    assert ACCOUNTED.is_same(ACCOUNTED._replace(start_ms=ACCOUNTED.start_ms + 999))
    assert not ACCOUNTED.is_same(ACCOUNTED._replace(start_ms=0))
    assert not ACCOUNTED.is_same(None)
