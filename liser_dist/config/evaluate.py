"""The spec of an evaluation: a student or a teacher, on labelled shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from liser_dist.config.base import EMOTIONS, Count, Place, Spec
from liser_dist.config.resources import ResourcesSpec
from liser_dist.config.stream import ClipSpec
from liser_dist.config.teachers import TeacherSpec, check_emotions, check_label_map
from liser_dist.errors import one_line

# ---------------------------------------------------------------- folds of speakers

FoldedCorpus = Literal["ravdess", "cremad"]  # corpora whose folds are built in
FOLDS: dict[FoldedCorpus, int] = {"ravdess": 6, "cremad": 5}  # number of folds of each


def _read_folds(given: Any) -> Any:
    """Return the content of a YAML file, so that the spec holds the folds and not a path."""
    if not isinstance(given, str) or given in get_args(FoldedCorpus):
        return given
    try:
        return yaml.safe_load(Path(given).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(
            f"{given!r} cannot be read ({one_line(error)}): give {' or '.join(FOLDS)}, or a YAML "
            "file with the speakers of each fold, such as `1: [anna, bert]`"
        ) from error


def _each_speaker_once(folds: Any) -> Any:
    if not isinstance(folds, str):
        fold_of: dict[str, int] = {}
        for fold, speakers in folds.items():
            for speaker in speakers:
                if fold_of.setdefault(speaker, fold) != fold:
                    raise ValueError(
                        f"speaker {speaker!r} is in the folds {fold_of[speaker]} and {fold}: list "
                        "the speaker in one fold only"
                    )
    return folds


Folds = Annotated[
    FoldedCorpus | dict[int, tuple[str, ...]],
    BeforeValidator(_read_folds),
    AfterValidator(_each_speaker_once),
]


# ---------------------------------------------------------------- the job


class LabelledSpec(Spec):
    """The shard set on which the model is scored."""

    labelled: Place = Field(
        description="Folder or s3:// prefix that holds labelled WebDataset shards (*.tar)."
    )


class EvaluateSpec(Spec):
    """One model on one labelled set."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = Field(
        "scores", description="Name of the job. Its runs are `output`/`name`/001, 002 and so on."
    )
    emotions: tuple[str, ...] = Field(
        EMOTIONS,
        min_length=2,
        description="The emotions to score, in order. Clips with another label are left out.",
    )
    data: LabelledSpec
    clip: ClipSpec | None = Field(
        None,
        description="How clips are decoded. null: as in the run that trained the student; the "
        "defaults for any other kind of model.",
    )
    model: TeacherSpec = Field(
        description="The model that is scored: `kind: student` with a checkpoint, or any other "
        "kind of teacher."
    )
    batch_size: Count = Field(32, description="Number of clips per forward pass of the model.")
    folds: Folds | None = Field(
        None,
        description="Also score each fold of speakers: `ravdess` or `cremad` for the folds that "
        "are customary for that corpus, or a YAML file with the speakers of each fold. null: no "
        "scores by fold.",
    )
    resamples: Count = Field(
        2000, description="Number of resamples of the speakers for the confidence intervals."
    )
    resources: ResourcesSpec = ResourcesSpec()
    output: Place = Field(
        "runs", description="Folder or s3:// prefix in which the folders of runs are made."
    )

    @model_validator(mode="after")
    def _emotions_agree(self) -> Self:
        check_emotions(self.emotions)
        check_label_map(self.model, self.emotions, "model")
        return self
