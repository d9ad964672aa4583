"""The clips on which the teachers of a run differ most, to be looked at and listened to."""

from __future__ import annotations

import base64
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from liser_dist.encoding import Encoding, encode_film
from liser_dist.errors import LiserError, MissingError, ShardError
from liser_dist.guard import ClipDecoder
from liser_dist.opinions import Dispute
from liser_dist.records import Clip, Sample
from liser_dist.run_facts import RunFacts
from liser_dist.shards import ShardVisit, read_samples
from liser_dist.teacher_spec import StudentTeacher
from liser_dist.teachers import StudentModel, softmax

logger = logging.getLogger(__name__)

FILM_PX, STRIP_PX = 160, 64
SOUND_HZ, SOUND_BITS_S, SHOWN_S = 16000, 32_000, 10.0
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 80]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A dispute as a page shows it.

    Attributes:
        film: mp4 as base64, the face crops with the sound; "" where the clip cannot be had.
        poster: its middle crop, JPEG as base64.
        strip: the crops side by side, likewise.
        student: [emotions] its probabilities; empty where it was not asked.
    """

    dispute: Dispute
    film: str = ""
    poster: str = ""
    strip: str = ""
    student: Sequence[float] = ()


def show_disputes(run: RunFacts, most: int) -> list[Shown]:
    """Those of the greatest differences. Their shards are read once more, where they can be."""
    disputes = run.opinions.disputes[:most]
    clips = {}
    try:
        for clip in _decode(run, disputes):
            clips[clip.shard, clip.index] = clip
    except LiserError as error:
        logger.warning("clips on which the teachers differ are not shown: %s", error)
    student = _student_of(run) if clips else None
    rate = run.spec.clip.sample_rate_hz
    return [_shown(one, clips.get((one.shard, one.index)), student, rate) for one in disputes]


def _decode(run: RunFacts, disputes: Sequence[Dispute]) -> Iterator[Clip]:
    """Shard by shard, no further than to the last that is wanted."""
    wanted: dict[str, dict[int, Dispute]] = {}
    for one in disputes:
        wanted.setdefault(one.shard, {})[one.index] = one
    if not wanted:
        return
    with ClipDecoder(run.spec.clip) as decoder:
        for shard, by_index in wanted.items():
            for sample, one in _samples(run, shard, by_index):
                clip = decoder.decode(sample, one.start_share)
                if not clip.rejected:
                    yield clip


def _samples(
    run: RunFacts, shard: str, wanted: Mapping[int, Dispute]
) -> Iterator[tuple[Sample, Dispute]]:
    """Of a shard that is as it was when the run began."""
    try:
        for sample in read_samples(ShardVisit(0, shard, run.versions.get(shard, "")), False):
            one = wanted.get(sample.index)
            if one is not None and one.key == sample.key:
                yield sample, one
            if sample.index >= max(wanted):
                return
    except (MissingError, ShardError) as error:  # the next may be there
        logger.warning("its clips are not shown: %s", error)


def _student_of(run: RunFacts) -> StudentModel | None:
    """None where it answers nothing: one that counts clips, say."""
    if run.checkpoint is None:
        return None
    try:
        spec = StudentTeacher(model=run.checkpoint)
        return StudentModel(spec, run.spec.clip.sample_rate_hz)
    except LiserError as error:
        logger.warning("the student is not asked: %s", error)
        return None


def _shown(
    dispute: Dispute, clip: Clip | None, student: StudentModel | None, rate_hz: int
) -> Shown:
    if clip is None:
        return Shown(dispute=dispute)
    answers = student.answer([clip]) if student is not None else []
    return Shown(
        dispute=dispute,
        film=_base64(film_of(clip, rate_hz)),
        poster=_base64(strip_of(clip, [len(clip.faces) // 2], FILM_PX)),
        strip=_base64(strip_of(clip, spread_over(len(clip.faces)), STRIP_PX)),
        student=[share for logits, _ in answers for share in softmax(logits, 1.0)[0].tolist()],
    )


def film_of(clip: Clip, rate_hz: int) -> bytes:
    """An mp4 of the face crops, each as long as it stands for, with the sound of the window.

    Of a long window its beginning, so that a page stays small.
    """
    from scipy.signal import resample_poly  # heavy

    sound = clip.waveform[: round(SHOWN_S * rate_hz)]
    if rate_hz != SOUND_HZ:  # AAC knows a few rates
        heard = resample_poly(sound.astype(np.float32), SOUND_HZ, rate_hz)
        sound = heard.clip(-32768, 32767).astype(np.int16)
    each_s = len(clip.waveform) / rate_hz / len(clip.faces)
    faces = clip.faces[: math.ceil(SHOWN_S / each_s)]
    encoding = Encoding(
        frames_per_s=10, width=FILM_PX, height=FILM_PX, sample_rate_hz=SOUND_HZ,
        sound_bits_s=SOUND_BITS_S, options={"crf": "26"},
    )  # fmt: skip
    frames = (cv2.resize(face, (FILM_PX, FILM_PX)) for face in faces)
    return encode_film(frames, sound, encoding, [each_s * n for n in range(len(faces))])


def spread_over(faces: int) -> list[int]:
    """Which of them, eight at most."""
    return np.linspace(0, faces - 1, min(8, faces)).round().astype(int).tolist()


def strip_of(clip: Clip, chosen: Sequence[int], px: int) -> bytes:
    """A JPEG of some of its crops, side by side."""
    strip: Pixels = np.hstack([cv2.resize(clip.faces[number], (px, px)) for number in chosen])
    done, content = cv2.imencode(".jpg", cv2.cvtColor(strip, cv2.COLOR_RGB2BGR), _JPEG)
    assert done
    return bytes(content)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
