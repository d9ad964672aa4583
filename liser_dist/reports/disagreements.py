"""Shows the clips on which the teachers of a run disagree most, with video and sound."""

from __future__ import annotations

import base64
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from liser_dist.config.teachers import StudentTeacher
from liser_dist.data.clip_decoder import ClipDecoder
from liser_dist.data.media import Encoding, encode_film
from liser_dist.data.shards import ShardVisit, read_samples
from liser_dist.errors import LiserError, MissingError, ShardError
from liser_dist.records import Clip, Sample
from liser_dist.reports.run_data import RunData
from liser_dist.runs.disagreement import Disagreement
from liser_dist.teachers.model_teacher import to_probabilities
from liser_dist.teachers.student import StudentModel

logger = logging.getLogger(__name__)

VIDEO_PX, STRIP_PX = 160, 64
AUDIO_HZ, AUDIO_BITS_S, MAX_VIDEO_S = 16000, 32_000, 10.0
_STRIP_FACES = 8
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 80]


@dataclass(frozen=True, slots=True, kw_only=True)
class DisagreementView:
    """A clip on which the teachers disagree, as a page shows it.

    Attributes:
        clip: Which clip, and what each teacher predicted.
        video: The face crops with the sound, as base64 of an mp4; "" if the clip is unavailable.
        poster: The middle face crop, as base64 of a JPEG.
        strip: Face crops side by side, as base64 of a JPEG.
        student: The student's probabilities [emotions]; empty if there is no prediction.
    """

    clip: Disagreement
    video: str = ""
    poster: str = ""
    strip: str = ""
    student: Sequence[float] = ()


def show_disagreements(run: RunData, count: int) -> list[DisagreementView]:
    """Return views of the `count` largest disagreements.

    The clips are read from their shards again. A clip that is gone, or was replaced since the run
    began, is shown without video.
    """
    disagreements = run.disagreement.largest[:count]
    clips = {}
    try:
        for clip in _decode_clips(run, disagreements):
            clips[clip.shard, clip.index] = clip
    except LiserError as error:
        logger.warning(
            "decoding the clips on which the teachers disagree failed: %s; the report shows the "
            "remaining ones without video",
            error,
        )
    student = _load_student_model(run) if clips else None
    rate_hz = run.spec.clip.sample_rate_hz
    return [
        _view(disagreement, clips.get((disagreement.shard, disagreement.index)), student, rate_hz)
        for disagreement in disagreements
    ]


def _decode_clips(run: RunData, disagreements: Sequence[Disagreement]) -> Iterator[Clip]:
    """Decode the clips, shard by shard; each shard is read up to the last clip needed."""
    wanted: dict[str, dict[int, Disagreement]] = {}
    for disagreement in disagreements:
        wanted.setdefault(disagreement.shard, {})[disagreement.index] = disagreement
    if not wanted:
        return
    with ClipDecoder(run.spec.clip) as decoder:
        for shard, by_index in wanted.items():
            for sample, disagreement in _read_wanted(run, shard, by_index):
                clip = decoder.decode(sample, disagreement.start_share)
                if not clip.rejected:
                    yield clip


def _read_wanted(
    run: RunData, shard: str, wanted: Mapping[int, Disagreement]
) -> Iterator[tuple[Sample, Disagreement]]:
    """Yield the wanted samples of a shard, if it is unchanged since the run began."""
    try:
        for sample in read_samples(ShardVisit(0, shard, run.versions.get(shard, "")), False):
            disagreement = wanted.get(sample.index)
            if disagreement is not None and disagreement.key == sample.key:
                yield sample, disagreement
            if sample.index >= max(wanted):
                return
    except (MissingError, ShardError) as error:  # other shards may still be readable
        logger.warning(
            "a shard is unavailable: %s; the report shows its clips without video", error
        )


def _load_student_model(run: RunData) -> StudentModel | None:
    """Return the best student; None if it predicts nothing, such as one that counts clips."""
    if run.checkpoint is None:
        return None
    try:
        spec = StudentTeacher(model=run.checkpoint)
        return StudentModel(spec, run.spec.clip.sample_rate_hz)
    except LiserError as error:
        logger.warning(
            "the student cannot be loaded: %s; the report omits the student's predictions for "
            "clips on which the teachers disagree",
            error,
        )
        return None


def _view(
    disagreement: Disagreement, clip: Clip | None, student: StudentModel | None, rate_hz: int
) -> DisagreementView:
    if clip is None:
        return DisagreementView(clip=disagreement)
    predictions = student.predict([clip]) if student is not None else []
    return DisagreementView(
        clip=disagreement,
        video=_base64(encode_video(clip, rate_hz)),
        poster=_base64(encode_strip(clip, [len(clip.faces) // 2], VIDEO_PX)),
        strip=_base64(encode_strip(clip, _spread_over(len(clip.faces)), STRIP_PX)),
        student=[
            share
            for logits, _ in predictions
            for share in to_probabilities(logits, 1.0)[0].tolist()
        ],
    )


def encode_video(clip: Clip, rate_hz: int) -> bytes:
    """Return an mp4 of a clip's face crops with its sound.

    Each crop is shown for its share of the window. Only the first MAX_VIDEO_S are encoded, to keep
    the page small.
    """
    from scipy.signal import resample_poly  # slow to import

    audio = clip.waveform[: round(MAX_VIDEO_S * rate_hz)]
    if rate_hz != AUDIO_HZ:  # AAC supports few sample rates
        resampled = resample_poly(audio.astype(np.float32), AUDIO_HZ, rate_hz)
        audio = resampled.clip(-32768, 32767).astype(np.int16)
    face_s = len(clip.waveform) / rate_hz / len(clip.faces)
    faces = clip.faces[: math.ceil(MAX_VIDEO_S / face_s)]
    encoding = Encoding(
        frames_per_s=10, width=VIDEO_PX, height=VIDEO_PX, sample_rate_hz=AUDIO_HZ,
        sound_bits_s=AUDIO_BITS_S, options={"crf": "26"},
    )  # fmt: skip
    frames = (cv2.resize(face, (VIDEO_PX, VIDEO_PX)) for face in faces)
    return encode_film(frames, audio, encoding, [face_s * n for n in range(len(faces))])


def _spread_over(faces: int) -> list[int]:
    """Return the indices of at most _STRIP_FACES crops, evenly spaced."""
    return np.linspace(0, faces - 1, min(_STRIP_FACES, faces)).round().astype(int).tolist()


def encode_strip(clip: Clip, indices: Sequence[int], px: int) -> bytes:
    """Return a JPEG of the face crops with these indices, side by side, each `px` wide."""
    strip: NDArray[np.uint8] = np.hstack(
        [cv2.resize(clip.faces[index], (px, px)) for index in indices]
    )
    encoded, content = cv2.imencode(".jpg", cv2.cvtColor(strip, cv2.COLOR_RGB2BGR), _JPEG)
    assert encoded
    return bytes(content)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
