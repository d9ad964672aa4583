"""Makes a clip from a piece of a recording: tracks one face and encodes it with the sound.

1. Read the piece's frames at a low frame rate, and its audio from the first frame on.
2. Track one face through the frames; reject the piece if the face is missing, too small, or not the
   only one.
3. Encode the square around the face at `normalise.frames_per_s`, every frame a key frame, with
   lossless audio.
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

from liser_dist.config.ingest import FaceSpec, NormaliseSpec
from liser_dist.data.faces import (
    Box,
    FaceFinder,
    Frames,
    centre_of,
    crop_square,
    follow_face,
    make_finder,
    side_of,
)
from liser_dist.data.media import Encoding, encode_film, upright_image
from liser_dist.errors import SampleError
from liser_dist.ingest.deduplicate import AudioFingerprint, audio_fingerprint
from liser_dist.ingest.film import SOUND_RATE_HZ, MediaReader, Picture, Sound, join_sound
from liser_dist.ingest.lip_sync import cut_face, lip_sync_score
from liser_dist.ingest.scan import Span
from liser_dist.records import Reason

_HEIGHT_PX = 480  # shorter side of the frames in which faces are followed
_FULL_PICTURE_CRF = 18  # x264 quality without a visible difference
_SQUARE_MARGIN = 1.8  # side of the square by that of the face; the main job crops closer
_STEADY_S = 0.4  # the square ignores movements that are faster than this
_OTHERS_EVERY = 4  # one frame in so many is searched for other faces, the most expensive step
_LIKE_SIZE = 0.5  # a second face at least this large, relative to the first, may be the speaker


@dataclass(frozen=True, slots=True)
class FilmClip:
    """A piece of a film as it is stored in a shard.

    Attributes:
        video: an mp4 file.
        facts: its JSON.
        digest: of its pictures and its sound.
        fingerprint: of its sound.
    """

    video: bytes
    facts: dict[str, Any]
    digest: str
    fingerprint: AudioFingerprint

    @property
    def length_s(self) -> float:
        """Length of the piece in the film."""
        return float(self.facts["end_s"] - self.facts["start_s"])


@dataclass(frozen=True, slots=True)
class _Excerpt:
    """The frames and the sound of a piece in which the face is searched.

    Of each 1/`frames_per_s` it has the first frame, shrunk, at its own time. The sound starts with
    the first frame, so that sound and pictures stay together.
    """

    frames: Frames  # [n, height, width, 3]
    times_s: NDArray[np.float64]  # [n], in the film
    sound: NDArray[np.int16]  # [samples] at SOUND_RATE_HZ
    scale: float  # size of these frames relative to those of the film
    shown_s: list[float]  # times of all frames of the piece; empty if it has no picture

    @property
    def start_s(self) -> float:
        return float(self.times_s[0])

    @property
    def end_s(self) -> float:
        return self.start_s + len(self.sound) / SOUND_RATE_HZ


def cut_clip(
    film: MediaReader,
    piece: Span,
    face: FaceSpec,
    normalise: NormaliseSpec | None,
    *,
    require_face: bool = True,
) -> FilmClip:
    """Make a clip of a piece of a film.

    Args:
        film: the film, open.
        piece: start and end in seconds.
        face: what the face must be like.
        normalise: size and rate of the clip; None keeps the complete picture and all frames.
        require_face: False accepts any clip, and gives one without pictures black frames.

    Raises:
        SampleError: the piece is rejected; says why.
    """
    target = normalise or NormaliseSpec()
    excerpt = _read_excerpt(film, piece, target, require_picture=require_face)
    find = make_finder(excerpt.frames, face.detector, "face.detector")
    track = follow_face(find, len(excerpt.frames), face.detector)
    scores = _require_face(excerpt.frames, find, track, face) if require_face else {}
    if face.speaking is not None and require_face:
        scores["speaking"] = _require_lip_sync(film, excerpt, track, face.speaking)
    in_film = [_scaled(box, 1 / excerpt.scale) for box in track]
    if normalise is None and excerpt.shown_s:
        video, faces = _encode_full_picture(film, excerpt), in_film
    else:
        video, faces = _encode_face(excerpt, track, target)
    height, width = (round(side / excerpt.scale) for side in excerpt.frames.shape[1:3])
    facts = {
        "start_s": round(excerpt.start_s, 3),
        "end_s": round(excerpt.end_s, 3),
        "faces": _rows(excerpt.times_s - excerpt.start_s, faces),
        "source_size": [width, height],
        "source_faces": _rows(excerpt.times_s, in_film),
        "scores": scores,
    }
    some_pixels = excerpt.frames[:, ::8, ::8].tobytes()
    digest = hashlib.sha256(excerpt.sound.tobytes() + some_pixels).hexdigest()
    return FilmClip(video, facts, digest, audio_fingerprint(excerpt.sound, SOUND_RATE_HZ))


def _encode_face(
    excerpt: _Excerpt, track: list[Box | None], normalise: NormaliseSpec
) -> tuple[bytes, list[Box | None]]:
    """Return an mp4 file of the square around the face, and the face's boxes in it."""
    px = normalise.px
    squares = _squares(track, excerpt.frames.shape[1:3], normalise.frames_per_s)
    encoding = Encoding(
        math.ceil(normalise.frames_per_s), px, px, SOUND_RATE_HZ, None,
        {"preset": "veryfast", "crf": str(normalise.crf), "g": "1"},
    )  # fmt: skip
    crops = (
        crop_square(frame, square, px, margin=1.0)
        for frame, square in zip(excerpt.frames, squares, strict=True)
    )
    shown_s = excerpt.times_s - excerpt.start_s
    boxes = [_within(*pair, px) for pair in zip(track, squares, strict=True)]
    return encode_film(crops, excerpt.sound, encoding, shown_s.tolist()), boxes


def _encode_full_picture(film: MediaReader, excerpt: _Excerpt) -> bytes:
    """Return an mp4 file of the complete picture with all frames.

    It is encoded again, because copying the streams would shift the sound.
    """
    frames = (frame for frame, _ in _upright_frames(film, excerpt.start_s, excerpt.shown_s[-1]))
    first = next(frames)
    height, width = first.shape[:2]
    encoding = Encoding(
        30,
        width,
        height,
        SOUND_RATE_HZ,
        None,
        {"preset": "veryfast", "crf": str(_FULL_PICTURE_CRF)},
    )
    shown_s = [time_s - excerpt.start_s for time_s in excerpt.shown_s]
    return encode_film(itertools.chain([first], frames), excerpt.sound, encoding, shown_s)


def _upright_frames(
    film: MediaReader, first_s: float, last_s: float, scale: float = 1.0
) -> Iterator[tuple[NDArray[np.uint8], float]]:
    """Yield (frame, time) between two times; sides are even, as x264 needs."""
    for part in film.play(first_s, last_s):
        if isinstance(part, Picture) and first_s <= part.time_s <= last_s:
            yield _resize(part, scale), part.time_s


def _read_excerpt(
    film: MediaReader, piece: Span, normalise: NormaliseSpec, *, require_picture: bool
) -> _Excerpt:
    (start_s, end_s), frames_per_s = piece, normalise.frames_per_s
    sounds: list[Sound] = []
    frames: list[NDArray[np.uint8]] = []
    times_s: list[float] = []
    shown_s: list[float] = []
    scale, last_slot = 1.0, -1
    for part in film.play(start_s, end_s):
        if isinstance(part, Sound):
            sounds.append(part)
            continue
        slot = math.floor((part.time_s - start_s) * frames_per_s + 1e-6)
        if slot > last_slot:
            last_slot = slot
            scale = min(1.0, _HEIGHT_PX / min(part.frame.width, part.frame.height))
            frames.append(_resize(part, scale))
            times_s.append(part.time_s)
        if times_s:
            shown_s.append(part.time_s)
    if not frames and not require_picture and sounds:
        end_s = min(end_s, max(part.start_s + len(part.samples) / SOUND_RATE_HZ for part in sounds))
        times_s = np.arange(start_s, end_s, 1 / frames_per_s).tolist()
        frames = [np.zeros((normalise.px, normalise.px, 3), np.uint8)] * len(times_s)
    if not frames:
        raise SampleError(Reason.NO_VIDEO, "this part of the recording has no video frame")
    if len({frame.shape for frame in frames}) > 1:
        raise SampleError(Reason.UNREADABLE, "the frame size changes within the clip")
    sound = join_sound(sounds, times_s[0], end_s)
    return _Excerpt(np.stack(frames), np.array(times_s), sound, scale, shown_s)


def _resize(picture: Picture, scale: float) -> NDArray[np.uint8]:
    frame = picture.frame
    width, height = (max(2, 2 * round(scale * side / 2)) for side in (frame.width, frame.height))
    small = frame.reformat(width=width, height=height, format="rgb24")
    return upright_image(small, frame.rotation)


# ---------------------------------------------------------------- what makes a piece a clip


def _require_face(
    frames: Frames, find: FaceFinder, track: list[Box | None], spec: FaceSpec
) -> dict[str, float]:
    """Return the scores of the face; raise SampleError if it is not what the spec asks for."""
    visible = [(number, box) for number, box in enumerate(track) if box is not None]
    share = len(visible) / len(track)
    if share < spec.share:
        raise SampleError(
            Reason.NO_FACE,
            f"the face is visible in {share:.0%} of the frames, below face.share {spec.share:.0%}",
        )
    side_px = float(np.median([side_of(box) for _, box in visible]))
    at_480 = side_px * _HEIGHT_PX / min(frames.shape[1:3])
    if at_480 < spec.least_px:
        raise SampleError(
            Reason.SMALL_FACE,
            f"the face is {at_480:.0f} pixels wide at a frame height of {_HEIGHT_PX}, below "
            f"face.least_px {spec.least_px}",
        )
    scores = {"face_share": round(share, 3), "face_px": round(side_px, 1)}
    if spec.alone:
        searched = visible[::_OTHERS_EVERY]
        with_others = sum(_has_other(find(number, None), box) for number, box in searched)
        others = with_others / len(searched)
        if others > 0.5:
            detail = f"another face of similar size is visible in {others:.0%} of the frames"
            raise SampleError(Reason.OTHER_FACES, detail)
        scores["others_share"] = round(others, 3)
    return scores


def _require_lip_sync(
    film: MediaReader, excerpt: _Excerpt, track: list[Box | None], min_score: float
) -> float:
    """Return the lip-sync score, computed on every frame: 8 a second show no mouth movement."""
    frames_per_s = (len(track) - 1) / max(1e-6, float(excerpt.times_s[-1] - excerpt.start_s))
    squares = np.array(_squares(track, excerpt.frames.shape[1:3], frames_per_s, margin=1.0))
    faces, shown_s = [], []
    for frame, time_s in _upright_frames(film, excerpt.start_s, excerpt.shown_s[-1], excerpt.scale):
        x0, y0, x1, y1 = (float(np.interp(time_s, excerpt.times_s, edge)) for edge in squares.T)
        faces.append(cut_face(frame, (x0, y0, x1, y1)))
        shown_s.append(time_s - excerpt.start_s)
    score = lip_sync_score(faces, shown_s, excerpt.sound, SOUND_RATE_HZ)
    if score < min_score:
        detail = f"lip-sync score {score:.2f}, below face.speaking {min_score:g}"
        raise SampleError(Reason.NOT_SPEAKING, detail)
    return round(score, 3)


def _has_other(faces: list[Box], box: Box) -> bool:
    """Return True if a face of like size is elsewhere in the frame."""
    return any(
        side_of(other) >= _LIKE_SIZE * side_of(box)
        and float(np.hypot(*np.subtract(centre_of(other), centre_of(box)))) > side_of(box) / 2
        for other in faces
    )


# ---------------------------------------------------------------- the square around it


def _squares(
    track: list[Box | None],
    size: tuple[int, ...],
    frames_per_s: float,
    margin: float = _SQUARE_MARGIN,
) -> list[Box]:
    """Return the square to cut out of each frame, which follows the face smoothly.

    Squares are of one size, in integer pixels. Without any face they are the centre of the
    picture, whose `size` is (height, width).
    """
    if not any(track):
        (height, width), px = size, min(size)
        left, top = (width - px) // 2, (height - px) // 2
        return [(left, top, left + px, top + px)] * len(track)
    visible = np.array([n for n, box in enumerate(track) if box is not None])
    measured = np.array(
        [(*centre_of(box), margin * side_of(box)) for box in track if box is not None]
    )
    all_frames = np.arange(len(track))
    filled = np.stack([np.interp(all_frames, visible, column) for column in measured.T], axis=1)
    filled[:, 2] = np.median(filled[:, 2])
    smooth = gaussian_filter1d(filled, _STEADY_S * frames_per_s, axis=0, mode="nearest")
    side = max(2, round(smooth[0, 2]))
    corners = np.rint(smooth[:, :2] - side / 2)
    return [(left, top, left + side, top + side) for left, top in corners.tolist()]


def _scaled(box: Box | None, scale: float) -> Box | None:
    if box is None:
        return None
    x0, y0, x1, y1 = (scale * edge for edge in box)
    return x0, y0, x1, y1


def _within(box: Box | None, square: Box, px: int) -> Box | None:
    """Return a box in the pixels of the square that was cut out; None if it lies outside."""
    if box is None:
        return None
    scale = px / side_of(square)
    x0, x1 = (min(max(0.0, (x - square[0]) * scale), px) for x in (box[0], box[2]))
    y0, y1 = (min(max(0.0, (y - square[1]) * scale), px) for y in (box[1], box[3]))
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


def _rows(times_s: NDArray[np.float64], boxes: list[Box | None]) -> list[list[float]]:
    """Return [t_s, x0, y0, x1, y1] for each box, as a clip's JSON has them."""
    return [
        [round(float(time_s), 3), *(round(edge, 1) for edge in box)]
        for time_s, box in zip(times_s, boxes, strict=True)
        if box is not None
    ]
