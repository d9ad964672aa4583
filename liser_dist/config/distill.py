"""The spec of a distillation job: its fields, their defaults, and the rules that hold between them.

A spec is one YAML file; the command line can override any field by its dotted name
(`--train.epochs 3`). A spec is validated when it is read, before anything heavy is imported.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from liser_dist.config.base import (
    EMOTIONS,
    Count,
    CountOrBounds,
    FieldMark,
    NameOrOff,
    Place,
    PlaceOrOff,
    ServerOrOff,
    Share,
    Spec,
    Weight,
    fingerprint,
)
from liser_dist.config.resources import ResourcesSpec
from liser_dist.config.stream import ClipSpec, StreamSpec, StudentInput
from liser_dist.config.student import AugmentSpec, CnnStudent, LossSpec, StudentSpec
from liser_dist.config.synthetic import SyntheticSpec, fill_in_synthetic
from liser_dist.config.teachers import Comparison, TeachersSpec, check_emotions, check_label_map

# ---------------------------------------------------------------- data


class DataSpec(Spec):
    """The shard sets: folders or s3:// prefixes that hold WebDataset shards (*.tar)."""

    unlabelled: Place = Field(description="Shards of the clips from which the student learns.")
    labelled: Place | None = Field(
        None, description="Shards of labelled clips that are mixed into each step. null: none."
    )
    validation: Place | None = Field(
        None,
        description="Labelled shards by which the best weights and the learning rate are chosen. "
        "Their speakers must be in no other set. null: no validation.",
    )
    test: Place | None = Field(
        None,
        description="Labelled shards on which the finished student is scored, once. Their speakers "
        "must be in no other set. null: no scores.",
    )


class TargetsSpec(Spec):
    """The target store: a cache of the targets that teachers computed, shared by runs.

    Targets are filed under the clip settings, teacher weights and label maps that they depend on,
    so that jobs that differ in these may share a store.
    """

    store: Annotated[PlaceOrOff, FieldMark.RESUMABLE] = Field(
        None,
        description="Folder or s3:// prefix of the store, which several runs may share. off: there "
        "is no store, and the teachers compute the targets again in every epoch.",
    )
    windows: Count = Field(
        1,
        description=(
            "Number of windows for which targets are stored, for a clip that is longer than "
            "`clip.window_s`. The epochs use the windows in turn. Has no effect without a store."
        ),
    )
    input: Literal["waveform", "log_mel"] = Field(
        "waveform",
        description="Audio that is stored with the targets, as the student's input: the waveform "
        "(32 KB per second) or its log-mel spectrogram (8 KB per second with 40 mels).",
    )


# ---------------------------------------------------------------- training


class TrainSpec(Spec):
    """How the student is trained, validated and saved."""

    workers: Annotated[CountOrBounds, FieldMark.RESUMABLE] = Field(
        1,
        description="Number of train workers; or [minimum, maximum] for an elastic job, whose "
        "number of workers follows the free CPUs and GPUs as nodes come and go.",
    )
    epochs: Count = Field(
        3, description="Number of epochs: how often each unlabelled clip is used."
    )
    batch_size: Count = Field(
        256, description="Number of unlabelled clips per step, over all workers."
    )
    labelled_batch_size: Annotated[int, Field(ge=0)] = Field(
        32,
        description=(
            "Number of labelled clips in each step, over all workers, on top of "
            "`train.batch_size`. The steps go through `data.labelled` in turn. 0: the student is "
            "not trained on labelled clips."
        ),
    )
    labelled_epochs: Count = Field(
        1000,
        description=(
            "Largest number of times that each labelled clip is used. Later steps use no labelled "
            "clips, because in a long run the student would memorise a small labelled set."
        ),
    )
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1e-3,),
        min_length=1,
        description="Peak learning rates. A student is trained with each, on the same batches, and "
        "the best on `data.validation` is kept.",
    )
    weight_decay: Weight = Field(0.01, description="Weight decay of AdamW.")
    warmup: Share = Field(
        0.05,
        description="Fraction of the run in which the learning rate rises linearly; after that it "
        "falls along a half cosine.",
    )
    gradient_norm: Annotated[float, Field(gt=0)] = Field(
        1.0, description="Gradients with a larger norm are scaled down to this norm."
    )
    average: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Decay per step of an exponential moving average of the weights, which is what "
        "is scored and saved as the student. null: no average.",
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="`bf16` uses autocast to bfloat16 in the forward pass."
    )
    validate_every: Count = Field(200, description="Number of steps between two validations.")
    checkpoint_every: Annotated[Count, FieldMark.RESUMABLE] = Field(
        1000, description="Number of steps between two checkpoints."
    )
    checkpoint_every_s: Annotated[float, Field(gt=0), FieldMark.RESUMABLE] = Field(
        60.0,
        description="Longest time between two checkpoints, in seconds: the work that a lost "
        "machine may cost. In an elastic job it may not exceed `train.resize_every_s`.",
    )
    keep: Annotated[Count, FieldMark.RESUMABLE] = Field(
        2,
        description="Number of newest checkpoints that are kept. Each also holds the best weights.",
    )
    max_failures: Annotated[int, Field(ge=0), FieldMark.RESUMABLE] = Field(
        8,
        description="Number of times in a row that workers or nodes may be lost before a "
        "checkpoint with new clips is saved; after one more loss the job fails. Nodes whose "
        "removal the cloud provider announced do not count.",
    )
    resize_every_s: Annotated[float, Field(gt=0), FieldMark.RESUMABLE] = Field(
        60.0,
        description="Time between two checks whether an elastic job should change its number of "
        "workers, in seconds. The workers save a checkpoint before they are replaced.",
    )

    @property
    def worker_bounds(self) -> tuple[int, int]:
        """Minimum and maximum number of workers."""
        return (self.workers, self.workers) if isinstance(self.workers, int) else self.workers


class BudgetSpec(Spec):
    """How many rejected clips and skipped steps a job accepts.

    With more it fails, because the data as a whole, or the training, is probably broken.
    """

    max_rejected_share: Share = Field(
        0.5, description="The job fails if a larger fraction of the clips is rejected."
    )
    after_clips: Count = Field(
        200,
        description="Number of clips after which `budget.max_rejected_share` is first checked. It "
        "is always checked at the end.",
    )
    max_rejected_in_a_row: Count = Field(
        100,
        description="The job fails if this many clips in a row are rejected, in the order of the "
        "steps, and they come from at least three shards.",
    )
    max_skipped_in_a_row: Count = Field(
        10,
        description="The job fails if this many steps in a row are skipped because their gradient "
        "is NaN or infinite.",
    )


class TrackSpec(Spec):
    """Experiment trackers that get a run's metrics.

    Keys and tokens come from the environment variables that these libraries read.
    """

    mlflow: ServerOrOff = Field(
        None,
        description="Address of an MLflow server (http, https, file or databricks). off: MLflow is "
        "not used.",
    )
    wandb: NameOrOff = Field(
        None, description="Name of a Weights & Biases project. off: W&B is not used."
    )


# ---------------------------------------------------------------- the job


class DistillSpec(Spec):
    """A distillation job: it trains a student from unlabelled video."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = Field(
        description="Name of the job. Its runs are `output`/`name`/001, 002 and so on. An "
        "unfinished run of this name, under `output`, is resumed."
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        0, description="Seed of all that is random: order of clips, windows, weights, augmentation."
    )
    deterministic: bool = Field(
        False,
        description="The same spec, seed and number of train workers give the same weights on CPU, "
        "bit for bit. Slower.",
    )
    emotions: tuple[str, ...] = Field(
        EMOTIONS, min_length=2, description="The emotions that the student tells apart, in order."
    )
    synthetic: SyntheticSpec | None = Field(
        None,
        description="If given, the job uses a synthetic corpus: its shards and teachers fill in "
        "`data` and `teachers` where these are not given.",
    )
    data: DataSpec
    clip: ClipSpec = ClipSpec()
    teachers: TeachersSpec
    student: StudentSpec = Field(CnnStudent(), description="The model that is trained.")
    start_from: Place | None = Field(
        None,
        description="Checkpoint of the same student, from whose weights training starts. null: "
        "random weights.",
    )
    loss: LossSpec = LossSpec()
    augment: AugmentSpec = AugmentSpec()
    train: TrainSpec = TrainSpec()
    targets: TargetsSpec = TargetsSpec()
    compare: tuple[Comparison, ...] = Field(
        (),
        description="More students, trained on the same batches in other ways, to compare with: "
        "`labels_only` without teachers, `speech_only` and `face_only` with one teacher, "
        "`swapped_faces` with the face teacher's targets of other clips, `shuffled_targets` with "
        "both teachers' targets of other clips.",
    )
    resources: Annotated[ResourcesSpec, FieldMark.RESUMABLE] = ResourcesSpec()
    budget: Annotated[BudgetSpec, FieldMark.RESUMABLE] = BudgetSpec()
    track: Annotated[TrackSpec, FieldMark.RESUMABLE] = TrackSpec()
    output: Annotated[Place, FieldMark.RESUMABLE] = Field(
        "runs",
        description="Folder or s3:// prefix in which the folders of runs are made. An unfinished "
        "run is looked up here: change it before a resume only if the folders were moved.",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in_synthetic(cls, given: Any) -> Any:
        """Fill in the shards and teachers of the synthetic corpus where none are given."""
        return fill_in_synthetic(given)

    @model_validator(mode="before")
    @classmethod
    def _fill_in_kind(cls, given: Any) -> Any:
        """Fill in the default student's kind, so that its fields can be given without it."""
        if isinstance(given, dict) and isinstance(given.get("student"), dict):
            return {**given, "student": {"kind": "cnn", **given["student"]}}
        return given

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        self._emotions_agree()
        self._workers_have_clips()
        self._saves_between_resizes()
        self._input_can_be_augmented()
        if self.student.answers:
            self._losses_have_sources()
        if self.compare and self.data.labelled is None and "labels_only" in self.compare:
            raise ValueError(
                "`compare: labels_only` needs `data.labelled`: set `data.labelled`, or remove "
                "`labels_only`"
            )
        if len(self.train.learning_rates) > 1 and self.data.validation is None:
            raise ValueError(
                f"`train.learning_rates` has {len(self.train.learning_rates)} values, but "
                "choosing the best needs `data.validation`: set `data.validation`, or give a "
                "single learning rate"
            )
        return self

    def _workers_have_clips(self) -> None:
        rows, (least, most) = self.train.batch_size, self.train.worker_bounds
        self.resources.check_worker_gpus(most, "train.workers")
        if least > most:
            raise ValueError(
                f"`train.workers` [{least}, {most}] has a minimum above its maximum: give "
                "[minimum, maximum]"
            )
        if rows < most:
            raise ValueError(
                f"`train.batch_size` {rows} is smaller than the number of `train.workers`, {most}: "
                "raise it, or lower `train.workers`, so that each worker gets at least one clip"
            )
        if self.deterministic and (least != most or rows % most):
            raise ValueError(
                "`deterministic` needs a fixed number of `train.workers` that divides "
                f"`train.batch_size` {rows}, but `train.workers` is {self.train.workers}: change "
                "one of the two"
            )

    def _saves_between_resizes(self) -> None:
        train = self.train
        least, most = train.worker_bounds
        if least < most and train.checkpoint_every_s > train.resize_every_s:
            raise ValueError(
                f"`train.checkpoint_every_s` {train.checkpoint_every_s:g} exceeds "
                f"`train.resize_every_s` {train.resize_every_s:g}, but an elastic job saves a "
                "checkpoint before each resize: lower `train.checkpoint_every_s`, or raise "
                "`train.resize_every_s`"
            )

    def _input_can_be_augmented(self) -> None:
        if self.targets.input != "log_mel":
            return
        for name, value in self.augment.of_waveform.items():
            if value:
                raise ValueError(
                    f"`augment.{name}` {value:g} changes the waveform, and `targets.input: "
                    f"log_mel` stores no waveform: set `augment.{name}` to 0, or use "
                    "`targets.input: waveform`"
                )

    def _emotions_agree(self) -> None:
        check_emotions(self.emotions)
        for name, teacher in self.teachers.by_name.items():
            check_label_map(teacher, self.emotions, f"teachers.{name}")

    def _losses_have_sources(self) -> None:
        labels = ["labels"] if self.data.labelled else []
        if not self.loss.learns_from([*self.teachers.by_name, "embeddings", *labels]):
            weights = ", ".join(f"loss.{name}" for name in self.loss.term_sources())
            raise ValueError(
                f"the student would learn nothing: set one of {weights} above 0, and set the "
                "teacher or the labelled shards that this term of the loss needs"
            )

    @property
    def counts_clips(self) -> bool:
        """Whether the student counts clips instead of predicting emotions."""
        return not self.student.answers

    @property
    def stream(self) -> StreamSpec:
        """What the pipeline needs to know of the job, for all of its clips."""
        return StreamSpec(
            clip=self.clip,
            emotions=self.emotions,
            resources=self.resources,
            teachers=self.teachers.by_name,
            teacher_batch_size=self.teachers.batch_size,
            embeddings=self.loss.uses_embeddings,
            student_input=StudentInput(
                audio=self.targets.input, mels=self.student.mels, face_px=self.student.seen_px
            ),
            store=self.targets.store,
            stored_windows=self.targets.windows,
            epochs=self.train.epochs,
            seed=self.seed,
            deterministic=self.deterministic,
        )

    @property
    def spec_hash(self) -> str:
        """Fingerprint of all fields except `output`: the same job has the same, anywhere."""
        return fingerprint(self.model_dump(mode="json", exclude={"output"}))
