"""`Teach` computes one example per clip, and raises the error if its teachers cannot load."""

import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from liser_dist.config.distill import DistillSpec
from liser_dist.config.stream import StreamSpec
from liser_dist.errors import TeacherError
from liser_dist.pipeline.plan import identify_teachers
from liser_dist.pipeline.stages import RowOptions, Teach
from liser_dist.pipeline.store import TargetStore
from liser_dist.pipeline.store_writer import StoreWriters
from liser_dist.pipeline.tables import to_examples, to_table
from liser_dist.records import Clip, Example
from tests.nets import face_net


def stream(**change: Any) -> StreamSpec:
    content = {
        "name": "a-job",
        "data": {"unlabelled": "/data"},
        "teachers": {"speech": {"kind": "mock", "embedding": 4}, "batch_size": 2},
    }
    return DistillSpec.model_validate(content | change).stream


@pytest.fixture(autouse=True)
def _gpus_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Teach` hides GPUs that are not its own; the other tests keep theirs."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    monkeypatch.setattr("ray.get_gpu_ids", lambda: [])


CLIPS = [
    Clip(key=f"k{n}", shard="/a.tar" if n < 3 else "/b.tar", index=n, epoch=1,
         waveform=np.ones(160, np.int16))
    for n in range(5)
]  # fmt: skip


def teach(spec: StreamSpec, options: RowOptions) -> Any:
    return Teach(spec, options)(to_table(CLIPS, Clip))


def taught(spec: StreamSpec, options: RowOptions) -> list[Example]:
    return to_examples(teach(spec, options))


def test_each_clip_becomes_an_example_in_order() -> None:
    examples = taught(stream(), RowOptions())
    assert [example.key for example in examples] == [clip.key for clip in CLIPS]
    assert all(example.targets_from("speech").logits.size == 6 for example in examples)


def test_embeddings_are_kept_where_the_loss_needs_them() -> None:
    assert taught(stream(), RowOptions())[0].targets_from("speech").embedding.size == 0
    some = taught(stream(loss={"embedding": 1}), RowOptions())
    assert some[0].targets_from("speech").embedding.size == 4


def test_targets_do_not_depend_on_the_batch() -> None:
    one_by_one = taught(stream(deterministic=True), RowOptions())
    for one, other in zip(one_by_one, taught(stream(), RowOptions()), strict=True):
        assert (one.targets_from("speech").logits == other.targets_from("speech").logits).all()


def test_only_some_shards_get_targets() -> None:
    examples = taught(stream(), RowOptions(labelled=True, shards_with_targets={"/b.tar"}))
    assert [bool(example.targets) for example in examples] == [False, False, False, True, True]


def test_a_dataset_for_the_store_alone_gives_the_keys() -> None:
    assert teach(stream(), RowOptions(keys_only=True)).column_names == ["key"]


def test_a_teacher_that_cannot_be_loaded_fails_the_first_call(tmp_path: Path) -> None:
    missing = {"kind": "student", "model": str(tmp_path / "nowhere")}
    teacher = Teach(stream(teachers={"speech": missing}), RowOptions())
    with pytest.raises(TeacherError):
        teacher(to_table(CLIPS, Clip))


def test_a_teacher_that_was_replaced_after_planning_teaches_nothing(tmp_path: Path) -> None:
    file = face_net(tmp_path / "face.onnx")
    names = ["neutral", "happy", "sad", "angry", "fearful", "disgusted", "surprised"]
    face = {"kind": "onnx", "model": str(file), "names": names, "logits": "logits",
            "input": {"kind": "image", "size_px": 64},
            "labels": {name: name for name in names[:6]}}  # fmt: skip
    spec = stream(teachers={"face": face})
    spec = replace(spec, identities=identify_teachers(spec))
    assert len(taught(spec, RowOptions())) == len(CLIPS)
    face_net(file, seed=1)  # what a node that joins later finds
    with pytest.raises(TeacherError, match=r"`teachers.face`.*has been replaced"):
        teach(spec, RowOptions())
    evaluated = replace(spec, teacher_fields={"face": "model"})
    with pytest.raises(TeacherError, match=r"^`model`"):
        teach(evaluated, RowOptions())


def test_rows_are_stored_under_the_view_of_their_set() -> None:
    writers = StoreWriters(TargetStore("s", 2, False, {}), [])
    assert RowOptions(writers=writers).view("/a.tar", 3) == "window-1"
    labelled = RowOptions(labelled=True, shards_with_targets={"/a.tar"}, writers=writers)
    assert labelled.view("/a.tar", 0) == "centre-taught"
    assert labelled.view("/b.tar", 0) == "centre"
    assert RowOptions(labelled=True, writers=writers).view("/b.tar", 0) == "centre-taught"


def test_what_actors_are_given_can_be_sent_to_them() -> None:
    given = stream(targets={"store": "/s"}), RowOptions(shards_with_targets=frozenset({"/a.tar"}))
    assert pickle.loads(pickle.dumps(given)) == given
