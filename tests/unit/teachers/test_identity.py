"""A process loads the weights that were identified before the job started, or none."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from liser_dist.config.base import EMOTIONS
from liser_dist.config.stream import ClipSpec
from liser_dist.config.teachers import (
    BackboneTeacher,
    HuggingFaceTeacher,
    ImageInput,
    MockTeacher,
    OnnxTeacher,
    StudentTeacher,
    TeacherIdentity,
    TeacherSpec,
)
from liser_dist.config.train_teacher import TrainTeacherSpec
from liser_dist.errors import TeacherError
from liser_dist.records import Clip
from liser_dist.runs.checkpoint_files import write_checkpoint
from liser_dist.teachers.identity import identify_model, verified
from liser_dist.teachers.model_teacher import Teacher
from liser_dist.teachers.teachers import (
    describe_teacher,
    identify_teacher,
    load_teacher,
    teacher_settings,
    weights_bytes,
)
from liser_dist.training.teacher_loop import TeacherLoop
from tests.hub_models import LABELS, save
from tests.nets import face_net

CLIP = ClipSpec()
REPLACED = r"has been replaced since this run started.*put the files back to resume.*another `name`"


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("vit", tmp_path_factory.mktemp("models") / "vit")


def scale_weights(folder: Path, factor: float) -> None:
    """Save other weights of the same names and shapes."""
    file = folder / "model.safetensors"
    weights = {name: values * np.float32(factor) for name, values in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})


def onnx_teacher(file: Path) -> OnnxTeacher:
    names = ("neutral", "happy", "sad", "angry", "fearful", "disgusted", "surprised")
    labels = {name: name for name in names[:6]}
    return OnnxTeacher(
        model=str(file), input=ImageInput(size_px=64), names=names, logits="logits", labels=labels
    )


def answer(spec: TeacherSpec, identity: TeacherIdentity | None = None) -> list[float]:
    return answer_of(load_teacher(spec, EMOTIONS, CLIP, identity))


def answer_of(teacher: Teacher) -> list[float]:
    faces = np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3)).astype(np.uint8)
    clip = Clip(key="a", shard="s", index=0, epoch=0, waveform=np.ones(16000, np.int16),
                faces=faces, has_face=np.ones(2, np.bool_))  # fmt: skip
    [targets] = teacher.teach([clip])
    return [float(value) for value in (*targets.logits, *targets.embedding)]


# ---------------------------------------------------------------- files


def test_an_onnx_file_that_was_replaced_is_refused(tmp_path: Path) -> None:
    file = face_net(tmp_path / "face.onnx")
    spec = onnx_teacher(file)
    identity, content, before = identify_teacher(spec), file.read_bytes(), answer(spec)
    face_net(file, seed=1)
    with pytest.raises(TeacherError, match=REPLACED) as caught:
        load_teacher(spec, EMOTIONS, CLIP, identity)
    assert str(file) in str(caught.value)
    file.write_bytes(content)  # put back
    assert answer(spec, identity) == before


@pytest.mark.parametrize("kind", [HuggingFaceTeacher, BackboneTeacher])
def test_a_folder_whose_weights_were_replaced_is_refused(
    kind: type[HuggingFaceTeacher | BackboneTeacher], vit: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "vit"
    shutil.copytree(vit, folder)
    settings = {"labels": LABELS} if kind is HuggingFaceTeacher else {}
    spec = kind.model_validate({"model": str(folder), **settings})
    identity, before = identify_teacher(spec), answer(spec)
    scale_weights(folder, 2)
    assert answer(spec) != before  # nothing but the identity tells the two apart
    with pytest.raises(TeacherError, match=REPLACED) as caught:
        load_teacher(spec, EMOTIONS, CLIP, identity)
    assert str(folder) in str(caught.value)
    shutil.copytree(vit, folder, dirs_exist_ok=True)  # put back
    assert answer(spec, identity) == before


def test_no_teacher_is_trained_on_a_backbone_that_was_replaced(vit: Path, tmp_path: Path) -> None:
    folder = tmp_path / "vit"
    shutil.copytree(vit, folder)
    spec = TrainTeacherSpec.model_validate({"backbone": str(folder), "data": {"labelled": "l"}})
    identity = identify_model("backbone", spec.backbone)
    scale_weights(folder, 2)
    with pytest.raises(TeacherError, match=f"^`backbone`.*{REPLACED}"):
        TeacherLoop(spec, {}, identity)


def test_files_that_are_replaced_while_they_are_loaded_are_refused(
    vit: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "vit"
    shutil.copytree(vit, folder)
    identity = identify_teacher(HuggingFaceTeacher(model=str(folder)))
    with verified(str(folder), identity):
        (folder / "model.safetensors").touch()  # the same content
        (folder / "README.md").write_text("a file that is not loaded")
    with (
        pytest.raises(TeacherError, match=REPLACED),
        verified(str(folder), identity),
    ):
        scale_weights(folder, 2)


def test_a_file_that_is_overwritten_does_not_change_a_teacher_that_runs(
    vit: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "vit"
    shutil.copytree(vit, folder)
    teacher = load_teacher(HuggingFaceTeacher(model=str(folder), labels=LABELS), EMOTIONS, CLIP)
    before = answer_of(teacher)
    with (folder / "model.safetensors").open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(size // 3)
        file.write(b"\1" * (size - size // 3))
    assert answer_of(teacher) == before


def test_a_checkpoint_that_was_replaced_is_refused(tmp_path: Path) -> None:
    place = str(tmp_path / "step-1")
    write_checkpoint(place, {"best.safetensors": b"one"})
    spec = StudentTeacher(model=place)
    identity = identify_teacher(spec)
    write_checkpoint(place, {"best.safetensors": b"two"})
    with pytest.raises(TeacherError, match=REPLACED):
        load_teacher(spec, EMOTIONS, CLIP, identity)


def test_a_teacher_without_weights_has_nothing_to_compare() -> None:
    spec = MockTeacher()
    identity = identify_teacher(spec)
    assert identity == TeacherIdentity(kind="mock")
    assert answer(spec, identity) == answer(spec)


def test_the_settings_of_targets_have_the_weights_that_were_identified(tmp_path: Path) -> None:
    file = face_net(tmp_path / "face.onnx")
    spec = onnx_teacher(file)
    identity = identify_teacher(spec)
    file.unlink()  # not read again
    assert teacher_settings(spec, identity)["weights"] == identity.digest


# ---------------------------------------------------------------- models on the hub

FIRST, SECOND = "1" * 40, "2" * 40
NAME = "org/vit"
Commit = Callable[[str, str, float], None]


@pytest.fixture
def commit(vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commit:
    """A function that commits a model to a branch, into the cache of a hub that is out of reach."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = cache / "models--org--vit"

    def add(revision: str, branch: str, factor: float) -> None:
        snapshot = repository / "snapshots" / revision
        shutil.copytree(vit, snapshot)
        scale_weights(snapshot, factor)
        blobs = repository / "blobs"
        blobs.mkdir(exist_ok=True)
        for file in list(snapshot.iterdir()):
            blob = file.rename(blobs / f"{revision}-{file.name}")
            file.symlink_to(blob)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / branch).write_text(revision)

    return add


@pytest.mark.parametrize("kind", [HuggingFaceTeacher, BackboneTeacher])
def test_the_commit_that_was_identified_is_loaded_after_its_branch_has_moved(
    kind: type[HuggingFaceTeacher | BackboneTeacher], commit: Commit
) -> None:
    commit(FIRST, "main", 1)
    settings = {"labels": LABELS} if kind is HuggingFaceTeacher else {}
    spec = kind.model_validate({"model": NAME, **settings})
    identity, before = identify_teacher(spec), answer(spec)
    assert identity == TeacherIdentity(kind=spec.kind, model=NAME, commit=FIRST)
    commit(SECOND, "main", 2)
    assert answer(spec) != before
    assert answer(spec, identity) == before
    assert describe_teacher(spec, EMOTIONS, CLIP, identity).modality == "image"
    assert teacher_settings(spec, identity)["weights"] == FIRST


def test_a_revision_is_a_branch_a_tag_or_a_commit(commit: Commit) -> None:
    commit(FIRST, "v1", 1)
    commit(SECOND, "main", 2)
    spec = HuggingFaceTeacher(model=NAME, labels=LABELS)
    older, exact = (spec.model_copy(update={"revision": each}) for each in ("v1", FIRST))
    assert identify_teacher(spec).commit == SECOND
    identity = identify_teacher(older)
    assert (identity.revision, identity.commit) == ("v1", FIRST)
    assert identify_teacher(exact).commit == FIRST
    assert answer(older) == answer(exact) == answer(older, identity) != answer(spec)
    assert weights_bytes(older) == weights_bytes(spec) > 0
    # The revision stands for nothing but the weights.
    with_main = spec.model_copy(update={"revision": "main"})
    assert teacher_settings(with_main) == teacher_settings(spec)


def test_a_revision_that_the_hub_lacks_is_named(commit: Commit) -> None:
    commit(FIRST, "main", 1)
    with pytest.raises(TeacherError, match=r"'org/vit'.*at revision 'v7'"):
        identify_teacher(HuggingFaceTeacher(model=NAME, revision="v7"))


def test_a_folder_has_no_revision(vit: Path) -> None:
    spec = HuggingFaceTeacher(model=str(vit), revision="v1")
    with pytest.raises(TeacherError, match="no revision 'v1': leave `revision` out, or give a hub"):
        identify_teacher(spec)


# ---------------------------------------------------------------- runs of train_teacher


def test_the_folder_of_a_run_stands_for_the_teacher_that_it_trained(
    vit: Path, tmp_path: Path
) -> None:
    run = tmp_path / "w2v-teacher" / "001"
    shutil.copytree(vit, run / "teacher")
    of_run, of_folder = (
        HuggingFaceTeacher(model=str(place), labels=LABELS) for place in (run, run / "teacher")
    )
    assert answer(of_run, identify_teacher(of_run)) == answer(of_folder)
    assert teacher_settings(of_run) == teacher_settings(of_folder)
    assert weights_bytes(of_run) == weights_bytes(of_folder) > 0
