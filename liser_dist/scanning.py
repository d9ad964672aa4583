"""A film -> where somebody speaks, and where the shot changes: one pass, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from liser_dist.errors import SampleError
from liser_dist.film import RATE_HZ, Film, Picture, Sound, join_sound
from liser_dist.ingest_spec import CutSpec
from liser_dist.records import Reason, to_floats
from liser_dist.speech import FRAME, SpeechDetector

SPEECH, STILL_SPEECH = 0.5, 0.35  # silero-vad's own thresholds: to begin, and to go on
SHOT_PX = 256  # width at which shots are told apart
LISTEN_S = 30.0  # of sound at once
LEAST_SHOT_FRAMES = 6

Span = tuple[float, float]  # seconds


@dataclass(frozen=True, slots=True)
class Scan:
    """What one pass through a film finds."""

    speech: Sequence[Span]
    cuts_s: Sequence[float]  # the first frame of each new shot
    length_s: float  # of what sound and pictures share


def scan_film(film: Film, spec: CutSpec) -> Scan:
    """Raises SampleError where the film cannot be read to its end, or has no sound or picture."""
    ear, eye = _Ear(), _Eye(spec.shot_change)
    for shown in film.play():
        if isinstance(shown, Sound):
            ear.hear(shown)
        else:
            eye.see(shown)
    speech = ear.speech()
    if not eye.times_s:
        raise SampleError(Reason.NO_VIDEO, "no frame in it")
    if ear.end_s <= 0:
        raise SampleError(Reason.NO_AUDIO, "no sound in it")
    return Scan(speech, eye.cuts_s(), min(ear.end_s, eye.times_s[-1]))


class _Ear:
    """Joins the sound as it comes, on the film's clock, and has it judged."""

    def __init__(self) -> None:
        self.end_s = 0.0
        self._parts: list[Sound] = []
        self._judged_s = 0.0
        self._detector = SpeechDetector()
        self._said: list[NDArray[np.float32]] = []

    def hear(self, part: Sound) -> None:
        self._parts.append(part)
        self.end_s = max(self.end_s, part.start_s + len(part.samples) / RATE_HZ)
        # A moment stays, for a part may begin before the last one ends.
        if self.end_s - self._judged_s > LISTEN_S:
            self._judge(self.end_s - 1.0)

    def _judge(self, until_s: float) -> None:
        until_s = self._judged_s + round((until_s - self._judged_s) * RATE_HZ) / RATE_HZ
        sound = join_sound(self._parts, self._judged_s, until_s)
        self._said.append(self._detector.hear(to_floats(sound)))
        self._judged_s = until_s
        self._parts = [p for p in self._parts if p.start_s + len(p.samples) / RATE_HZ > until_s]

    def speech(self) -> list[Span]:
        """The spans of speech, when all was heard."""
        self._judge(self.end_s)
        probabilities = np.concatenate([*self._said, self._detector.end()])
        return list(_spans(probabilities, FRAME / RATE_HZ, self.end_s))


def _spans(probabilities: NDArray[np.float32], frame_s: float, end_s: float) -> Iterator[Span]:
    """From where it is likely until it is unlikely."""
    begun: int | None = None
    for frame, probability in enumerate(probabilities):
        if begun is None and probability >= SPEECH:
            begun = frame
        elif begun is not None and probability < STILL_SPEECH:
            yield begun * frame_s, frame * frame_s
            begun = None
    if begun is not None:
        yield begun * frame_s, end_s


class _Eye:
    """Looks at every frame, small, for changes of the shot."""

    def __init__(self, threshold: float) -> None:
        from scenedetect import AdaptiveDetector, FrameTimecode  # type: ignore[import-untyped]

        self.times_s: list[float] = []
        self._detector = AdaptiveDetector(threshold, min_scene_len=LEAST_SHOT_FRAMES)
        self._numbered = FrameTimecode
        self._found: list[Any] = []

    def see(self, picture: Picture) -> None:
        frame = picture.frame
        height = max(2, round(frame.height * SHOT_PX / frame.width))
        small = frame.reformat(width=SHOT_PX, height=height, format="bgr24").to_ndarray()
        # Frames are numbered, so that a rate that varies disturbs nothing; our clock knows when.
        number = self._numbered(len(self.times_s), fps=25.0)
        self.times_s.append(picture.time_s)
        self._found += self._detector.process_frame(number, small)

    def cuts_s(self) -> list[float]:
        return [self.times_s[cut.frame_num] for cut in self._found]
