"""A piece of a film -> a clip: one face that is followed, and the sound, encoded small.

1. the frames that are kept, and the sound from exactly the first of them on
2. one face in them, followed; other faces of like size
3. a square around it that moves with it, 8 times a second, every frame a key frame; lossless sound
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from liser_dist.containers import upright
from liser_dist.encoding import Encoding, encode_film
from liser_dist.errors import SampleError
from liser_dist.faces import (
    Box,
    Finder,
    Frames,
    centre_of,
    crop_square,
    finder_of,
    follow_face,
    side_of,
)
from liser_dist.film import RATE_HZ, Film, Picture, Sound, join_sound
from liser_dist.ingest_spec import FaceSpec, NormaliseSpec
from liser_dist.likeness import Likeness, likeness_of
from liser_dist.records import Reason
from liser_dist.scanning import Span
from liser_dist.speaking import agreement, cut_face

HEIGHT_PX = 480  # shorter side at which faces are followed and cut out
WHOLE_CRF = 18  # x264's, where no difference is seen
MARGIN = 1.8  # side of the square, in sides of the face: the student's job cuts closer
STEADY_S = 0.4  # the square does not follow what a face does in less
LOOK_AROUND = 4  # one frame of so many is searched for others: that costs most
LIKE_SIZE = 0.5  # another face of so many sides of this one may be who speaks


@dataclass(frozen=True, slots=True)
class Clip:
    """A piece of a film as it lies in a shard."""

    video: bytes
    facts: dict[str, Any]
    digest: str  # of its pictures and its sound
    likeness: Likeness

    @property
    def length_s(self) -> float:
        return float(self.facts["end_s"] - self.facts["start_s"])


@dataclass(frozen=True, slots=True)
class _Look:
    """What is looked at of a piece: the first frame of each 1/`frames_per_s`, small, at its own
    time, and the sound from the first of them on, so that sound and pictures stay together."""

    frames: Frames  # [n, height, width, 3]
    times_s: NDArray[np.float64]  # [n], in the film
    sound: NDArray[np.int16]  # [samples], RATE_HZ
    scale: float  # a pixel of the film in pixels of these frames
    shown_s: list[float]  # all frames, also those that are not looked at; none where all is black

    @property
    def start_s(self) -> float:
        return float(self.times_s[0])

    @property
    def end_s(self) -> float:
        return self.start_s + len(self.sound) / RATE_HZ


def make_clip(
    film: Film, piece: Span, face: FaceSpec, normalise: NormaliseSpec | None, anyhow: bool = False
) -> Clip:
    """`anyhow`: whatever is seen in it, and also where nothing is: a black picture, then.

    Raises SampleError: the piece is no clip, and why.
    """
    wanted = normalise or NormaliseSpec()
    look = _read(film, piece, wanted, anyhow)
    find = finder_of(look.frames, face.detector)
    track = follow_face(find, len(look.frames), face.detector)
    scores = {} if anyhow else _judge(look.frames, find, track, face)
    if face.speaking is not None and not anyhow:
        scores["speaking"] = _require_speaking(film, look, track, face.speaking)
    in_film = [_scaled(box, 1 / look.scale) for box in track]
    if normalise is None and look.shown_s:
        video, faces = _whole(film, look), in_film
    else:
        video, faces = _cropped(look, track, wanted)
    height, width = (round(side / look.scale) for side in look.frames.shape[1:3])
    facts = {
        "start_s": round(look.start_s, 3),
        "end_s": round(look.end_s, 3),
        "faces": _rows(look.times_s - look.start_s, faces),
        "source_size": [width, height],
        "source_faces": _rows(look.times_s, in_film),
        "scores": scores,
    }
    some_pixels = look.frames[:, ::8, ::8].tobytes()
    digest = hashlib.sha256(look.sound.tobytes() + some_pixels).hexdigest()
    return Clip(video, facts, digest, likeness_of(look.sound, RATE_HZ))


def _cropped(
    look: _Look, track: list[Box | None], normalise: NormaliseSpec
) -> tuple[bytes, list[Box | None]]:
    """The face alone, as a film, and its boxes there."""
    px = normalise.px
    squares = _squares(track, look.frames.shape[1:3], normalise.frames_per_s)
    encoding = Encoding(
        math.ceil(normalise.frames_per_s), px, px, RATE_HZ, None,
        {"preset": "veryfast", "crf": str(normalise.crf), "g": "1"},
    )  # fmt: skip
    crops = (
        crop_square(frame, square, px, margin=1.0)
        for frame, square in zip(look.frames, squares, strict=True)
    )
    shown_s = look.times_s - look.start_s
    boxes = [_within(*pair, px) for pair in zip(track, squares, strict=True)]
    return encode_film(crops, look.sound, encoding, shown_s.tolist()), boxes


def _whole(film: Film, look: _Look) -> bytes:
    """The whole picture, all its frames. Encoded anew, for a copy puts the sound off."""
    frames = (frame for frame, _ in _upright_frames(film, look.start_s, look.shown_s[-1]))
    first = next(frames)
    height, width = first.shape[:2]
    encoding = Encoding(
        30, width, height, RATE_HZ, None, {"preset": "veryfast", "crf": str(WHOLE_CRF)}
    )
    shown_s = [time_s - look.start_s for time_s in look.shown_s]
    return encode_film(itertools.chain([first], frames), look.sound, encoding, shown_s)


def _upright_frames(
    film: Film, first_s: float, last_s: float, scale: float = 1.0
) -> Iterator[tuple[NDArray[np.uint8], float]]:
    """Those that are shown from the first to the last, and when; of even sides, for x264."""
    for shown in film.play(first_s, last_s):
        if isinstance(shown, Picture) and first_s <= shown.time_s <= last_s:
            yield _resized(shown, scale), shown.time_s


def _read(film: Film, piece: Span, normalise: NormaliseSpec, anyhow: bool) -> _Look:
    (start_s, end_s), frames_per_s = piece, normalise.frames_per_s
    sounds: list[Sound] = []
    kept: list[NDArray[np.uint8]] = []
    times_s: list[float] = []
    shown_s: list[float] = []
    scale, last_slot = 1.0, -1
    for shown in film.play(start_s, end_s):
        if isinstance(shown, Sound):
            sounds.append(shown)
            continue
        slot = math.floor((shown.time_s - start_s) * frames_per_s + 1e-6)
        if slot > last_slot:
            last_slot = slot
            scale = min(1.0, HEIGHT_PX / min(shown.frame.width, shown.frame.height))
            kept.append(_resized(shown, scale))
            times_s.append(shown.time_s)
        if times_s:
            shown_s.append(shown.time_s)
    if not kept and anyhow and sounds:
        end_s = min(end_s, max(part.start_s + len(part.samples) / RATE_HZ for part in sounds))
        times_s = np.arange(start_s, end_s, 1 / frames_per_s).tolist()
        kept = [np.zeros((normalise.px, normalise.px, 3), np.uint8)] * len(times_s)
    if not kept:
        raise SampleError(Reason.NO_VIDEO, "no frame in it")
    if len({frame.shape for frame in kept}) > 1:
        raise SampleError(Reason.UNREADABLE, "the picture changes its size in it")
    sound = join_sound(sounds, times_s[0], end_s)
    return _Look(np.stack(kept), np.array(times_s), sound, scale, shown_s)


def _resized(picture: Picture, scale: float) -> NDArray[np.uint8]:
    frame = picture.frame
    width, height = (max(2, 2 * round(scale * side / 2)) for side in (frame.width, frame.height))
    small = frame.reformat(width=width, height=height, format="rgb24")
    return upright(small, frame.rotation)


# ---------------------------------------------------------------- is it a clip?


def _judge(
    frames: Frames, find: Finder, track: list[Box | None], spec: FaceSpec
) -> dict[str, float]:
    """What is known of the face. Raises SampleError where it does not do."""
    seen = [(number, box) for number, box in enumerate(track) if box is not None]
    share = len(seen) / len(track)
    if share < spec.share:
        raise SampleError(Reason.NO_FACE, f"in {share:.0%} of the frames")
    side_px = float(np.median([side_of(box) for _, box in seen]))
    at_480 = side_px * HEIGHT_PX / min(frames.shape[1:3])
    if at_480 < spec.least_px:
        raise SampleError(Reason.SMALL_FACE, f"{at_480:.0f} pixels at a height of {HEIGHT_PX}")
    scores = {"face_share": round(share, 3), "face_px": round(side_px, 1)}
    if spec.alone:
        looked = seen[::LOOK_AROUND]
        others = sum(_has_other(find(number, None), box) for number, box in looked) / len(looked)
        if others > 0.5:
            raise SampleError(Reason.OTHER_FACES, f"in {others:.0%} of the frames")
        scores["others_share"] = round(others, 3)
    return scores


def _require_speaking(film: Film, look: _Look, track: list[Box | None], least: float) -> float:
    """Looks at every frame: at 8 a second no mouth can be read. Raises SampleError."""
    frames_per_s = (len(track) - 1) / max(1e-6, float(look.times_s[-1] - look.start_s))
    squares = np.array(_squares(track, look.frames.shape[1:3], frames_per_s, margin=1.0))
    faces, shown_s = [], []
    for frame, time_s in _upright_frames(film, look.start_s, look.shown_s[-1], look.scale):
        x0, y0, x1, y1 = (float(np.interp(time_s, look.times_s, edge)) for edge in squares.T)
        faces.append(cut_face(frame, (x0, y0, x1, y1)))
        shown_s.append(time_s - look.start_s)
    score = agreement(faces, shown_s, look.sound, RATE_HZ)
    if score < least:
        raise SampleError(Reason.NOT_SPEAKING, f"agreement {score:.2f}")
    return round(score, 3)


def _has_other(found: list[Box], box: Box) -> bool:
    """Whether a face of like size is elsewhere."""
    return any(
        side_of(other) >= LIKE_SIZE * side_of(box)
        and float(np.hypot(*np.subtract(centre_of(other), centre_of(box)))) > side_of(box) / 2
        for other in found
    )


# ---------------------------------------------------------------- the square around it


def _squares(
    track: list[Box | None], size: tuple[int, ...], frames_per_s: float, margin: float = MARGIN
) -> list[Box]:
    """What is cut out of each frame: it follows the face without its trembling, in whole pixels.

    The middle of a picture of `size` (height, width) where there is no face.
    """
    if not any(track):
        (height, width), px = size, min(size)
        left, top = (width - px) // 2, (height - px) // 2
        return [(left, top, left + px, top + px)] * len(track)
    seen = np.array([n for n, box in enumerate(track) if box is not None])
    measured = np.array(
        [(*centre_of(box), margin * side_of(box)) for box in track if box is not None]
    )
    every = np.arange(len(track))
    filled = np.stack([np.interp(every, seen, column) for column in measured.T], axis=1)
    filled[:, 2] = np.median(filled[:, 2])
    smooth = gaussian_filter1d(filled, STEADY_S * frames_per_s, axis=0, mode="nearest")
    side = max(2, round(smooth[0, 2]))
    corners = np.rint(smooth[:, :2] - side / 2)
    return [(left, top, left + side, top + side) for left, top in corners.tolist()]


def _scaled(box: Box | None, scale: float) -> Box | None:
    if box is None:
        return None
    x0, y0, x1, y1 = (scale * edge for edge in box)
    return x0, y0, x1, y1


def _within(box: Box | None, square: Box, px: int) -> Box | None:
    """A box in the pixels of what was cut out; None where it lies outside."""
    if box is None:
        return None
    scale = px / side_of(square)
    x0, x1 = (min(max(0.0, (x - square[0]) * scale), px) for x in (box[0], box[2]))
    y0, y1 = (min(max(0.0, (y - square[1]) * scale), px) for y in (box[1], box[3]))
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


def _rows(times_s: NDArray[np.float64], boxes: list[Box | None]) -> list[list[float]]:
    return [
        [round(float(time_s), 3), *(round(edge, 1) for edge in box)]
        for time_s, box in zip(times_s, boxes, strict=True)
        if box is not None
    ]
