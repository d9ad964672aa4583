"""The target store is written atomically, matched by settings, and verified on reading."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pyroaring import BitMap
from ray.exceptions import ActorUnavailableError

from liser_dist import storage
from liser_dist.config.base import fingerprint
from liser_dist.config.distill import DistillSpec
from liser_dist.errors import StorageError
from liser_dist.pipeline.schedule import PartGroup, PartVisit, StoreReader
from liser_dist.pipeline.store import (
    BrokenPartError,
    Part,
    TargetStore,
    open_store,
    target_settings,
)
from liser_dist.pipeline.store_writer import (
    PartFiles,
    Patience,
    StoreWriters,
    StretchWriter,
    split_by_stretch,
)
from liser_dist.pipeline.tables import to_examples, to_table
from liser_dist.records import Example, Reason, Targets

SHARD, CLIPS = "/data/000000.tar", 600
Reasons = Mapping[int, Reason]  # of rejected clips, by their number
NO_REASONS: Reasons = {}


def spec(store: Path, **change: Any) -> DistillSpec:
    content = {
        "name": "a-job",
        "data": {"unlabelled": "/data"},
        "teachers": {"speech": {"kind": "mock"}},
        "targets": {"store": str(store)},
    }
    return DistillSpec.model_validate(content | change)


def opened(store: Path, **change: Any) -> TargetStore:
    found = open_store(spec(store, **change).stream, {SHARD: "v1"})
    assert found is not None
    return found


def example(index: int, epoch: int = 0) -> Example:
    draw = np.random.default_rng(index)
    return Example(
        key=f"k{index}", shard=SHARD, index=index, epoch=epoch, ends_shard=index == CLIPS - 1,
        waveform=draw.integers(-9, 9, 40).astype(np.int16),
        targets={"speech": Targets(logits=draw.standard_normal(6).astype(np.float16))},
    )  # fmt: skip


def fill(
    store: TargetStore,
    epoch: int = 0,
    order_seed: int = 0,
    reasons: Reasons = NO_REASONS,
    files: PartFiles | None = None,
) -> str | None:
    """As teachers do: batches in any order, some of them twice."""
    writer = StretchWriter(store, files=files)
    order = np.random.default_rng(order_seed).permutation(CLIPS)
    batches = [order[first : first + 32] for first in range(0, CLIPS, 32)]
    for batch in [batches[3], *batches, batches[5]]:
        examples = [rejected(example(int(n), epoch), reasons.get(int(n), "")) for n in batch]
        rows = to_table(examples, Example)
        for stretch, part in split_by_stretch(rows, lambda _shard, epoch: store.view(epoch)):
            writer.add(stretch, part)
    return writer.finish()


def rejected(example: Example, reason: str) -> Example:
    if not reason:
        return example
    return replace(example, reason=reason, waveform=example.waveform[:0], targets={})


def files(store: TargetStore) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Path(store.path).rglob("*.parquet")}


def same(one: Example, two: Example) -> bool:
    return to_table([one], Example).equals(to_table([two], Example))


def test_a_filled_store_gives_back_what_was_put_in(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert not store.list_parts().is_complete(SHARD, store.view(0))
    assert fill(store) is None
    stored = store.list_parts()
    assert stored.is_complete(SHARD, store.view(0))
    parts = stored.parts(SHARD, store.view(0))
    assert [(part.start, part.stop) for part in parts] == [(0, 256), (256, 512), (512, 600)]
    assert all(map(same, store.read_shard(parts), map(example, range(CLIPS))))
    some = [300, 301, 440]
    assert all(map(same, to_examples(store.read(parts[1], some)), map(example, some)))


def test_rejections_that_depend_on_the_machine_are_no_facts(tmp_path: Path) -> None:
    store = opened(tmp_path)
    machine = {3: Reason.TIMEOUT, 300: Reason.CRASHED, 511: Reason.TOO_LARGE}
    fill(store, reasons=machine | {4: Reason.SILENT, 599: Reason.UNREADABLE})
    stored, view = store.list_parts(), store.view(0)
    assert stored.clips(SHARD, view) == BitMap(range(CLIPS)) - BitMap(machine)
    assert stored.retry(SHARD, view) == BitMap(machine)
    assert (stored.is_complete(SHARD, view), stored.is_filled(SHARD, view)) == (False, True)
    first, second, _ = stored.parts(SHARD, view)
    read = store.read_shard([first])
    assert [clip.index for clip in read] == [n for n in range(256) if n != 3]
    assert read[3].reason == Reason.SILENT
    # A run that has rejected such a clip itself reads it as rejected.
    known = BitMap(machine)
    assert stored.is_complete(SHARD, view, known)
    assert second.readable(known) == BitMap(range(256, 512))
    (row,) = to_examples(store.read(second, [300]))
    assert (row.key, row.reason) == ("k300", Reason.CRASHED)


def test_of_two_parts_with_the_same_clips_the_one_with_more_facts_counts(tmp_path: Path) -> None:
    store, view = opened(tmp_path), "window-0"
    for reasons in ({3: Reason.TIMEOUT}, NO_REASONS, {5: Reason.TIMEOUT, 6: Reason.CRASHED}):
        fill(store, reasons=reasons)
    assert len(files(store)) == 5
    stored = store.list_parts()
    assert len(stored.parts(SHARD, view)) == 3
    assert stored.is_complete(SHARD, view)


def test_whoever_writes_writes_the_same(tmp_path: Path) -> None:
    one, two = opened(tmp_path / "one"), opened(tmp_path / "two")
    fill(one, order_seed=1)
    fill(two, epoch=3, order_seed=2)
    assert files(one) == files(two)


@pytest.mark.parametrize(
    "change",
    [
        {"clip": {"window_s": 2.0}},
        {"clip": {"faces": 3}},
        {"emotions": ["happy", "sad"]},
        {"teachers": {"speech": {"kind": "mock", "embedding": 4}}},
        {"teachers": {"speech": {"kind": "mock"}, "face": {"kind": "mock"}}},
        {"targets": {"store": "HERE", "input": "log_mel"}, "augment": {"gain_db": 0}},
        {"deterministic": True},
    ],
)
def test_what_targets_depend_on_has_a_place_of_its_own(
    tmp_path: Path, change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    fill(opened(tmp_path))
    if change.get("targets"):
        change["targets"]["store"] = str(tmp_path)
    other = opened(tmp_path, **change)
    assert not other.list_parts().parts(SHARD, other.view(0))
    assert caplog.text.count("are not reused") == 1


@pytest.mark.parametrize(
    "change", [{"seed": 4}, {"loss": {"face_kl": 0.1}}, {"student": {"kind": "reslstm"}}]
)
def test_other_runs_read_what_there_is(tmp_path: Path, change: dict[str, Any]) -> None:
    fill(opened(tmp_path))
    other = opened(tmp_path, **change)
    assert other.list_parts().is_complete(SHARD, other.view(0))


# Of targets that users have stored since version 3.
FINGERPRINTS: dict[str, dict[str, Any]] = {
    "8fbc9701bb1192fa": {},
    "25d1c4fe5007cca3": {
        "deterministic": True,
        "data": {"unlabelled": "/data", "labelled": "/l"},
        "emotions": ["happy", "sad"],
        "clip": {"windows": "even", "window_s": 2.0},
        "teachers": {
            "speech": {"kind": "mock", "embedding": 4}, "face": {"kind": "mock"}, "batch_size": 8,
        },
        "student": {"kind": "reslstm", "mels": 24, "input": "both", "face_px": 32},
        "loss": {"embedding": 1.0},
        "augment": {"gain_db": 0},
        "targets": {"store": "/store", "windows": 3, "input": "log_mel"},
    },
}  # fmt: skip


@pytest.mark.parametrize("expected", FINGERPRINTS)
def test_targets_of_earlier_versions_keep_their_fingerprint(expected: str) -> None:
    job = spec(Path("/store"), **FINGERPRINTS[expected])
    assert fingerprint(target_settings(job.stream)) == expected


def test_a_shard_that_was_replaced_is_another(tmp_path: Path) -> None:
    fill(opened(tmp_path))
    replaced = open_store(spec(tmp_path).stream, {SHARD: "v2"})
    assert replaced is not None
    assert not replaced.list_parts().parts(SHARD, replaced.view(0))


@pytest.fixture(params=["flipped", "cut", "empty", "another", "gone", "of another teacher"])
def broken(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[TargetStore, Part]:
    store = opened(tmp_path)
    fill(store)
    first, second, _ = store.list_parts().parts(SHARD, store.view(0))
    file, content = Path(store.path_of(first)), bytearray(Path(store.path_of(first)).read_bytes())
    for place in range(100, len(content), 500):
        content[place] ^= 1
    made: dict[str, bytes] = {
        "flipped": bytes(content),
        "cut": file.read_bytes()[:-1000],
        "empty": b"",
        "another": Path(store.path_of(second)).read_bytes(),
        "gone": b"",
        "of another teacher": part_of_another_teacher(tmp_path, first),
    }
    file.write_bytes(made[request.param])
    if request.param == "gone":
        file.unlink()
    return store, first


def part_of_another_teacher(place: Path, part: Part) -> bytes:
    other = opened(place, teachers={"speech": {"kind": "mock", "embedding": 4}})
    fill(other)
    return Path(other.path_of(part)).read_bytes()


def test_a_broken_part_is_not_believed(broken: tuple[TargetStore, Part]) -> None:
    store, part = broken
    with pytest.raises(
        BrokenPartError, match=r"`targets.store`: the file .* computes its targets again"
    ):
        store.read(part, range(part.start, part.stop))


def test_a_store_that_takes_nothing_stops_no_job(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    store = opened(tmp_path / "file")
    assert not store.writable
    assert caplog.text.count("the target store is not writable") == 1
    full = opened(tmp_path / "full")
    Path(full.path).parent.parent.joinpath("full").rename(tmp_path / "moved")
    (tmp_path / "full").write_text("no folder any more")
    assert "full" in (fill(full, files=PartFiles(Patience(part_s=0))) or "")
    assert caplog.text.count("cannot be written to at the moment") == 1


class FlakyDisk:
    """Fails to write files whose turn it is; notes how long it may retry by itself."""

    def __init__(self, fails: Callable[[int], bool]) -> None:
        self.fails, self.writes, self.patience_s = fails, 0, set[float]()

    def write(self, place: str, content: bytes, patience_s: float) -> None:
        self.writes += 1
        self.patience_s.add(patience_s)
        if self.fails(self.writes):
            raise StorageError("503 SlowDown")
        storage.write_bytes(place, content)


def stored_clips(store: TargetStore) -> int:
    return len(store.list_parts().clips(SHARD, store.view(0)))


def test_a_failed_write_is_tried_again(tmp_path: Path) -> None:
    store, disk = opened(tmp_path), FlakyDisk(lambda write: write == 2)
    assert fill(store, files=PartFiles(Patience(part_s=30), disk.write)) is None
    assert (stored_clips(store), disk.writes, disk.patience_s) == (CLIPS, 4, {0.0})


def test_a_writer_gives_up_a_part_and_writes_the_next(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, disk = opened(tmp_path), FlakyDisk(lambda write: write == 2)
    assert fill(store, files=PartFiles(Patience(part_s=0), disk.write)) is None
    assert stored_clips(store) in (CLIPS - 256, CLIPS - 88)
    assert caplog.text.count("will be computed again") == 1
    fill(store)
    assert stored_clips(store) == CLIPS


def test_a_store_that_is_down_is_probed_until_it_works_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, disk = opened(tmp_path), FlakyDisk(lambda write: write <= 4)
    seldom, at_once = Patience(0, parts=3, probe_s=3600), Patience(0, parts=3, probe_s=0)
    files = PartFiles(seldom, disk.write)
    for _ in range(3):
        assert fill(store, files=files) == "503 SlowDown"
    assert (disk.writes, stored_clips(store)) == (3, 0)  # the other six parts were not tried
    assert caplog.text.count("cannot be written to at the moment") == 1
    disk.writes = 0
    files = PartFiles(at_once, disk.write)
    assert fill(store, files=files) == "503 SlowDown"
    assert fill(store, files=files) is None
    assert 0 < stored_clips(store) < CLIPS
    assert caplog.text.count("the targets of 4 files were not stored") == 1


def test_a_stretch_that_is_never_finished_takes_no_memory(tmp_path: Path) -> None:
    store = opened(tmp_path)
    writer = StretchWriter(store, most_unfinished=2)
    single = {n: to_table([example(n)], Example) for n in (0, 300, 599)}
    for n, rows in single.items():  # the third drops the first
        writer.add((SHARD, "window-0", n // 256 * 256), rows)
    for first in (256, 512, 0):
        rest = [n for n in range(first, min(first + 256, CLIPS)) if n not in single]
        writer.add((SHARD, "window-0", first), to_table([example(n) for n in rest], Example))
    assert writer.finish() is None
    assert store.list_parts().clips(SHARD, "window-0") == BitMap(range(256, CLIPS))


class FakeActor:
    """An actor whose methods are called by the fake of `ray.get`."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        self.finish = self.add = SimpleNamespace(remote=lambda *_: answer)


def lost() -> None:
    raise ActorUnavailableError("the writer restarts", None)


@pytest.mark.parametrize(
    ("answers", "writable"),
    [([lambda: None, lost], True), ([lost, lambda: "503 SlowDown"], False), ([lost], True)],
)
def test_a_lost_writer_ends_nothing(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    answers: list[Callable[[], Any]],
    writable: bool,
) -> None:
    monkeypatch.setattr("ray.get", lambda call: call())
    store = TargetStore("s", 1, True, {})
    writers = StoreWriters(store, [FakeActor(answer) for answer in answers])
    assert writers.finish() == replace(store, writable=writable)
    assert caplog.text.count("a target-store writer was lost") == 1


def visits(store: TargetStore, epoch: int = 2) -> list[PartGroup]:
    parts = store.list_parts().parts(SHARD, store.view(epoch))
    return [PartGroup([PartVisit(epoch, part, part.clips)]) for part in parts]


def shares(store: TargetStore, workers: int, batch: int) -> Iterator[list[list[int]]]:
    """Of each worker, the clips of each step."""
    share = batch // workers
    for rank in range(workers):
        reader = StoreReader(store, batch, rank * share, share, lambda _part: True)
        yield [table["index"].to_pylist() for table in reader.batches(visits(store))]


@pytest.mark.parametrize(("workers", "batch"), [(1, 16), (1, 700), (2, 16), (4, 128), (3, 24)])
def test_workers_share_each_step_of_one_sequence(tmp_path: Path, workers: int, batch: int) -> None:
    store = opened(tmp_path)
    fill(store)
    together = list(zip(*shares(store, workers, batch), strict=True))
    steps = [[clip for share in step for clip in share] for step in together]
    expected = [list(range(CLIPS))[first : first + batch] for first in range(0, CLIPS, batch)]
    assert steps == expected


def test_rows_that_are_read_again_are_of_their_epoch(tmp_path: Path) -> None:
    store = opened(tmp_path)
    fill(store)
    (table,) = StoreReader(store, 600, 0, 600, lambda _part: True).batches(visits(store, epoch=2))
    assert set(table["epoch"].to_pylist()) == {2}


def test_a_part_that_cannot_be_reached_is_told_before_the_others_are_read(tmp_path: Path) -> None:
    filled = opened(tmp_path)
    fill(filled)
    parts = filled.list_parts().parts(SHARD, filled.view(0))
    back, waited = threading.Event(), []

    class Away(TargetStore):
        """A store on S3 that is away: the first part gives up, the others still wait."""

        def read(self, part: Part, indices: Sequence[int]) -> Any:
            if part == parts[0]:
                raise StorageError("no answer")
            waited.append(back.wait(30))
            return super().read(part, indices)

    store = Away(filled.path, 1, True, {SHARD: "v1"})
    groups = [PartGroup([PartVisit(0, part, part.clips) for part in parts])]
    with pytest.raises(StorageError, match="no answer"):
        list(StoreReader(store, 16, 0, 16, lambda _part: True).batches(groups))
    assert not waited
    back.set()


def test_a_broken_part_is_passed_over_and_told_once(
    broken: tuple[TargetStore, Part], caplog: pytest.LogCaptureFixture
) -> None:
    store, part = broken
    reported: list[Part] = []

    def tell(found: Part) -> bool:
        reported.append(found)
        return len(reported) == 1

    parts = {part, *store.list_parts().parts(SHARD, store.view(0))}
    every = [PartGroup([PartVisit(0, each, each.clips)]) for each in sorted(parts)]
    for _ in range(2):
        tables = list(StoreReader(store, 16, 0, 16, tell).batches(every))
        assert sum(len(table) for table in tables) == CLIPS - len(part.clips)
        assert len(tables) == -(-CLIPS // 16)
    assert reported == [part, part]
    assert caplog.text.count("the job computes its targets again") == 1
