"""The teachers of a job: where each model comes from, its input, and what its class names mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from liser_dist.config.base import Count, PlaceOrName, Record, Spec

Comparison = Literal[
    "labels_only",  # no teacher
    "speech_only",
    "face_only",
    "swapped_faces",  # the face teacher alone, with its targets of other clips
    "shuffled_targets",  # both teachers, with their targets of other clips
]

Labels = Annotated[
    dict[str, str] | None,
    Field(
        description="Maps the teacher's class names to the job's `emotions`. Several classes may "
        "map to one emotion. The probability of a class that is not mapped is left out: the others "
        "are rescaled to sum to 1, and the clip's loss is weighted by their sum before that. null: "
        "a class means the emotion of its name."
    ),
]
Temperature = Annotated[
    float,
    Field(
        gt=0,
        description="The teacher's logits are divided by this. Above 1 makes a teacher less "
        "certain, below 1 more certain.",
    ),
]
Revision = Annotated[
    Annotated[str, Field(min_length=1)] | None,
    Field(
        description=(
            "Branch, tag or commit of a `model` on the Hugging Face hub. A run keeps using the "
            "commit to which this refers when the run starts. null: the branch `main`."
        )
    ),
]


class TeacherIdentity(Record):
    """Which weights a teacher has: found before its job starts, checked wherever it is loaded.

    Attributes:
        kind: The kind of teacher.
        model: Its folder, file, checkpoint or hub name; None for a mock teacher.
        revision: What the spec asks for, of a hub model.
        digest: SHA-256 of the model's files; None for hub models and mock teachers.
        commit: Commit of a hub model.
    """

    kind: str
    model: str | None = None
    revision: str | None = None
    digest: str | None = None
    commit: str | None = None

    @property
    def weights(self) -> str | None:
        """The digest or the commit; None if there are no weights."""
        return self.digest or self.commit

    def describe_change(self, weights: str | None) -> str:
        """Return how the weights that are there now differ, and what to do about it."""
        before, now = ("none" if each is None else each[:12] for each in (self.weights, weights))
        return (
            f"the digest of its weights was {before} and is now {now}; put the files back to "
            "resume, or give another `name` to start a new run"
        )


class _Teacher(Spec):
    # Fields on whose values the targets do not depend. The weights of `model` count, not its path.
    without_effect: ClassVar[frozenset[str]] = frozenset({"model", "revision"})

    @property
    def label_map(self) -> Mapping[str, str] | None:
        """The teacher's class names mapped to emotions; None if each class means its own name."""
        return None


class HuggingFaceTeacher(_Teacher):
    """A Hugging Face classifier or plain encoder of audio, images or video."""

    kind: Literal["huggingface"] = Field("huggingface", description="Selects this kind of teacher.")
    model: PlaceOrName = Field(
        description="Folder with config.json, preprocessor_config.json and model.safetensors that "
        "every node can read, or a name on the Hugging Face hub."
    )
    revision: Revision = None
    labels: Labels = None
    temperature: Temperature = 1.0

    @property
    def label_map(self) -> Mapping[str, str] | None:
        """The teacher's class names mapped to emotions; None if each class means its own name."""
        return self.labels


class BackboneTeacher(_Teacher):
    """A Hugging Face model without its head. It gives embeddings alone; heads are fitted on them.

    wav2vec 2.0, HuBERT, WavLM, Whisper and similar models give the mean over time of each layer,
    concatenated. Other models give the input of their classifier's last linear layer.
    """

    kind: Literal["backbone"] = Field("backbone", description="Selects this kind of teacher.")
    model: PlaceOrName = Field(
        description="Folder that every node can read, or a name on the Hugging Face hub."
    )
    revision: Revision = None


class ImageInput(Spec):
    """Input of an ONNX face model: (pixel - mean) * scale, float [N, channels, size, size]."""

    kind: Literal["image"] = Field("image", description="Selects face crops as input.")
    size_px: Annotated[int, Field(ge=8)] = Field(
        description="Width and height of the input, in pixels."
    )
    channels: Literal["rgb", "bgr", "grey"] = Field("rgb", description="Order of the channels.")
    mean: tuple[float, ...] = Field(
        (0.0,),
        description="Subtracted from the pixels (0 to 255). One value, or one per channel.",
    )
    scale: tuple[float, ...] = Field(
        (1 / 255,),
        description=(
            "Factor by which pixels are multiplied after the mean was subtracted. One value, or "
            "one per channel."
        ),
    )


class WaveformInput(Spec):
    """Input of an ONNX speech model: the waveform, float [N, samples] in -1..1."""

    kind: Literal["waveform"] = Field("waveform", description="Selects the waveform as input.")


class MelPowerInput(Spec):
    """Input of an ONNX speech model: mel power, float [N, frames, mels]."""

    kind: Literal["mel_power"] = Field("mel_power", description="Selects mel power as input.")
    mels: Count = Field(40, description="Number of mel bands.")
    window_ms: Annotated[float, Field(gt=0)] = Field(
        25.0, description="Length of each analysis window, in milliseconds."
    )
    hop_ms: Annotated[float, Field(gt=0)] = Field(
        10.0, description="Distance between two windows, in milliseconds."
    )


class OnnxTeacher(_Teacher):
    """An ONNX file, on disk or S3, run by ONNX Runtime."""

    kind: Literal["onnx"] = Field("onnx", description="Selects this kind of teacher.")
    model: PlaceOrName = Field(description="Path or s3:// URI of the .onnx file.")
    input: Annotated[
        ImageInput | WaveformInput | MelPowerInput,
        Field(
            discriminator="kind",
            description="What input the model takes, which an ONNX file does not say.",
        ),
    ]
    names: tuple[str, ...] = Field(
        (), description="Class names in the order of the logits. Required with `logits`."
    )
    logits: str | None = Field(None, description="Name of the output that holds the logits.")
    embedding: str | None = Field(None, description="Name of the output that holds the embedding.")
    labels: Labels = None
    temperature: Temperature = 1.0

    @property
    def label_map(self) -> Mapping[str, str] | None:
        """The teacher's class names mapped to emotions; None if each class means its own name."""
        return self.labels

    @model_validator(mode="after")
    def _has_an_output(self) -> Self:
        if self.logits is None and self.embedding is None:
            raise ValueError(
                "an ONNX teacher needs `logits`, `embedding` or both: set each to the name of an "
                "output of the model"
            )
        if self.logits is not None and not self.names:
            raise ValueError(
                "`names` is required with `logits`: list the classes in the order of the logits"
            )
        return self


class StudentTeacher(_Teacher):
    """A student's checkpoint as a teacher: self-training on its pseudo-labels."""

    kind: Literal["student"] = Field("student", description="Selects this kind of teacher.")
    model: PlaceOrName = Field(
        description="A checkpoint of a run, such as runs/NAME/001/checkpoints/step-00001000-a001."
    )
    which: Literal["distilled"] | Comparison = Field(
        "distilled",
        description="Which of the run's students: `distilled`, or one of its `compare`.",
    )
    temperature: Temperature = 1.0


class MockTeacher(_Teacher):
    """Gives targets that depend on the clip's key alone, after a fixed time. For tests."""

    without_effect: ClassVar[frozenset[str]] = frozenset({"seconds_per_clip"})
    kind: Literal["mock"] = Field("mock", description="Selects this kind of teacher.")
    seconds_per_clip: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Time that it takes for each clip, in seconds."
    )
    embedding: Annotated[int, Field(ge=0)] = Field(
        0, description="Width of the embedding that it gives; 0 gives none."
    )


TeacherSpec = Annotated[
    HuggingFaceTeacher | BackboneTeacher | OnnxTeacher | StudentTeacher | MockTeacher,
    Field(discriminator="kind"),
]


def check_emotions(emotions: Sequence[str]) -> None:
    """Check that no emotion is named twice.

    Raises:
        ValueError: One is.
    """
    if len(set(emotions)) != len(emotions):
        raise ValueError(f"`emotions` lists a name twice: {list(emotions)}; remove the duplicate")


def check_label_map(teacher: TeacherSpec, emotions: Sequence[str], field: str) -> None:
    """Check that a teacher's label map leads to emotions of the job.

    Args:
        teacher: The teacher.
        emotions: The job's emotions.
        field: The teacher's field in the spec, for the message.

    Raises:
        ValueError: A name is mapped to something else.
    """
    for name, emotion in (teacher.label_map or {}).items():
        if emotion not in emotions:
            raise ValueError(
                f"`{field}.labels` maps {name!r} to {emotion!r}, which is not one of the job's "
                f"`emotions` {list(emotions)}: map it to one of them or leave it out"
            )


class TeachersSpec(Spec):
    """The speech and the face teacher of a job. One of them may be left out."""

    speech: TeacherSpec | None = Field(
        None, description="The teacher that gets the audio of a clip. null: there is none."
    )
    face: TeacherSpec | None = Field(
        None, description="The teacher that gets the face crops of a clip. null: there is none."
    )
    batch_size: Count = Field(32, description="Number of clips per forward pass of a teacher.")

    @property
    def by_name(self) -> dict[str, TeacherSpec]:
        """The teachers that are given, by name: "speech", "face"."""
        both = {"speech": self.speech, "face": self.face}
        return {name: teacher for name, teacher in both.items() if teacher is not None}

    @model_validator(mode="after")
    def _one_at_least(self) -> Self:
        if not self.by_name:
            raise ValueError("there is no teacher: set `speech`, `face` or both")
        return self
