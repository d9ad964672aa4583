"""The spec of an export: which student, and the clips that its ONNX models are tested on."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from liser_dist.config.base import Count, Place, Spec


class ExportDataSpec(Spec):
    """The shard sets that an export uses. By default those of the checkpoint's run."""

    clips: Place | None = Field(
        None,
        description=(
            "Shards on which the 8-bit model is calibrated and ONNX is compared with PyTorch. "
            "null: the run's unlabelled shards."
        ),
    )
    labelled: Place | None = Field(
        None,
        description="Labelled shards on which the float32 and the int8 model are scored. null: the "
        "run's test shards.",
    )


class ExportSpec(Spec):
    """An export: the student of a checkpoint as a folder with ONNX models and a model card."""

    checkpoint: Place = Field(description="Folder of a run, or of one of its checkpoints.")
    student: Annotated[str, Field(min_length=1)] = Field(
        "distilled", description="Which student: `distilled`, or one of the run's `compare`."
    )
    data: ExportDataSpec = ExportDataSpec()
    clips: Count = Field(
        200,
        description=(
            "Number of clips on which the 8-bit model is calibrated and ONNX is compared with "
            "PyTorch."
        ),
    )
    resamples: Count = Field(
        2000,
        description="Number of resamples of the speakers for the scores' confidence intervals.",
    )
    score: bool = Field(
        True, description="Score the 32-bit and the 8-bit model on the labelled clips."
    )
    teachers: bool = Field(True, description="Also measure the size and the speed of the teachers.")
    output: Place = Field(
        "exported",
        description="Folder or s3:// prefix to write to. It must not exist yet, or be empty.",
    )
