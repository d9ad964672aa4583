"""Students ignore padding, and have the documented number of parameters."""

from typing import get_args

import pytest
import torch

from liser_dist.config.student import CnnStudent, EmotionStudent, ResLstmStudent
from liser_dist.students.models import Student

KINDS = [kind() for kind in get_args(EmotionStudent)]


@pytest.mark.parametrize("spec", KINDS, ids=lambda spec: spec.kind)
def test_a_student_hears_no_padding(spec: EmotionStudent) -> None:
    torch.manual_seed(0)
    student = Student(spec, 6, 16000).eval()
    mel = torch.randn(2, 301, spec.mels)
    frames = torch.tensor([301, 123])
    together = student.encode(mel, frames).logits[1]
    noisy = mel.clone()
    noisy[1, 123:] = 50.0
    assert torch.allclose(student.encode(noisy, frames).logits[1], together, atol=1e-5)
    alone = student.encode(mel[1:, :123], frames[1:]).logits[0]
    assert torch.allclose(alone, together, atol=1e-4)


@pytest.mark.parametrize("spec", KINDS, ids=lambda spec: spec.kind)
def test_every_weight_learns_and_a_silent_row_has_a_finite_gradient(
    spec: EmotionStudent,
) -> None:
    student = Student(spec, 6, 16000, {"speech": 7})
    mel = student.features(torch.randn(3, 16000) * 0.1)
    output = student.encode(mel, student.features.frames(torch.tensor([16000, 8000, 0])))
    projected = student.projections["speech"](output.embedding)
    (output.logits.square().sum() + projected.sum()).backward()
    for name, weight in student.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name


@pytest.mark.parametrize("spec", KINDS, ids=lambda spec: spec.kind)
@pytest.mark.parametrize("given", ["face", "both"])
def test_a_student_that_sees_looks_at_faces_and_at_nothing_else(
    given: str, spec: EmotionStudent
) -> None:
    torch.manual_seed(0)
    spec = spec.model_copy(update={"input": given, "face_px": 24})
    student = Student(spec, 6, 16000).eval()
    mel, frames = torch.randn(3, 100, spec.mels), torch.tensor([100, 80, 60])
    faces = torch.rand(3, 4, 24, 24)
    seen = torch.tensor([[True, True, False, False], [True] * 4, [False] * 4])
    said = student.encode(mel, frames, faces, seen).logits
    other = faces.clone()
    other[0, 2:] = 1.0
    torch.testing.assert_close(student.encode(mel, frames, other, seen).logits, said)
    other[0, 0] = 0.0
    assert not torch.allclose(student.encode(mel, frames, other, seen).logits[0], said[0])
    deaf = torch.allclose(student.encode(-mel, frames, faces, seen).logits, said)
    assert deaf == (given == "face")
    student.train()
    student.encode(mel, frames, faces, seen).logits.square().sum().backward()
    for name, weight in student.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name


def test_the_residual_lstm_has_about_fifty_thousand_parameters() -> None:
    assert 45_000 < Student(ResLstmStudent(), 6, 16000).params < 55_000


def test_projections_do_not_count_for_they_are_left_behind() -> None:
    bare, projecting = (Student(CnnStudent(), 6, 16000, dims) for dims in ({}, {"face": 512}))
    assert bare.params == projecting.params
