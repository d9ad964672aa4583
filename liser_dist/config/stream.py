"""Describes a stream of clips: how they are decoded and what the teachers compute from them.

The pipeline's stages take a `StreamSpec` and know nothing about jobs. Each job builds its own: a
distillation from its spec (`DistillSpec.stream`), an evaluation with the evaluated model as the
only teacher, and the training of a teacher without any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from liser_dist.config.base import Count, FaceDetector, Spec
from liser_dist.config.resources import ResourcesSpec

if TYPE_CHECKING:
    from liser_dist.config.teachers import TeacherIdentity, TeacherSpec


class ClipSpec(Spec):
    """How a clip is decoded: its window, its audio, and its face crops."""

    sample_rate_hz: Annotated[int, Field(ge=4000, le=48000)] = Field(
        16000, description="Sample rate of the audio that teachers and student get, in Hz."
    )
    window_s: Annotated[float, Field(gt=0.1, le=60)] = Field(
        3.0,
        description="Length of a window, the part of a clip that is used at a time, in seconds. A "
        "shorter clip is padded; a longer one has several windows.",
    )
    windows: Literal["random", "even"] = Field(
        "random",
        description="Where the windows of a clip longer than `clip.window_s` are. `random`: drawn "
        "anew for each epoch. `even`: evenly spaced over the epochs.",
    )
    min_duration_s: Annotated[float, Field(ge=0)] = Field(
        0.5, description="Minimum length of a clip, in seconds; less is rejected (`too_short`)."
    )
    min_speech_s: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="Minimum speech in the complete clip, in seconds, as measured by silero-vad. A "
        "clip with less is rejected (`no_speech`). 0: speech is not measured.",
    )
    faces: Count = Field(
        8,
        description="Number of frames in which a face is looked for, evenly spaced in the window.",
    )
    frames: Literal["uniform", "keyframes"] = Field(
        "uniform",
        description=(
            "Which frames are decoded. `uniform`: exactly the evenly spaced ones. `keyframes`: the "
            "key frame nearest to each, which is far cheaper, but web video has a key frame only "
            "every few seconds."
        ),
    )
    face_px: Annotated[int, Field(ge=16, le=512)] = Field(
        112, description="Width and height of the face crops that the teachers get, in pixels."
    )
    face_detector: FaceDetector = Field(
        "haar",
        description="Face detector for clips whose shards hold no face boxes: `haar` (OpenCV), or "
        "the path of a YuNet .onnx file.",
    )
    decode_limit_s: Annotated[float, Field(gt=0)] = Field(
        20.0,
        description="Longest time to decode a clip, in seconds. A clip that takes longer is "
        "rejected (`timeout`).",
    )
    decode_limit_bytes: Annotated[int, Field(ge=256 * 2**20)] = Field(
        2 * 2**30,
        description="Memory that the decoding process may use, in bytes. A clip that needs more is "
        "rejected (`too_large`).",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentInput:
    """What the student needs of a clip."""

    audio: Literal["waveform", "log_mel"] = "waveform"
    mels: int = 0  # mel bands of `log_mel`
    face_px: int = 0  # width and height of its grey face crops; 0: it has no face input


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSpec:
    """What the stages of the pipeline need to know of a job.

    Attributes:
        clip: How clips are decoded.
        emotions: The job's emotions, in the order of the targets' logits.
        teachers: The teachers by name ("speech", "face"); a job without teachers has none.
        identities: The weights that each teacher must have wherever it is loaded; those of a
            teacher that is missing here are not checked.
        teacher_fields: The field of the job's spec that describes each teacher, for messages; of a
            teacher that is missing here it is `teachers.NAME`.
        teacher_batch_size: Clips per forward pass of a teacher.
        embeddings: Whether the teachers' embeddings are part of the targets.
        student_input: What the student needs of a clip.
        resources: Numbers and sizes of the stages' processes.
        store: Path or URI of the target store; None if there is none.
        stored_windows: Windows of a longer clip for which the store has targets.
        epochs: Passes over the shards.
        seed: Seed of random windows.
        deterministic: Whether rows keep their order and targets do not depend on the batch.
    """

    clip: ClipSpec
    emotions: tuple[str, ...]
    resources: ResourcesSpec
    teachers: Mapping[str, TeacherSpec]
    identities: Mapping[str, TeacherIdentity] = field(default_factory=dict)
    teacher_fields: Mapping[str, str] = field(default_factory=dict)
    teacher_batch_size: int = 32
    embeddings: bool = False
    student_input: StudentInput = StudentInput()
    store: str | None = None
    stored_windows: int = 1
    epochs: int = 1
    seed: int = 0
    deterministic: bool = False

    def teacher_field(self, name: str) -> str:
        """Return the field of the job's spec that describes a teacher."""
        return self.teacher_fields.get(name, f"teachers.{name}")

    @property
    def has_store(self) -> bool:
        """Whether targets are stored for later epochs and other runs."""
        return self.store is not None

    @property
    def windows(self) -> int:
        """Number of windows of a longer clip that the epochs cycle through."""
        return self.stored_windows if self.has_store else self.epochs
