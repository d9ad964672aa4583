"""What a job's teachers are: where each comes from, how it wants its input, what its names mean."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from liser_dist.fields import Count, Place, Spec

Comparison = Literal[
    "labels_only",  # no teacher
    "speech_only",
    "face_only",
    "swapped_faces",  # the face teacher alone, having seen the faces of other clips
    "shuffled_targets",  # what both teachers said, of other clips
]

Labels = Annotated[
    dict[str, str], Field(description="the teacher's name of an emotion -> the job's; many to one")
]


class HuggingFaceTeacher(Spec):
    """A classifier or plain encoder by hub name or folder: audio, image or video."""

    kind: Literal["huggingface"] = "huggingface"
    model: Place
    labels: Labels | None = Field(None, description="names not mapped are left out")
    temperature: Annotated[float, Field(gt=0)] = 1.0


class BackboneTeacher(Spec):
    """A net below its head, which gives embeddings alone: heads are fitted on them later.

    wav2vec 2.0, HuBERT, WavLM, Whisper and their like give the mean over time of each layer, one
    after the other; others what their classifier's last linear layer is given.
    """

    kind: Literal["backbone"] = "backbone"
    model: Place


class ImageInput(Spec):
    """How an ONNX face net wants its crops: (pixel - mean) * scale, N x C x size x size."""

    kind: Literal["image"] = "image"
    size_px: Annotated[int, Field(ge=8)]
    channels: Literal["rgb", "bgr", "grey"] = "rgb"
    mean: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1 / 255,)


class WaveformInput(Spec):
    """How an ONNX speech net wants its sound: N x T in -1..1."""

    kind: Literal["waveform"] = "waveform"


class MelPowerInput(Spec):
    """How an ONNX speech net wants its sound: N x T x mels of mel power."""

    kind: Literal["mel_power"] = "mel_power"
    mels: Count = 40
    window_ms: Annotated[float, Field(gt=0)] = 25.0
    hop_ms: Annotated[float, Field(gt=0)] = 10.0


class OnnxTeacher(Spec):
    """An ONNX file, on disk or S3, run by onnxruntime."""

    kind: Literal["onnx"] = "onnx"
    model: Place
    input: Annotated[ImageInput | WaveformInput | MelPowerInput, Field(discriminator="kind")]
    names: tuple[str, ...] = Field((), description="the classes, in the order of the logits")
    logits: str | None = Field(None, description="name of the output with the logits")
    embedding: str | None = Field(None, description="name of the output with the embedding")
    labels: Labels | None = None
    temperature: Annotated[float, Field(gt=0)] = 1.0

    @model_validator(mode="after")
    def _has_an_output(self) -> Self:
        if self.logits is None and self.embedding is None:
            raise ValueError("an ONNX teacher needs `logits` or `embedding`, the name of an output")
        if self.logits is not None and not self.names:
            raise ValueError("`logits` needs `names`, the classes in the order of the logits")
        return self


class StudentTeacher(Spec):
    """A student's checkpoint as a teacher: self-training on its pseudo-labels."""

    kind: Literal["student"] = "student"
    model: Place
    which: Literal["distilled"] | Comparison = "distilled"
    temperature: Annotated[float, Field(gt=0)] = 1.0


class MockTeacher(Spec):
    """Says something that depends on the clip's key alone, after a given time. For tests."""

    kind: Literal["mock"] = "mock"
    seconds_per_clip: Annotated[float, Field(ge=0)] = 0.0
    embedding: Annotated[int, Field(ge=0)] = 0


AnyTeacher = Annotated[
    HuggingFaceTeacher | BackboneTeacher | OnnxTeacher | StudentTeacher | MockTeacher,
    Field(discriminator="kind"),
]


class TeachersSpec(Spec):
    speech: AnyTeacher | None = None
    face: AnyTeacher | None = None
    batch_size: Count = Field(32, description="clips a teacher sees at once")

    @model_validator(mode="after")
    def _one_at_least(self) -> Self:
        if self.speech is None and self.face is None:
            raise ValueError("there is no teacher: give `speech`, `face` or both")
        return self
