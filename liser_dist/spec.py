"""What a job is: typed specs, their defaults, and the rules that hold between fields.

A spec is one YAML file; any field can be given on the command line under its dotted name
(`--train.epochs 3`). It checks itself when it is read, before anything heavy is imported.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from liser_dist.fields import (
    EMOTIONS,
    Count,
    CountOrBounds,
    NameOrOff,
    Place,
    PlaceOrOff,
    ServerOrOff,
    Share,
    Spec,
    Weight,
    fingerprint,
    with_absolute_places,
)
from liser_dist.resources_spec import ResourcesSpec
from liser_dist.synthetic import SyntheticSpec, fill_in_synthetic
from liser_dist.teacher_spec import Comparison, TeachersSpec

# ---------------------------------------------------------------- data


class DataSpec(Spec):
    """Where the shards are."""

    unlabelled: Place
    labelled: Place | None = None
    validation: Place | None = Field(None, description="labelled, of speakers of its own")
    test: Place | None = Field(None, description="labelled, of speakers of its own; scored once")


class ClipSpec(Spec):
    """What is kept of a clip."""

    sample_rate_hz: Annotated[int, Field(ge=4000, le=48000)] = 16000
    window_s: Annotated[float, Field(gt=0.1, le=60)] = 3.0
    windows: Literal["random", "even"] = Field(
        "random", description="of a longer clip: drawn anew, or evenly placed over the epochs"
    )
    min_duration_s: Annotated[float, Field(ge=0)] = 0.5
    min_speech_s: Annotated[float, Field(ge=0)] = Field(
        0.0, description="reject clips with less speech than this (silero-vad); 0 = do not look"
    )
    faces: Count = Field(8, description="frames looked at, spread evenly over the window")
    frames: Literal["uniform", "keyframes"] = Field(
        "uniform",
        description="those frames, or the key frame nearest to each: far cheaper to decode, and "
        "few; web video has one in some seconds",
    )
    face_px: Annotated[int, Field(ge=16, le=512)] = 112
    face_detector: str = Field(
        "haar", description="for clips without boxes: 'haar', or the path of a YuNet .onnx file"
    )
    decode_limit_s: Annotated[float, Field(gt=0)] = 20.0
    decode_limit_bytes: Annotated[int, Field(ge=256 * 2**20)] = 2 * 2**30


class TargetsSpec(Spec):
    """The target store: what is taught once is read from then on, by this run and by others."""

    store: PlaceOrOff = Field(
        None, description="a folder on disk or s3:// that runs share; off = every epoch is taught"
    )
    windows: Count = Field(
        1, description="of a clip longer than the window: so many are taught, epochs take turns"
    )
    input: Literal["waveform", "log_mel"] = Field(
        "waveform", description="what is kept of the sound: 32 KB a second, or 8 with 40 mels"
    )


# ---------------------------------------------------------------- student


class Senses(Spec):
    """What a student is given of a clip."""

    input: Literal["audio", "face", "both"] = "audio"
    face_px: Annotated[int, Field(ge=16, le=224)] = Field(
        48, description="of the grey crops that it sees, as many as `clip.faces`"
    )

    @property
    def hears(self) -> bool:
        return self.input != "face"

    @property
    def seen_px(self) -> int:
        """Of the crops that it sees; 0 where it only hears."""
        return 0 if self.input == "audio" else self.face_px


class CnnStudent(Senses):
    """Convolutions on log-mel, pooled over time."""

    kind: Literal["cnn"] = "cnn"
    width: Annotated[int, Field(ge=8, le=512, multiple_of=8)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    mels: Count = 40


class ResLstmStudent(Senses):
    """Residual LSTM layers with attention over time; about 50 k parameters."""

    kind: Literal["reslstm"] = "reslstm"
    width: Annotated[int, Field(ge=8, le=1024)] = 52
    layers: Count = 2
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    mels: Count = 40


class CountingStudent(Spec):
    """One weight for each clip, which is how often it was trained. For tests of the accounting."""

    kind: Literal["counting"] = "counting"
    mels: Count = 40
    seen_px: ClassVar[int] = 0


StudentSpec = Annotated[CnnStudent | ResLstmStudent | CountingStudent, Field(discriminator="kind")]


class LossSpec(Spec):
    """What a student learns from targets and labels; each weight times its mean over clips."""

    speech_kl: Weight = 1.0
    face_kl: Weight = 1.0
    embedding: Weight = Field(0.0, description="cosine distance to the teachers' embeddings")
    relations: Weight = Field(
        0.0, description="how clips of a batch lie to each other in the teachers' embeddings"
    )
    label_ce: Weight = 1.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    intensity: Share = Field(
        0.0, description="labels of what is weakly felt are softer, by as much as this"
    )
    temperature: Annotated[float, Field(gt=0)] = 2.0
    fusion: Literal["separate", "mean", "product", "confidence"] = Field(
        "separate",
        description="the teachers' targets apart, a loss each; or one of both: their mean, their "
        "product, or a mean in which the surer one weighs more",
    )
    min_confidence: Share = Field(
        0.0, description="clips on which no teacher is as sure as this are left out"
    )
    agreement: Weight = Field(
        0.0, description="how much clips weigh less on which the teachers differ: exp(-a * JS/ln 2)"
    )
    balance: Literal["none", "distribution_alignment", "resample"] = Field(
        "distribution_alignment", description="against the neutral that fills web video"
    )

    @property
    def uses_embeddings(self) -> bool:
        return bool(self.embedding or self.relations)


class AugmentSpec(Spec):
    """What is done to the student's input, never to the teachers'. All off at 0."""

    gain_db: Annotated[float, Field(ge=0)] = 6.0
    noise_db: Annotated[float, Field(ge=0)] = Field(
        0.0, description="white noise at this signal-to-noise ratio or up to 20 dB better; 0 = none"
    )
    speed: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.0, description="played faster or slower by this share or less, which moves its pitch too"
    )
    reverberation_s: Annotated[float, Field(ge=0, le=5)] = Field(
        0.0, description="as in a room whose sound dies away, by 60 dB, in this time or less"
    )
    time_mask_s: Annotated[float, Field(ge=0)] = 0.3
    frequency_mask: Share = 0.15


class TrainSpec(Spec):
    workers: CountOrBounds = Field(
        1, description="or [least, most]: as many as there is room for, more or fewer as it changes"
    )
    epochs: Count = 3
    batch_size: Count = Field(256, description="unlabelled clips a step, over all workers")
    labelled_batch_size: Annotated[int, Field(ge=0)] = Field(
        32, description="labelled clips mixed into each step, over all workers"
    )
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1e-3,), min_length=1, description="a student for each, on the same batches; best is kept"
    )
    weight_decay: Weight = 0.01
    warmup: Share = Field(0.05, description="share of the run")
    gradient_norm: Annotated[float, Field(gt=0)] = 1.0
    average: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="decay of an exponential average of the weights"
    )
    precision: Literal["fp32", "bf16"] = "fp32"
    validate_every: Count = Field(200, description="steps")
    checkpoint_every: Count = Field(1000, description="steps")
    checkpoint_every_s: Annotated[float, Field(gt=0)] = Field(
        300.0, description="at the latest: what a lost machine may cost"
    )
    keep: Count = Field(2, description="newest checkpoints kept, beside the best")
    max_failures: Annotated[int, Field(ge=0)] = Field(
        8, description="lost workers and nodes after which the job ends; notices do not count"
    )
    resize_every_s: Annotated[float, Field(gt=0)] = Field(
        60.0, description="how often an elastic job looks for room"
    )

    @property
    def worker_bounds(self) -> tuple[int, int]:
        """Least, most."""
        return (self.workers, self.workers) if isinstance(self.workers, int) else self.workers


class BudgetSpec(Spec):
    """When rejected clips mean that the data as a whole is broken."""

    max_rejected_share: Share = 0.5
    after_clips: Count = Field(200, description="clips seen before the share is looked at")
    max_rejected_in_a_row: Count = Field(100, description="clips, in the order of the steps")


class TrackSpec(Spec):
    """Where else a run's numbers go; keys come from the environment, as these libraries read it."""

    mlflow: ServerOrOff = Field(None, description="the address of an MLflow server")
    wandb: NameOrOff = Field(None, description="a project of Weights & Biases")


# ---------------------------------------------------------------- the job


class DistillSpec(Spec):
    """One run: unlabelled video in, student out."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    deterministic: bool = Field(
        False, description="same spec, seed and workers: same weights on CPU, bit for bit; slower"
    )
    emotions: tuple[str, ...] = Field(EMOTIONS, min_length=2)
    synthetic: SyntheticSpec | None = None
    data: DataSpec
    clip: ClipSpec = ClipSpec()
    teachers: TeachersSpec
    student: StudentSpec = CnnStudent()
    start_from: Place | None = Field(None, description="a checkpoint of the same student")
    loss: LossSpec = LossSpec()
    augment: AugmentSpec = AugmentSpec()
    train: TrainSpec = TrainSpec()
    targets: TargetsSpec = TargetsSpec()
    compare: tuple[Comparison, ...] = Field(
        (), description="students trained on the same batches in other ways, to compare"
    )
    resources: ResourcesSpec = ResourcesSpec()
    budget: BudgetSpec = BudgetSpec()
    track: TrackSpec = TrackSpec()
    output: Place = "runs"

    @model_validator(mode="before")
    @classmethod
    def _fill_in_synthetic(cls, given: Any) -> Any:
        """Shards and teachers of the synthetic corpus, where none are given."""
        return fill_in_synthetic(given)

    @model_validator(mode="before")
    @classmethod
    def _fill_in_kind(cls, given: Any) -> Any:
        """A field of the default student can be given without its kind."""
        if isinstance(given, dict) and isinstance(given.get("student"), dict):
            return {**given, "student": {"kind": "cnn", **given["student"]}}
        return given

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        self._emotions_agree()
        self._workers_have_clips()
        self._input_can_be_augmented()
        if not self.counts_clips:
            self._losses_have_sources()
        if self.compare and self.data.labelled is None and "labels_only" in self.compare:
            raise ValueError("`compare: labels_only` needs `data.labelled`, which is not given")
        if len(self.train.learning_rates) > 1 and self.data.validation is None:
            raise ValueError(
                f"`train.learning_rates` has {len(self.train.learning_rates)} values to choose "
                "from, and no `data.validation` to choose by: give one of the two"
            )
        return self

    def _workers_have_clips(self) -> None:
        rows, (least, most) = self.train.batch_size, self.train.worker_bounds
        if least > most:
            raise ValueError(f"`train.workers` is [least, most], not [{least}, {most}]")
        if rows < most:
            raise ValueError(
                f"`train.batch_size` {rows} leaves some of the `train.workers` {most} without a "
                "clip: make it larger"
            )
        if self.deterministic and (least != most or rows % most):
            raise ValueError(
                f"`deterministic` needs a fixed number of `train.workers` that divides "
                f"`train.batch_size` {rows}, not {self.train.workers}: change one of them"
            )

    def _input_can_be_augmented(self) -> None:
        if self.targets.input != "log_mel":
            return
        for name in ("gain_db", "noise_db", "speed", "reverberation_s"):
            if value := getattr(self.augment, name):
                raise ValueError(
                    f"`augment.{name}` {value:g} changes the waveform, and `targets.input: "
                    "log_mel` keeps none: make it 0, or keep the `waveform`"
                )

    def _emotions_agree(self) -> None:
        if len(set(self.emotions)) != len(self.emotions):
            raise ValueError(f"`emotions` names one twice: {list(self.emotions)}")
        for which in ("speech", "face"):
            labels = getattr(getattr(self.teachers, which), "labels", None)
            for name, emotion in (labels or {}).items():
                if emotion not in self.emotions:
                    raise ValueError(
                        f"`teachers.{which}.labels` maps {name!r} to {emotion!r}, which is none of "
                        f"the job's `emotions` {list(self.emotions)}: map it to one of them or "
                        "leave it out"
                    )

    def _losses_have_sources(self) -> None:
        learns = {
            "loss.speech_kl": self.loss.speech_kl and self.teachers.speech,
            "loss.face_kl": self.loss.face_kl and self.teachers.face,
            "loss.label_ce": self.loss.label_ce and self.data.labelled,
            "loss.embedding": self.loss.embedding,
            "loss.relations": self.loss.relations,
        }
        if not any(learns.values()):
            raise ValueError(
                f"the student would learn nothing: give one of {', '.join(learns)} a weight above "
                "0, and the teacher or labelled shards that it needs"
            )

    def with_absolute_places(self) -> Self:
        """The same job, told so that every process finds what it names, wherever that runs."""
        return type(self).model_validate(
            with_absolute_places(self.model_dump(), _PLACES, _FILES_OR_NAMES)
        )

    @property
    def counts_clips(self) -> bool:
        """Whether the student is the one that counts clips."""
        return self.student.kind == "counting"

    @property
    def spec_hash(self) -> str:
        """Tells two jobs apart, wherever they write."""
        return fingerprint(self.model_dump(mode="json", exclude={"output"}))


# fmt: off
_PLACES = (
    "unlabelled", "labelled", "validation", "test", "start_from", "output", "store", "cluster",
    "costs",
)
# fmt: on
_FILES_OR_NAMES = ("model", "face_detector")  # a hub name, say, where no such file is
