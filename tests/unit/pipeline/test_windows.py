"""A window depends on run, epoch and key alone, and is the same for all jobs of a store."""

from typing import Any

import pytest

from liser_dist.config.distill import DistillSpec
from liser_dist.pipeline.windows import Windows
from liser_dist.records import Provenance


def windows(*, centred: bool = False, **change: Any) -> Windows:
    content = {
        "name": "a-job",
        "data": {"unlabelled": "/data"},
        "teachers": {"speech": {"kind": "mock"}},
        "train": {"epochs": 4},
    }
    return Windows.of(DistillSpec.model_validate(content | change).stream, centred=centred)


def start(of: Windows, epoch: int, key: str = "k") -> float:
    return of.start_share(Provenance(key=key, shard="s", index=0, epoch=epoch))


def test_labelled_clips_are_seen_in_their_middle() -> None:
    assert start(windows(centred=True), epoch=3) == 0.5


def test_even_windows_are_spread_over_the_epochs() -> None:
    even = windows(clip={"windows": "even"})
    assert [start(even, epoch) for epoch in range(5)] == [0.125, 0.375, 0.625, 0.875, 0.125]


def test_random_windows_differ_by_seed_epoch_and_key() -> None:
    starts = {
        start(windows(seed=seed), epoch, key)
        for seed in range(3) for epoch in range(4) for key in "ab"
    }  # fmt: skip
    assert len(starts) == 24
    assert all(0 <= share < 1 for share in starts)


def test_a_random_window_is_that_of_earlier_versions() -> None:
    assert start(windows(seed=3), epoch=1) == pytest.approx(0.5750340376742406, abs=0)


def test_with_a_store_epochs_take_turns_and_seeds_share_windows() -> None:
    store = {"store": "/store", "windows": 2}
    one, two = windows(seed=1, targets=store), windows(seed=2, targets=store)
    assert [start(one, epoch) for epoch in range(4)] == [start(two, epoch) for epoch in range(4)]
    assert start(one, 0) == start(one, 2) != start(one, 1)
