"""The coordinator stores the state that the processes of a run share."""

from pyroaring import BitMap

from liser_dist.errors import ShardError, SpecError
from liser_dist.pipeline.coordinator import RunCoordinator
from liser_dist.pipeline.store import Part
from liser_dist.runs.progress import Progress


def test_a_rejected_clip_is_known_with_its_reason() -> None:
    coordinator = RunCoordinator()
    coordinator.reject({("a", 3): "silent", ("b", 3): "timeout"})
    known = coordinator.known_rejections([("a", 3), ("a", 4), ("b", 3)])
    assert known == {("a", 3): "silent", ("b", 3): "timeout"}


def test_workers_that_start_again_bring_the_rejections_of_their_checkpoint() -> None:
    coordinator = RunCoordinator()
    coordinator.reject({("a", 3): "silent"})
    coordinator.begin([("a", "silent", BitMap([5])), ("c", "crashed", BitMap([0]))], passes=0)
    known = coordinator.known_rejections([("a", 3), ("a", 5), ("c", 0), ("c", 1)])
    assert known == {("a", 3): "silent", ("a", 5): "silent", ("c", 0): "crashed"}


def test_the_first_failure_ends_a_run_until_its_workers_start_again() -> None:
    coordinator = RunCoordinator()
    first = SpecError("first")
    coordinator.fail(first)
    coordinator.fail(ShardError("second"))
    assert coordinator.failure() is first
    coordinator.begin([], passes=0)
    assert coordinator.failure() is None


def test_a_broken_part_is_new_once_and_taken_once() -> None:
    coordinator = RunCoordinator()
    part = Part("a", "window-0", 0, 256, False)
    assert [coordinator.report_broken(part) for _ in range(2)] == [True, False]
    assert coordinator.take_broken() == {part}
    assert coordinator.take_broken() == set()
    assert coordinator.report_broken(part)


def test_progress_is_that_of_the_last_report() -> None:
    coordinator = RunCoordinator()
    assert coordinator.progress() == Progress()
    coordinator.set_progress(Progress(passes=4, total_passes=8))
    assert coordinator.progress().passes == 4


def test_a_checkpoint_that_is_asked_for_has_all_that_was_trained_until_then() -> None:
    coordinator = RunCoordinator()
    coordinator.begin([], passes=10)
    coordinator.set_progress(Progress(passes=30))
    assert not coordinator.take_checkpoint_request()
    coordinator.request_checkpoint()
    assert [coordinator.take_checkpoint_request() for _ in range(2)] == [True, False]
    coordinator.note_checkpoint(20)  # was being written already
    assert coordinator.awaits_checkpoint()
    coordinator.note_checkpoint(32)
    assert not coordinator.awaits_checkpoint()
    assert coordinator.committed_passes() == 32


def test_workers_that_are_to_be_replaced_save_a_step_of_their_own_first() -> None:
    coordinator = RunCoordinator()
    coordinator.set_progress(Progress(passes=30))  # of workers that were lost
    coordinator.begin([], passes=10)
    assert not coordinator.awaits_checkpoint()
    coordinator.request_checkpoint()
    assert coordinator.awaits_checkpoint()
    coordinator.note_checkpoint(14)
    assert not coordinator.awaits_checkpoint()
