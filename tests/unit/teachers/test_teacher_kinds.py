"""Each kind of teacher identifies its weights as earlier versions did, and sizes them."""

import hashlib
from pathlib import Path
from typing import get_args

import numpy as np
from scipy.special import softmax

from liser_dist.config.base import sections_of
from liser_dist.config.teachers import (
    BackboneTeacher,
    HuggingFaceTeacher,
    ImageInput,
    MockTeacher,
    OnnxTeacher,
    StudentTeacher,
    TeacherSpec,
    TeachersSpec,
)
from liser_dist.teachers.model_teacher import to_probabilities
from liser_dist.teachers.teachers import kind_of, teacher_settings, weights_bytes


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write(folder: Path, **files: bytes) -> str:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    return str(folder)


def test_a_folder_is_identified_by_the_files_that_are_loaded(tmp_path: Path) -> None:
    files = {"config__json": b"{}", "model__safetensors": b"weights", "README__md": b"text"}
    place = write(tmp_path / "net", **files)
    lines = [f"config.json {sha256(b'{}')}", f"model.safetensors {sha256(b'weights')}"]
    digest = sha256("\n".join(lines).encode())
    teacher = HuggingFaceTeacher(model=place, labels={"hap": "happy"}, temperature=2.0)
    assert teacher_settings(teacher) == {
        "kind": "huggingface",
        "labels": {"hap": "happy"},
        "temperature": 2.0,
        "weights": digest,
    }
    backbone = BackboneTeacher(model=place)
    assert teacher_settings(backbone) == {"kind": "backbone", "weights": digest}
    assert weights_bytes(teacher) == weights_bytes(backbone) == len(b"weights")


def test_an_onnx_file_is_identified_by_its_content(tmp_path: Path) -> None:
    file = tmp_path / "face.onnx"
    file.write_bytes(b"graph")
    spec = OnnxTeacher(model=str(file), input=ImageInput(size_px=48), embedding="features")
    settings = teacher_settings(spec)
    assert settings.pop("weights") == sha256(b"graph")
    assert settings == spec.model_dump(mode="json", exclude={"model"})
    assert weights_bytes(spec) == len(b"graph")


def test_a_student_is_identified_by_its_checkpoints_marker(tmp_path: Path) -> None:
    place = write(tmp_path / "step-1", COMMITTED=b"digests", best__safetensors=b"best")
    spec = StudentTeacher(model=place)
    assert teacher_settings(spec) == {
        "kind": "student",
        "which": "distilled",
        "temperature": 1.0,
        "weights": sha256(b"digests"),
    }
    assert weights_bytes(spec) == len(b"best")


def test_a_mock_teacher_has_no_weights_and_its_time_changes_no_target() -> None:
    spec = MockTeacher(seconds_per_clip=0.5, embedding=3)
    assert teacher_settings(spec) == {"kind": "mock", "embedding": 3}
    assert weights_bytes(spec) == 0


def test_every_kind_of_the_spec_has_its_class() -> None:
    kinds = sections_of(TeachersSpec.model_fields["speech"])
    assert kinds == list(get_args(get_args(TeacherSpec)[0]))
    handled = {type(kind_of(kind.model_construct())).__name__ for kind in kinds}  # type: ignore[arg-type]
    assert len(handled) == len(kinds)


def test_probabilities_are_those_of_earlier_versions_bit_for_bit() -> None:
    draw = np.random.default_rng(0)
    for _ in range(200):
        logits = draw.standard_normal((3, 7)).astype(np.float32) * 5
        scaled = logits.astype(np.float64) / 1.7
        powers = np.exp(scaled - scaled.max(-1, keepdims=True))
        earlier = np.asarray(powers / powers.sum(-1, keepdims=True), np.float32)
        assert (to_probabilities(logits, 1.7) == earlier).all()
        assert (softmax(scaled, axis=-1).astype(np.float32) == earlier).all()
