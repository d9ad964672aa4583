"""What a study is: a distillation job, and the axes along which it is repeated."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from liser_dist.fields import Count, Folds, Spec
from liser_dist.labelled_corpora import FOLDS
from liser_dist.spec import DistillSpec

Method = Literal[
    "labels_only",  # no teacher
    "embeddings_first",  # what the backbones say in the first half, then the labels
    "speech_teacher",
    "face_teacher",
    "both",
    "both_embeddings",  # and what the backbones say
]
METHODS: tuple[Method, ...] = (
    "labels_only", "embeddings_first", "speech_teacher", "face_teacher", "both", "both_embeddings",
)  # fmt: skip


class AxesSpec(Spec):
    corpus: str = Field("synthetic", description="the labelled corpus's name, in the table")
    label_shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (0.01, 0.05, 0.1, 0.25, 0.5, 1.0), min_length=1
    )
    methods: tuple[Method, ...] = Field(METHODS, min_length=1)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0, 1, 2, 3, 4), min_length=1, description="of draws of labels, and of students' starts"
    )
    folds: Folds | None = Field(
        None,
        description="of `data.labelled`, each the test set in turn; not given, it is `data.test`",
    )
    cell_cpus: Annotated[float, Field(gt=0)] = Field(
        1.0, description="of a cell: a draw of labels, a student for each method"
    )
    resamples: Count = Field(2000, description="of test speakers and seeds, for the intervals")

    @property
    def cells(self) -> int:
        folds = FOLDS[self.folds] if isinstance(self.folds, str) else len(self.folds or (1,))
        return len(self.label_shares) * len(self.seeds) * folds

    @model_validator(mode="after")
    def _nothing_twice(self) -> Self:
        for name in ("label_shares", "methods", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"`{name}` names one twice: {list(values)}")
        return self


class StudySpec(DistillSpec):
    """How far a student gets with few labels, with and without unlabelled clips.

    The teachers are backbones, which run once; their heads are fitted on each draw of labels.
    """

    study: AxesSpec = AxesSpec()

    @model_validator(mode="after")
    def _can_be_studied(self) -> Self:
        for name in ("speech", "face"):
            teacher = getattr(self.teachers, name)
            if teacher is None or teacher.kind != "backbone":
                raise ValueError(
                    f"`teachers.{name}` must be of `kind: backbone`: its head is fitted anew on "
                    "each draw of labels"
                )
        if self.targets.store is None:
            raise ValueError(
                "`targets.store` is off, and a study keeps there what the backbones say: give a "
                "place for it"
            )
        if not self.loss.embedding:
            raise ValueError(
                "`loss.embedding` is 0, and a study needs the backbones' embeddings: give it the "
                "weight that `both_embeddings` shall have"
            )
        if self.data.labelled is None or (self.data.test is None) == (self.study.folds is None):
            raise ValueError(
                "a study needs `data.labelled`, and either `data.test` or `study.folds` of it"
            )
        if len(self.train.learning_rates) > 1:
            raise ValueError(
                f"`train.learning_rates` has {len(self.train.learning_rates)} values, and a study "
                "takes one: no label is spent on choosing"
            )
        if not (self.loss.label_ce and self.train.labelled_batch_size):
            raise ValueError(
                "`loss.label_ce` and `train.labelled_batch_size` must be above 0: each method "
                "learns from labels too"
            )
        if self.start_from or self.compare or self.counts_clips:
            raise ValueError(
                "a study takes no `start_from`, no `compare` and no student that counts: its "
                "students start anew, and `study.methods` says how they learn"
            )
        return self
