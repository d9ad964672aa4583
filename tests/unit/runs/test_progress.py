"""Progress logs only the values that are known, and its total gets better with each shard."""

from liser_dist.data.shard_list import Shard
from liser_dist.runs.progress import PassTotal, Progress


def test_unknown_numbers_are_left_out() -> None:
    numbers = Progress(steps=3, total_passes=9, scores={"distilled": 0.5}).numbers
    assert numbers["train/steps"] == 3
    assert numbers["validation/distilled_uar"] == 0.5
    assert "train/loss" not in numbers  # not a number yet
    assert "train/left_s" not in numbers
    assert "train/scores" not in numbers


def test_the_total_is_corrected_by_the_shards_that_were_read() -> None:
    shards = [Shard(name, 100, "v", clips=50, estimated=True) for name in "abcd"]
    total = PassTotal(shards, epochs=2)
    assert (total.passes, total.is_estimate) == (400, True)
    total.learn("a", 10)  # longer clips than in the shard that the estimate was made from
    total.learn("a", 10)
    assert (total.passes, total.is_estimate) == (80, True)
    for name in "bcd":
        total.learn(name, 11)
    assert (total.passes, total.is_estimate) == (86, False)


def test_a_damaged_shard_says_nothing_about_counted_ones() -> None:
    total = PassTotal([Shard(name, 100, "v", clips=50) for name in "abcd"], epochs=1)
    total.learn("a", 10)
    assert (total.passes, total.is_estimate) == (160, False)
