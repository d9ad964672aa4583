"""What is exported: the student of a checkpoint; by which clips it is compared and scored."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from liser_dist.fields import Count, Place, Spec


class ExportDataSpec(Spec):
    """Not given, those of the run that the checkpoint is of."""

    clips: Place | None = Field(
        None, description="shards to calibrate and compare by; the run's unlabelled ones"
    )
    labelled: Place | None = Field(None, description="shards to score on; the run's test set")


class ExportSpec(Spec):
    checkpoint: Place = Field(description="a run's folder, or one of its checkpoints")
    student: Annotated[str, Field(min_length=1)] = Field(
        "distilled", description="or one of the run's `compare`"
    )
    data: ExportDataSpec = ExportDataSpec()
    clips: Count = Field(200, description="to calibrate by, and to compare ONNX with torch")
    resamples: Count = Field(2000, description="of the speakers, for the scores' intervals")
    score: bool = Field(True, description="score both models on the labelled clips")
    teachers: bool = Field(True, description="measure how large and fast the teachers are, too")
    output: Place = Field("exported", description="a folder that is not there yet")
