"""The spec of a study: a distillation job, and the axes along which it is repeated."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from liser_dist.config.base import Count, FieldMark, Spec
from liser_dist.config.distill import DistillSpec
from liser_dist.config.evaluate import FOLDS, Folds
from liser_dist.config.teachers import BackboneTeacher

Method = Literal[
    "labels_only",  # no teacher
    "embeddings_first",  # the backbones' embeddings in the first half, the labels in the second
    "speech_teacher",
    "face_teacher",
    "both",
    "both_embeddings",  # both teachers and the backbones' embeddings
]
METHODS: tuple[Method, ...] = get_args(Method)


class AxesSpec(Spec):
    """The axes of a study: fractions of labels, methods, seeds and folds.

    A cell is one fraction of the labels, one seed and one fold; it trains a student with each
    method.
    """

    corpus: str = Field("synthetic", description="Name of the labelled corpus in the result table.")
    label_shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (0.01, 0.05, 0.1, 0.25, 0.5, 1.0),
        min_length=1,
        description="Fractions of the labelled clips whose labels may be used.",
    )
    methods: tuple[Method, ...] = Field(
        METHODS,
        min_length=1,
        description=(
            "How students learn. All methods learn from labels: `labels_only` from nothing else, "
            "`embeddings_first` from the backbones' embeddings in the first half and the labels "
            "in the second, `speech_teacher` and `face_teacher` also from that teacher, `both` "
            "from both, `both_embeddings` from both and the embeddings."
        ),
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0, 1, 2, 3, 4),
        min_length=1,
        description="Seeds of the draw of labels and of the students' first weights.",
    )
    folds: Folds | None = Field(
        None,
        description="Folds of the speakers of `data.labelled`, each the test set in turn: "
        "`ravdess` or `cremad` for the folds that are customary for that corpus, or a YAML file "
        "with the speakers of each fold. null: the test set is `data.test`.",
    )
    cell_cpus: Annotated[float, Field(gt=0), FieldMark.RESUMABLE] = Field(
        1.0, description="CPUs for each cell of the study: one label share, seed and fold."
    )
    resamples: Annotated[Count, FieldMark.RESUMABLE] = Field(
        2000,
        description="Number of resamples of test speakers and seeds for the confidence intervals.",
    )

    @property
    def cells(self) -> int:
        """Number of cells."""
        folds = FOLDS[self.folds] if isinstance(self.folds, str) else len(self.folds or (1,))
        return len(self.label_shares) * len(self.seeds) * folds

    @model_validator(mode="after")
    def _no_value_twice(self) -> Self:
        axes = {"label_shares": self.label_shares, "methods": self.methods, "seeds": self.seeds}
        for name, values in axes.items():
            if len(set(values)) < len(values):
                raise ValueError(
                    f"`{name}` lists a value twice: {list(values)}; remove the duplicate"
                )
        return self


class StudySpec(DistillSpec):
    """A study: how far a student gets with few labels, with and without unlabelled clips.

    The teachers are backbones, which run once; their heads are fitted on each draw of labels.
    """

    study: AxesSpec = AxesSpec()

    @model_validator(mode="after")
    def _can_be_studied(self) -> Self:
        for name, teacher in (("speech", self.teachers.speech), ("face", self.teachers.face)):
            if not isinstance(teacher, BackboneTeacher):
                raise ValueError(
                    f"`teachers.{name}` must be of `kind: backbone`, because a study fits a new "
                    "head on each draw of labels"
                )
        if self.targets.store is None:
            raise ValueError(
                "`targets.store` is off, but a study stores the backbones' embeddings there: set "
                "it to a folder"
            )
        if not self.loss.embedding:
            raise ValueError(
                "`loss.embedding` must be above 0, because the methods `both_embeddings` and "
                "`embeddings_first` use it"
            )
        if self.data.labelled is None or (self.data.test is None) == (self.study.folds is None):
            raise ValueError(
                "a study needs `data.labelled`, and either `data.test` or `study.folds` but not "
                "both: set `data.labelled` and exactly one of the other two"
            )
        if len(self.train.learning_rates) > 1:
            raise ValueError(
                f"`train.learning_rates` has {len(self.train.learning_rates)} values: give "
                "exactly one, because a study does not use labelled clips to choose between "
                "learning rates"
            )
        if not (self.loss.label_ce and self.train.labelled_batch_size):
            raise ValueError(
                "`loss.label_ce` and `train.labelled_batch_size` must be above 0, because every "
                "method also learns from labels"
            )
        if self.start_from or self.compare or self.counts_clips:
            raise ValueError(
                "a study does not support `start_from`, `compare` or `student.kind: counting`: "
                "remove them; `study.methods` defines the students of a study"
            )
        return self
