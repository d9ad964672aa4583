"""A piece of a film -> a clip: one face that is followed, and the sound, encoded small.

1. the frames that are kept, and the sound from exactly the first of them on
2. one face in them, followed; other faces of like size
3. a square around it that moves with it, 8 times a second, every frame a key frame; lossless sound
"""

from __future__ import annotations

import hashlib
import math
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
from liser_dist.records import Reason
from liser_dist.scanning import Span

HEIGHT_PX = 480  # shorter side at which faces are followed and cut out
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


def make_clip(
    film: Film, piece: Span, face: FaceSpec, normalise: NormaliseSpec, anyhow: bool = False
) -> Clip:
    """`anyhow`: whatever is seen in it, and also where nothing is: a black picture, then.

    Raises SampleError: the piece is no clip, and why.
    """
    frames, times_s, sound = _read(film, piece, normalise, anyhow)
    start_s = times_s[0]
    find = finder_of(frames, face.detector)
    track = follow_face(find, len(frames), face.detector)
    scores = {} if anyhow else _judge(frames, find, track, face)
    squares = _squares(track, frames.shape[1:3], normalise.frames_per_s)
    crops = _cut_out(frames, squares, normalise.px)
    boxes = [_within(*pair, normalise.px) for pair in zip(track, squares, strict=True)]
    shown_s = times_s - start_s
    encoding = Encoding(
        math.ceil(normalise.frames_per_s), normalise.px, normalise.px, RATE_HZ, None,
        {"preset": "veryfast", "crf": str(normalise.crf), "g": "1"},
    )  # fmt: skip
    facts = {
        "start_s": round(float(start_s), 3),
        "end_s": round(float(start_s) + len(sound) / RATE_HZ, 3),
        "faces": _rows(shown_s, boxes),
        "source_size": [frames.shape[2], frames.shape[1]],
        "source_faces": _rows(times_s, track),
        "scores": scores,
    }
    digest = hashlib.sha256(sound.tobytes() + crops.tobytes()).hexdigest()
    return Clip(encode_film(crops, sound, encoding, shown_s.tolist()), facts, digest)


def _read(
    film: Film, piece: Span, normalise: NormaliseSpec, anyhow: bool
) -> tuple[Frames, NDArray[np.float64], NDArray[np.int16]]:
    """Frames [n, height, width, 3], when each is shown, and the sound from the first of them on.

    The first frame of each 1/`frames_per_s`, at its own time: sound and pictures stay together.
    """
    (start_s, end_s), frames_per_s = piece, normalise.frames_per_s
    sounds: list[Sound] = []
    kept: list[NDArray[np.uint8]] = []
    times_s: list[float] = []
    for shown in film.play(start_s, end_s):
        if isinstance(shown, Sound):
            sounds.append(shown)
        elif shown.time_s >= start_s + len(kept) / frames_per_s - 1e-6:
            kept.append(_shrunk(shown))
            times_s.append(shown.time_s)
    if not kept and anyhow and sounds:
        end_s = min(end_s, max(part.start_s + len(part.samples) / RATE_HZ for part in sounds))
        times_s = np.arange(start_s, end_s, 1 / frames_per_s).tolist()
        kept = [np.zeros((normalise.px, normalise.px, 3), np.uint8)] * len(times_s)
    if not kept:
        raise SampleError(Reason.NO_VIDEO, "no frame in it")
    if len({frame.shape for frame in kept}) > 1:
        raise SampleError(Reason.UNREADABLE, "the picture changes its size in it")
    return np.stack(kept), np.array(times_s), join_sound(sounds, times_s[0], end_s)


def _shrunk(picture: Picture) -> NDArray[np.uint8]:
    frame = picture.frame
    scale = min(1.0, HEIGHT_PX / min(frame.width, frame.height))
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


def _has_other(found: list[Box], box: Box) -> bool:
    """Whether a face of like size is elsewhere."""
    return any(
        side_of(other) >= LIKE_SIZE * side_of(box)
        and float(np.hypot(*np.subtract(centre_of(other), centre_of(box)))) > side_of(box) / 2
        for other in found
    )


# ---------------------------------------------------------------- the square around it


def _squares(track: list[Box | None], size: tuple[int, ...], frames_per_s: float) -> list[Box]:
    """What is cut out of each frame: it follows the face without its trembling, in whole pixels.

    The middle of a picture of `size` (height, width) where there is no face.
    """
    if not any(track):
        (height, width), px = size, min(size)
        left, top = (width - px) // 2, (height - px) // 2
        return [(left, top, left + px, top + px)] * len(track)
    seen = np.array([n for n, box in enumerate(track) if box is not None])
    measured = np.array(
        [(*centre_of(box), MARGIN * side_of(box)) for box in track if box is not None]
    )
    every = np.arange(len(track))
    filled = np.stack([np.interp(every, seen, column) for column in measured.T], axis=1)
    filled[:, 2] = np.median(filled[:, 2])
    smooth = gaussian_filter1d(filled, STEADY_S * frames_per_s, axis=0, mode="nearest")
    side = max(2, round(smooth[0, 2]))
    corners = np.rint(smooth[:, :2] - side / 2)
    return [(left, top, left + side, top + side) for left, top in corners.tolist()]


def _cut_out(frames: Frames, squares: list[Box], px: int) -> Frames:
    """[n, px, px, 3]"""
    crops = [
        crop_square(frame, square, px, margin=1.0)
        for frame, square in zip(frames, squares, strict=True)
    ]
    return np.stack(crops)


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
