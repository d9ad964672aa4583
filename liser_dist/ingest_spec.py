"""What an ingest job is: raw video to be found, cut, normalised and written as shards."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from liser_dist.fields import (
    Bounds,
    Count,
    Off,
    Place,
    PlaceOrOff,
    Pool,
    Share,
    Spec,
    absolute_place,
    with_absolute_places,
)


class CutSpec(Spec):
    """Where a film is cut: speech, between changes of the shot."""

    min_s: Annotated[float, Field(gt=0)] = 2.0
    max_s: Annotated[float, Field(gt=0, le=60)] = 10.0
    pause_s: Annotated[float, Field(ge=0)] = Field(0.5, description="a longer one ends a clip")
    margin_s: Annotated[float, Field(ge=0)] = Field(0.1, description="kept around the speech")
    shot_change: Annotated[float, Field(gt=1)] = Field(
        3.0, description="so many times the change around it (PySceneDetect's adaptive detector)"
    )

    @model_validator(mode="after")
    def _ordered(self) -> CutSpec:
        if self.min_s > self.max_s:
            raise ValueError(f"`min_s` {self.min_s:g} is more than `max_s` {self.max_s:g}")
        return self


class FaceSpec(Spec):
    """Which clips are kept for what is seen in them."""

    detector: str = Field("haar", description="'haar', or the path of a YuNet .onnx file")
    share: Share = Field(0.7, description="of the frames in which the one face is there, at least")
    least_px: Count = Field(48, description="its side at a height of 480, at least")
    alone: bool = Field(True, description="no other face of like size most of the time")
    speaking: Annotated[Share | None, Off] = Field(
        None, description="correlation of the mouth's movement with the loudness, at least"
    )


class NormaliseSpec(Spec):
    """What a clip becomes."""

    px: Annotated[int, Field(ge=32, le=512, multiple_of=2)] = 224
    frames_per_s: Annotated[float, Field(gt=0, le=60)] = 8.0
    crf: Annotated[int, Field(ge=0, le=51)] = Field(23, description="x264's quality")


class LimitsSpec(Spec):
    """What one source may take."""

    seconds: Annotated[float, Field(gt=0)] = 4 * 3600.0
    memory_bytes: Annotated[int, Field(ge=512 * 2**20)] = 3 * 2**30


class IngestResources(Spec):
    """How many films are worked on at once (least, most), and what each takes."""

    workers: Bounds = (1, 8)
    worker_cpus: Annotated[float, Field(gt=0)] = 1.0
    pool: Pool = Field(
        "decoders", description="the nodes' label `pool`, on a cluster of which some have one"
    )
    cluster: PlaceOrOff = Field(
        None, description="a file for `ray up`: how far the cluster can grow; else what is there"
    )


class IngestSpec(Spec):
    """One ingest job. A wrong field is told with its name, value and remedy."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")] = "ingest"
    kind: Literal["video", "ravdess", "cremad"] = "video"
    source: Place
    output: Place
    cut: CutSpec = CutSpec()
    face: FaceSpec = FaceSpec()
    normalise: Annotated[NormaliseSpec | None, Off] = Field(
        NormaliseSpec(), description="off: the whole picture, all its frames, at its own size"
    )
    deduplicate: Annotated[Literal["exact", "perceptual"] | None, Off] = "exact"
    shard_bytes: Annotated[int, Field(ge=2**20, le=2**30)] = 256 * 2**20
    limits: LimitsSpec = LimitsSpec()
    resources: IngestResources = IngestResources()
    poll_s: Annotated[float, Field(gt=0)] = Field(60.0, description="of --watch")

    def with_absolute_places(self) -> IngestSpec:
        """Ray's workers have another working directory."""
        places, files = ("source", "output", "cluster"), ("detector",)
        return type(self).model_validate(with_absolute_places(self.model_dump(), places, files))

    @model_validator(mode="after")
    def _apart(self) -> IngestSpec:
        source, output = (absolute_place(place) + "/" for place in (self.source, self.output))
        if output.startswith(source):
            raise ValueError(
                f"`output` {self.output} lies in `source` {self.source}, so that clips would be "
                "taken for new video: give a place outside of it"
            )
        return self
