"""Decided counters: shared memory, slots, readers."""

from __future__ import annotations

import pytest

from sidecar.counters import CounterFile, CounterReader, SlotTable

A, B, C = ("e", 1, "a"), ("e", 1, "b"), ("e", 2, "c")


def test_reader_sees_what_another_mapping_of_the_file_counts() -> None:
    file = CounterFile.create("test")
    worker = CounterFile(file.fd)
    reader = CounterReader(file)
    worker.cells[3] += 2
    worker.cells[4] += 1
    assert reader.take({A: 3, B: 4, C: 5}) == {A: 2, B: 1}
    worker.cells[3] += 1
    # The worker is gone, its memory is not.
    worker.cells.release()
    assert reader.take({A: 3, B: 4}) == {A: 1}
    assert reader.take({A: 3, B: 4}) == {}
    file.close()


def test_count_is_not_lost_when_a_slot_passes_to_another_variant() -> None:
    file = CounterFile.create("test")
    reader = CounterReader(file)
    file.cells[0] += 5
    assert reader.take({A: 0}) == {A: 5}
    file.cells[0] += 2
    assert reader.take({C: 0}) == {C: 2}
    file.close()


def test_slots_stay_when_a_plan_has_the_same_variants() -> None:
    table = SlotTable(4)
    assert table.assign([A, B], 1) == table.assign([B, A, A], 2)


def test_slot_is_free_only_when_all_workers_serve_a_later_plan() -> None:
    table = SlotTable(2)
    first = table.assign([A, B], 1)
    assert table.assign([A, C], 2) == {A: first[A]}
    assert table.exhausted == 1
    assert B in table.counting
    table.release(1)
    assert B in table.counting
    table.release(2)
    assert table.assign([A, C], 3) == {A: first[A], C: first[B]}
    assert table.exhausted == 0


def test_leaving_key_keeps_its_slot_when_it_comes_back() -> None:
    table = SlotTable(2)
    first = table.assign([A], 1)
    table.assign([], 2)
    assert table.assign([A], 3) == first
    table.release(3)
    assert table.counting == first


@pytest.mark.parametrize("generation", [0, 1])
def test_nothing_is_released_when_nothing_left(generation: int) -> None:
    table = SlotTable(2)
    table.assign([A], 1)
    table.release(generation)
    assert A in table.counting
