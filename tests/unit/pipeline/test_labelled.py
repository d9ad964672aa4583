"""Labelled sets are read without the clips of emotions that the job does not have."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from liser_dist.config.resources import ResourcesSpec
from liser_dist.config.stream import ClipSpec, StreamSpec
from liser_dist.data.shard_list import Shard
from liser_dist.errors import SpecError
from liser_dist.pipeline.labelled import NO_LABEL, count_left_out, read_labelled
from liser_dist.records import Example

STREAM = StreamSpec(
    clip=ClipSpec(), emotions=("sad", "happy"), resources=ResourcesSpec(), teachers={}
)


class Store:
    """A target store that has every clip."""

    def __init__(self, clips: Sequence[Example]) -> None:
        self.clips = clips

    def list_parts(self) -> Any:
        return SimpleNamespace(is_complete=lambda *_: True, parts=lambda shard, _: shard)

    def read_shard(self, shard: str) -> list[Example]:
        return [clip for clip in self.clips if clip.shard == shard]


def clip(shard: str, index: int, emotion: str, reason: str = "") -> Example:
    return Example(
        key=f"{shard}-{index}",
        shard=shard,
        index=index,
        epoch=0,
        emotion=emotion,
        speaker=shard,
        reason=reason,
        detail="of the clip" if reason else "",
    )


def read(*clips: Example) -> Any:
    shards = {name: [Shard(name, 1, "", 1)] for name in dict.fromkeys(clip.shard for clip in clips)}
    writers: Any = SimpleNamespace(store=Store(clips))
    return read_labelled(STREAM, shards, None, writers)


def test_clips_of_other_emotions_are_left_out_and_counted_by_emotion(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "liser_dist"):
        clips, rejected = read(
            clip("labelled", 0, "sad"), clip("labelled", 1, "calm"), clip("labelled", 2, "calm"),
            clip("labelled", 3, ""), clip("labelled", 4, "calm", reason="silent"),
            clip("test", 0, "happy"),
        )  # fmt: skip
    assert {name: len(of_set) for name, of_set in clips.items()} == {"labelled": 1, "test": 1}
    assert count_left_out(rejected["labelled"]) == {"calm": 2, NO_LABEL: 1}
    assert count_left_out(rejected["test"]) == {}
    assert [one.reason for one in rejected["labelled"]] == [
        "other_emotion", "other_emotion", "other_emotion", "silent",
    ]  # fmt: skip
    assert [record.getMessage() for record in caplog.records] == [
        "data.labelled: 3 clips with an emotion that is not in `emotions` left out: calm 2, "
        "no label 1",
        "data.labelled: skipping 1 clip (reason: silent), such as labelled-4: of the clip",
    ]


def test_a_set_without_a_clip_of_the_jobs_emotions_is_refused_by_its_own_field() -> None:
    with pytest.raises(SpecError, match=r"`data.validation` .*no usable clip whose `emotion`"):
        read(clip("labelled", 0, "sad"), clip("validation", 0, "calm"))
