"""Who reads one file after the other, and who does not."""

from __future__ import annotations

from snapshotter.mount.foresight.scan import READERS, SCAN_LENGTH, SCAN_STEP, SWEEP_LENGTH, Readers


def test_files_that_are_begun_in_order_count_and_steps_elsewhere_halve() -> None:
    readers = Readers()
    for number in range(SWEEP_LENGTH + 1):
        assert readers.score(1) == max(0, number - 1)
        readers.begun(1, 100 + number * SCAN_STEP)
    assert readers.score(1) == SWEEP_LENGTH
    readers.begun(1, 7)
    assert readers.score(1) == SWEEP_LENGTH // 2
    readers.begun(1, 7 + SCAN_STEP + 1)
    assert readers.score(1) == SWEEP_LENGTH // 4


def test_a_reader_is_not_taken_for_another() -> None:
    readers = Readers()
    for number in range(SWEEP_LENGTH + 1):
        readers.begun(1, 100 + number)
        readers.begun(2, 9000 - 40 * number)
    assert readers.score(1) == SWEEP_LENGTH
    assert readers.score(2) == readers.score(3) == 0


def test_the_number_of_readers_that_are_told_apart_is_bounded() -> None:
    readers = Readers()
    for reader in range(READERS + 1):
        readers.begun(reader, 10)
        readers.begun(reader, 11)
    assert [readers.score(reader) for reader in (0, 1, READERS)] == [0, 1, 1]


def test_the_file_after_which_the_next_is_read_is_told_once_and_not_after_a_step_elsewhere() -> None:
    readers = Readers()
    for number in range(SCAN_LENGTH + 1):
        assert readers.take() is None
        readers.begun(1, 100 + number)
    assert readers.take() == 100 + SCAN_LENGTH
    assert readers.take() is None
    readers.begun(1, 50)
    assert readers.take() is None
