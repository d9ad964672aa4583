"""Scans a film for speech and shot changes in one pass, and finds pieces that may become clips.

Memory stays bounded however long the film is: sound is processed in stretches, frames are shrunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from liser_dist.config.ingest import CutSpec
from liser_dist.data.voice_activity import FRAME_SAMPLES, SpeechDetector
from liser_dist.errors import SampleError
from liser_dist.ingest.film import SOUND_RATE_HZ, MediaReader, Picture, Sound, join_sound
from liser_dist.records import Reason, to_floats

# silero-vad's own thresholds of probability
_SPEECH_BEGINS = 0.5
_SPEECH_CONTINUES = 0.35
_SHOT_WIDTH_PX = 256  # of the frames that are compared for shot changes
_STRETCH_S = 30.0  # of sound that is judged at once
_MIN_SHOT_FRAMES = 6
_BEFORE_CUT_S = 0.02  # a clip ends this long before the first frame of the next shot

Span = tuple[float, float]  # start and end in seconds


@dataclass(frozen=True, slots=True)
class Scan:
    """What one pass through a film found.

    Attributes:
        speech: the spans of speech.
        cuts_s: times of the first frame of each new shot.
        length_s: length for which there are both sound and pictures.
    """

    speech: Sequence[Span]
    cuts_s: Sequence[float]
    length_s: float


def scan_film(film: MediaReader, spec: CutSpec) -> Scan:
    """Find the speech and the shot changes of a film.

    Raises:
        SampleError: the film cannot be read to its end, or has no sound or no picture.
    """
    speech_scan, shot_scan = _SpeechScan(), _ShotScan(spec.shot_change)
    for part in film.play():
        if isinstance(part, Sound):
            speech_scan.add(part)
        else:
            shot_scan.add(part)
    speech = speech_scan.speech()
    if not shot_scan.times_s:
        raise SampleError(Reason.NO_VIDEO, "the recording has no frames")
    if speech_scan.end_s <= 0:
        raise SampleError(Reason.NO_AUDIO, "the recording has no sound")
    return Scan(speech, shot_scan.cuts_s(), min(speech_scan.end_s, shot_scan.times_s[-1]))


class _SpeechScan:
    """Puts sound on the film's clock as it comes, and detects speech stretch by stretch."""

    def __init__(self) -> None:
        self.end_s = 0.0
        self._parts: list[Sound] = []
        self._judged_s = 0.0
        self._detector = SpeechDetector()
        self._probabilities: list[NDArray[np.float32]] = []

    def add(self, part: Sound) -> None:
        self._parts.append(part)
        self.end_s = max(self.end_s, part.start_s + len(part.samples) / SOUND_RATE_HZ)
        # The last second waits, as a part may begin before the previous one ends.
        if self.end_s - self._judged_s > _STRETCH_S:
            self._judge(self.end_s - 1.0)

    def _judge(self, until_s: float) -> None:
        until_s = self._judged_s + round((until_s - self._judged_s) * SOUND_RATE_HZ) / SOUND_RATE_HZ
        sound = join_sound(self._parts, self._judged_s, until_s)
        self._probabilities.append(self._detector.feed(to_floats(sound)))
        self._judged_s = until_s
        self._parts = [
            p for p in self._parts if p.start_s + len(p.samples) / SOUND_RATE_HZ > until_s
        ]

    def speech(self) -> list[Span]:
        """Return the spans of speech, once all sound was added."""
        self._judge(self.end_s)
        probabilities = np.concatenate([*self._probabilities, self._detector.finish()])
        return list(_spans(probabilities, FRAME_SAMPLES / SOUND_RATE_HZ, self.end_s))


def _spans(probabilities: NDArray[np.float32], frame_s: float, end_s: float) -> Iterator[Span]:
    """Yield spans that begin at a high probability of speech and last until it is low."""
    first: int | None = None
    for frame, probability in enumerate(probabilities):
        if first is None and probability >= _SPEECH_BEGINS:
            first = frame
        elif first is not None and probability < _SPEECH_CONTINUES:
            yield first * frame_s, frame * frame_s
            first = None
    if first is not None:
        yield first * frame_s, end_s


class _ShotScan:
    """Compares all frames, shrunk, to find shot changes."""

    def __init__(self, threshold: float) -> None:
        from scenedetect import AdaptiveDetector, FrameTimecode  # type: ignore[import-untyped]

        self.times_s: list[float] = []
        self._detector = AdaptiveDetector(threshold, min_scene_len=_MIN_SHOT_FRAMES)
        self._timecode = FrameTimecode
        self._cuts: list[Any] = []

    def add(self, picture: Picture) -> None:
        frame = picture.frame
        height = max(2, round(frame.height * _SHOT_WIDTH_PX / frame.width))
        small = frame.reformat(width=_SHOT_WIDTH_PX, height=height, format="bgr24").to_ndarray()
        # The detector gets frame numbers, so that a variable frame rate does not disturb it;
        # `times_s` turns them back into times.
        number = self._timecode(len(self.times_s), fps=25.0)
        self.times_s.append(picture.time_s)
        self._cuts += self._detector.process_frame(number, small)

    def cuts_s(self) -> list[float]:
        return [self.times_s[cut.frame_num] for cut in self._cuts]


# ---------------------------------------------------------------- pieces


def cut_pieces(scan: Scan, spec: CutSpec) -> tuple[list[Span], list[Span]]:
    """Return the pieces of `min_s` to `max_s`, and those that are shorter, in the film's order.

    A piece is speech with a margin and without a pause longer than `pause_s`. It ends at a shot
    change; what is longer than `max_s` is divided evenly.
    """
    pieces: list[Span] = []
    short: list[Span] = []
    for start_s, end_s in _split_at_cuts(_join_speech(scan, spec), scan.cuts_s):
        parts = max(1, math.ceil((end_s - start_s) / spec.max_s - 1e-6))
        part_s = (end_s - start_s) / parts
        target = pieces if part_s >= spec.min_s else short
        target += [(start_s + n * part_s, start_s + (n + 1) * part_s) for n in range(parts)]
    return pieces, short


def _join_speech(scan: Scan, spec: CutSpec) -> Iterator[Span]:
    """Yield spans of speech with their margins, joined over short pauses."""
    last: Span | None = None
    for start_s, end_s in scan.speech:
        start_s = max(0.0, start_s - spec.margin_s)
        end_s = min(scan.length_s, end_s + spec.margin_s)
        if last is not None and start_s - last[1] <= spec.pause_s - 2 * spec.margin_s:
            last = last[0], end_s
            continue
        if last is not None:
            yield last
        last = start_s, end_s
    if last is not None and last[1] > last[0]:
        yield last


def _split_at_cuts(spans: Iterator[Span], cuts_s: Sequence[float]) -> Iterator[Span]:
    for start_s, end_s in spans:
        inside = [cut_s for cut_s in cuts_s if start_s < cut_s < end_s]
        for first_s, next_s in zip([start_s, *inside], [*inside, end_s], strict=True):
            last_s = next_s if next_s == end_s else next_s - _BEFORE_CUT_S
            if last_s > first_s:
                yield first_s, last_s
