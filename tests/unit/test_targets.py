"""What was taught is kept whole, found again by those whom it fits, and never taken on trust."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from liser_dist.records import Example
from liser_dist.rereading import Rereader
from liser_dist.schedule import PartVisit
from liser_dist.spec import DistillSpec
from liser_dist.tables import to_examples, to_table
from liser_dist.targets import (
    BrokenPartError,
    Part,
    StretchWriter,
    TargetStore,
    open_store,
    stretches,
)

SHARD, CLIPS = "/data/000000.tar", 600


def spec(store: Path, **change: Any) -> DistillSpec:
    content = {
        "name": "a-job",
        "data": {"unlabelled": "/data"},
        "teachers": {"speech": {"kind": "mock"}},
        "targets": {"store": str(store)},
    }
    return DistillSpec.model_validate(content | change)


def opened(store: Path, **change: Any) -> TargetStore:
    found = open_store(spec(store, **change), {SHARD: "v1"})
    assert found is not None
    return found


def example(index: int, epoch: int = 0) -> Example:
    draw = np.random.default_rng(index)
    return Example(
        key=f"k{index}", shard=SHARD, index=index, epoch=epoch, ends_shard=index == CLIPS - 1,
        waveform=draw.integers(-9, 9, 40).astype(np.int16),
        speech_logits=draw.standard_normal(6).astype(np.float16),
    )  # fmt: skip


def fill(store: TargetStore, epoch: int = 0, order_seed: int = 0) -> str | None:
    """As teachers do: batches in any order, some of them twice."""
    writer = StretchWriter(store)
    order = np.random.default_rng(order_seed).permutation(CLIPS)
    batches = [order[first : first + 32] for first in range(0, CLIPS, 32)]
    for batch in [batches[3], *batches, batches[5]]:
        rows = to_table([example(int(index), epoch) for index in batch], Example)
        for stretch, part in stretches(rows, lambda _shard, epoch: store.view(epoch)):
            writer.add(stretch, part)
    return writer.finish()


def files(store: TargetStore) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Path(store.place).rglob("*.parquet")}


def same(one: Example, two: Example) -> bool:
    return one.to_row() == two.to_row()


def test_a_filled_store_gives_back_what_was_put_in(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert not store.find().whole(SHARD, store.view(0))
    assert fill(store) is None
    stored = store.find()
    assert stored.whole(SHARD, store.view(0))
    parts = stored.parts(SHARD, store.view(0))
    assert [(part.start, part.stop) for part in parts] == [(0, 256), (256, 512), (512, 600)]
    assert all(map(same, store.read_shard(parts), map(example, range(CLIPS))))
    some = [300, 301, 440]
    assert all(map(same, to_examples(store.read(parts[1], some)), map(example, some)))


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
    assert not other.find().parts(SHARD, other.view(0))
    assert caplog.text.count("cannot read") == 1


@pytest.mark.parametrize(
    "change", [{"seed": 4}, {"loss": {"face_kl": 0.1}}, {"student": {"kind": "reslstm"}}]
)
def test_other_runs_read_what_there_is(tmp_path: Path, change: dict[str, Any]) -> None:
    fill(opened(tmp_path))
    other = opened(tmp_path, **change)
    assert other.find().whole(SHARD, other.view(0))


def test_a_shard_that_was_replaced_is_another(tmp_path: Path) -> None:
    fill(opened(tmp_path))
    replaced = open_store(spec(tmp_path), {SHARD: "v2"})
    assert replaced is not None
    assert not replaced.find().parts(SHARD, replaced.view(0))


@pytest.fixture(params=["flipped", "cut", "empty", "another", "gone"])
def broken(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[TargetStore, Part]:
    store = opened(tmp_path)
    fill(store)
    first, second, _ = store.find().parts(SHARD, store.view(0))
    file, content = Path(store.place_of(first)), bytearray(Path(store.place_of(first)).read_bytes())
    for place in range(100, len(content), 500):
        content[place] ^= 1
    made: dict[str, bytes] = {
        "flipped": bytes(content),
        "cut": file.read_bytes()[:-1000],
        "empty": b"",
        "another": Path(store.place_of(second)).read_bytes(),
        "gone": b"",
    }
    file.write_bytes(made[request.param])
    if request.param == "gone":
        file.unlink()
    return store, first


def test_a_broken_part_is_not_believed(broken: tuple[TargetStore, Part]) -> None:
    store, part = broken
    with pytest.raises(BrokenPartError):
        store.read(part, range(part.start, part.stop))


def test_a_store_that_takes_nothing_stops_no_job(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    store = opened(tmp_path / "file")
    assert not store.writable
    assert caplog.text.count("nothing can be added") == 1
    full = opened(tmp_path / "full")
    Path(store.place).parent.parent.joinpath("full").rename(tmp_path / "moved")
    (tmp_path / "full").write_text("no folder any more")
    assert fill(full) is not None
    assert caplog.text.count("nothing is added") == 1


def visits(store: TargetStore, epoch: int = 2) -> list[PartVisit]:
    parts = store.find().parts(SHARD, store.view(epoch))
    return [PartVisit(epoch, part, part.clips) for part in parts]


def shares(store: TargetStore, workers: int, batch: int) -> Iterator[list[list[int]]]:
    """Of each worker, the clips of each step."""
    share = batch // workers
    for rank in range(workers):
        reader = Rereader(store, batch, rank * share, share, lambda _part: True)
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
    (table,) = Rereader(store, 600, 0, 600, lambda _part: True).batches(visits(store, epoch=2))
    assert set(table["epoch"].to_pylist()) == {2}


def test_a_broken_part_is_passed_over_and_told_once(
    broken: tuple[TargetStore, Part], caplog: pytest.LogCaptureFixture
) -> None:
    store, part = broken
    told: list[Part] = []

    def tell(found: Part) -> bool:
        told.append(found)
        return len(told) == 1

    every = [PartVisit(0, p, p.clips) for p in [part, *store.find().parts(SHARD, store.view(0))]]
    every = sorted({visit.part: visit for visit in every}.values(), key=lambda v: v.part)
    for _ in range(2):
        tables = list(Rereader(store, 16, 0, 16, tell).batches(every))
        assert sum(len(table) for table in tables) == CLIPS - len(part.clips)
        assert len(tables) == -(-CLIPS // 16)
    assert told == [part, part]
    assert caplog.text.count("is broken, its clips are taught again") == 1
