"""The clips on which the teachers of a run differ most, to be looked at and listened to."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from liser_dist.encoding import Encoding, encode_film
from liser_dist.errors import LiserError, StorageError
from liser_dist.guard import ClipDecoder
from liser_dist.opinions import Dispute
from liser_dist.records import Clip, Sample
from liser_dist.run_facts import RunFacts
from liser_dist.shards import ShardVisit, read_samples
from liser_dist.teacher_spec import StudentTeacher
from liser_dist.teachers import StudentModel, softmax
from liser_dist.windows import Windows

logger = logging.getLogger(__name__)

FILM_PX, STRIP_PX = 160, 64
SOUND_BITS_S = 32_000
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
    """Those of the greatest differences. Their shards are read once more."""
    disputes = run.opinions.disputes[:most]
    clips = {}
    with ClipDecoder(run.spec.clip) as decoder:
        windows = Windows.of(run.spec, centred=False)
        for sample in _samples(disputes):
            clip = decoder.decode(sample, windows.start_share(sample))
            if not clip.rejected:
                clips[clip.shard, clip.index] = clip
    student = _student_of(run)
    rate = run.spec.clip.sample_rate_hz
    return [_shown(one, clips.get((one.shard, one.index)), student, rate) for one in disputes]


def _samples(disputes: Sequence[Dispute]) -> Iterator[Sample]:
    """Shard by shard, no further than to the last that is wanted."""
    wanted: dict[str, dict[int, int]] = {}
    for one in disputes:
        wanted.setdefault(one.shard, {})[one.index] = one.epoch
    for shard, epochs in wanted.items():
        try:
            for sample in read_samples(ShardVisit(0, shard), labelled=False):
                if sample.index in epochs:
                    yield replace(sample, epoch=epochs[sample.index])
                if sample.index >= max(epochs):
                    break
        except StorageError as error:
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
    """An mp4 of the face crops, each as long as it stands for, with the sound of the window."""
    frames = [cv2.resize(face, (FILM_PX, FILM_PX)) for face in clip.faces]
    length_s = len(clip.waveform) / rate_hz
    times_s = [length_s * n / len(frames) for n in range(len(frames))]
    encoding = Encoding(
        frames_per_s=10, width=FILM_PX, height=FILM_PX, sample_rate_hz=rate_hz,
        sound_bits_s=SOUND_BITS_S, options={"crf": "26"},
    )  # fmt: skip
    return encode_film(frames, clip.waveform, encoding, times_s)


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
