"""The spec of an ingest job: where raw video is, and how it is cut, filtered and encoded."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from liser_dist.config.base import (
    Bounds,
    Count,
    FaceDetector,
    Off,
    Place,
    PlaceOrOff,
    Share,
    Spec,
    absolute_place,
)
from liser_dist.config.resources import Pool


class CutSpec(Spec):
    """Where a video is cut into clips: a clip is a stretch of speech without a change of shot."""

    min_s: Annotated[float, Field(gt=0)] = Field(
        2.0, description="Minimum length of a clip, in seconds; less is rejected (`too_short`)."
    )
    max_s: Annotated[float, Field(gt=0, le=60)] = Field(
        10.0,
        description="Maximum length of a clip, in seconds. Longer speech is divided evenly.",
    )
    pause_s: Annotated[float, Field(ge=0)] = Field(
        0.5,
        description="Longest pause between words of one clip, in seconds. A longer pause ends it.",
    )
    margin_s: Annotated[float, Field(ge=0)] = Field(
        0.1, description="Time that is kept before and after the speech, in seconds."
    )
    shot_change: Annotated[float, Field(gt=1)] = Field(
        3.0,
        description="A frame starts a new shot if it differs from the one before by this many "
        "times the average around it (PySceneDetect's adaptive detector).",
    )

    @model_validator(mode="after")
    def _ordered(self) -> CutSpec:
        if self.min_s > self.max_s:
            raise ValueError(
                f"`min_s` {self.min_s:g} is above `max_s` {self.max_s:g}: lower `min_s` or raise "
                "`max_s`"
            )
        return self


class FaceSpec(Spec):
    """What the faces in a clip must be like. Other clips are rejected."""

    detector: FaceDetector = Field(
        "haar",
        description="Face detector: `haar` (OpenCV), or the path of a YuNet .onnx file.",
    )
    share: Share = Field(
        0.7,
        description="A clip whose face is visible in a smaller fraction of the frames is rejected "
        "(`no_face`).",
    )
    least_px: Count = Field(
        48,
        description="Minimum width of the face, in pixels of a picture that is 480 pixels high. A "
        "clip with a smaller face is rejected (`small_face`).",
    )
    alone: bool = Field(
        True,
        description="Reject a clip in which another face of similar size is visible most of the "
        "time (`other_faces`).",
    )
    speaking: Annotated[Share | None, Off] = Field(
        None,
        description="Experimental, off by default; tried on one speaker only. A clip in which the "
        "mouth's movement and the loudness have a lower correlation is rejected (`not_speaking`).",
    )


class NormaliseSpec(Spec):
    """How a clip is encoded: a square picture of the face, in H.264."""

    px: Annotated[int, Field(ge=32, le=512, multiple_of=2)] = Field(
        224, description="Width and height of the picture, in pixels."
    )
    frames_per_s: Annotated[float, Field(gt=0, le=60)] = Field(
        8.0, description="Frames per second."
    )
    crf: Annotated[int, Field(ge=0, le=51)] = Field(
        23, description="Constant rate factor of x264: 0 is lossless, 51 the worst quality."
    )


class LimitsSpec(Spec):
    """The time and the memory that one video may take before it is rejected."""

    seconds: Annotated[float, Field(gt=0)] = Field(
        4 * 3600.0,
        description="Longest time to process one video, in seconds. A video that takes longer is "
        "rejected (`timeout`).",
    )
    memory_bytes: Annotated[int, Field(ge=512 * 2**20)] = Field(
        3 * 2**30,
        description="Memory that processing one video may use, in bytes. A video that needs more "
        "is rejected (`too_large`).",
    )


class IngestResources(Spec):
    """How many videos are processed at the same time, what each takes, and on which nodes."""

    workers: Bounds = Field(
        (1, 8),
        description="Minimum and maximum number of workers. Each processes one video at a time.",
    )
    worker_cpus: Annotated[float, Field(gt=0)] = Field(
        1.0, description="CPUs that each worker reserves. May be a fraction."
    )
    pool: Pool = Field(
        "decoders",
        description="Ray label `pool` of the nodes that workers run on. On a cluster in which no "
        "node has such a label, they run on any node.",
    )
    cluster: PlaceOrOff = Field(
        None,
        description="Cluster file for `ray up`. If given, the job is checked against the largest "
        "size that the cluster can grow to; if off, against the nodes that are up.",
    )


class IngestSpec(Spec):
    """An ingest job: it cuts raw video into clips and writes them as shards."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")] = Field(
        "ingest", description="Name of the job."
    )
    kind: Literal["video", "ravdess", "cremad"] = Field(
        "video",
        description="`video`: any video files, cut into unlabelled clips. `ravdess`, `cremad`: the "
        "recordings of that corpus as downloaded, each a labelled clip.",
    )
    source: Place = Field(
        description="Folder or s3:// prefix of the video files. With `ravdess` and `cremad`, zip "
        "files in it are read too."
    )
    output: Place = Field(
        description="Folder or s3:// prefix of the shards. It must not be inside `source`. Videos "
        "that are already in it are not processed again, unless they have changed."
    )
    cut: CutSpec = CutSpec()
    face: FaceSpec = FaceSpec()
    normalise: Annotated[NormaliseSpec | None, Off] = Field(
        NormaliseSpec(),
        description="How clips are encoded. off: the complete picture, with all frames, at its own "
        "size.",
    )
    deduplicate: Annotated[Literal["exact", "perceptual"] | None, Off] = Field(
        "exact",
        description="Which clips are rejected as duplicates of others (`duplicate`): `exact` with "
        "the same content, `perceptual` also those that sound alike. off: none.",
    )
    shard_bytes: Annotated[int, Field(ge=2**20, le=2**30)] = Field(
        256 * 2**20, description="Size at which a shard is finished, in bytes."
    )
    limits: LimitsSpec = LimitsSpec()
    resources: IngestResources = IngestResources()
    poll_s: Annotated[float, Field(gt=0)] = Field(
        60.0, description="With `--watch`: time between two checks for new video, in seconds."
    )

    @model_validator(mode="after")
    def _output_is_outside(self) -> IngestSpec:
        source, output = (absolute_place(place) + "/" for place in (self.source, self.output))
        if output.startswith(source):
            raise ValueError(
                f"`output` {self.output} is inside `source` {self.source}, so its clips would be "
                "taken for new video: choose a folder outside `source`"
            )
        return self
