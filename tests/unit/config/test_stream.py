"""A StreamSpec holds all that the stages need from a job, and nothing else."""

from typing import Any

from liser_dist.config.distill import DistillSpec
from liser_dist.config.stream import StudentInput


def stream(**change: Any) -> Any:
    content = {
        "name": "a-job",
        "data": {"unlabelled": "/data"},
        "teachers": {"speech": {"kind": "mock"}, "batch_size": 5},
        "train": {"epochs": 7},
        "seed": 3,
    }
    return DistillSpec.model_validate(content | change).stream


def test_a_job_hands_its_settings_to_its_stream() -> None:
    found = stream(targets={"input": "log_mel"}, augment={"gain_db": 0}, loss={"embedding": 1})
    assert (found.seed, found.epochs, found.teacher_batch_size) == (3, 7, 5)
    assert list(found.teachers) == ["speech"]
    assert found.embeddings
    assert found.student_input == StudentInput(audio="log_mel", mels=40, face_px=0)


def test_a_student_with_face_input_needs_crops_of_its_size() -> None:
    found = stream(student={"input": "both", "face_px": 24})
    assert found.student_input == StudentInput(audio="waveform", mels=40, face_px=24)


def test_epochs_have_windows_of_their_own_unless_a_store_shares_them() -> None:
    assert not stream(targets={"windows": 2}).has_store
    assert stream(targets={"windows": 2}).windows == 7
    assert stream(targets={"windows": 2, "store": "/store"}).windows == 2
