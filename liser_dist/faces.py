"""Frames -> the face crops of one person.

1. where faces are: the sample's own boxes, or OpenCV's detector (Haar; YuNet by its file);
2. one track: the largest face where one first shows, then always the nearest to the last seen;
3. a square crop with a margin, resized; zeros where this person is not seen.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from liser_dist.errors import SampleError, SpecError
from liser_dist.records import Clip, Reason
from liser_dist.spec import ClipSpec

Frames = NDArray[np.uint8]  # [n, height, width, 3] RGB
Crops = NDArray[np.uint8]  # [n, px, px, 3] RGB, zeros where no face was seen
Flags = NDArray[np.bool_]  # [n]
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the frame
Finder = Callable[[int, Box | None], list[Box]]  # (frame, last seen) -> faces, in that frame

MARGIN = 1.2  # side of the crop, in sides of the box
BOX_REACH_S = 0.5  # how far in time a given box still holds
DETECT_PX = 320  # longest side of the picture that is searched
HAAR_FILE = "haarcascade_frontalface_default.xml"
HAAR_LEAST_PX = 24  # side of the cascade's own window
YUNET_SCORE = 0.7


def parse_boxes(text: str) -> NDArray[np.float64] | None:
    """A sample's `faces` as [boxes, 5]: t_s, x0, y0, x1, y1; None where it does not know.

    Raises:
        SampleError: BAD_METADATA, when the JSON is no list of such boxes.
    """
    if not text:
        return None
    try:
        boxes = np.array(json.loads(text), np.float64)
    except (ValueError, TypeError, RecursionError) as error:
        raise SampleError(Reason.BAD_METADATA, f"faces: {error}") from error
    if boxes.size == 0 and boxes.ndim == 1:
        return np.empty((0, 5))
    if boxes.ndim != 2 or boxes.shape[1] != 5:
        raise SampleError(Reason.BAD_METADATA, f"faces: want [n, 5], not {list(boxes.shape)}")
    empty = (boxes[:, 3] <= boxes[:, 1]) | (boxes[:, 4] <= boxes[:, 2])
    if not np.isfinite(boxes).all() or empty.any():
        raise SampleError(Reason.BAD_METADATA, "faces: a box is empty or not finite")
    return boxes


def check_detector(detector: str, field: str) -> None:
    """Whether it can be used at all, before a clip is decoded.

    Raises:
        SpecError: it is a path at which there is no YuNet model.
    """
    if detector == "haar":
        return
    if not Path(detector).is_file():
        raise SpecError(
            f"`{field}` is {detector!r}: no such file. Give 'haar', or the path of a YuNet .onnx "
            "file that every node can read"
        )
    _yunet(detector)


def finder_of(frames: Frames, detector: str) -> Finder:
    """How to look for faces in these frames. Raises SpecError where it cannot be loaded."""
    return _haar_finder(frames) if detector == "haar" else _yunet_finder(frames, detector)


def follow_face(find: Finder, frames: int, detector: str) -> list[Box | None]:
    """The box of one person in each frame, None where it is not seen."""
    return _follow(find, frames, 1.0, min(2, frames) if detector == "haar" else 1)


def crop_faces(
    frames: Frames, times_s: NDArray[np.float64], boxes: NDArray[np.float64] | None, spec: ClipSpec
) -> tuple[Crops, Flags]:
    """The crops of one person, and in which frames there is one.

    Args:
        frames: [n, height, width, 3] RGB.
        times_s: [n], when each frame is shown.
        boxes: as `parse_boxes` gives them; None has the frames searched.

    Raises:
        SampleError: BAD_METADATA, when a given box lies outside of the picture.
        SpecError: the detector cannot be loaded.
    """
    if boxes is not None:
        track = _follow(_given(boxes, times_s, frames.shape[1:3]), len(frames), np.inf, 1)
    else:
        find = finder_of(frames, spec.face_detector)
        track = follow_face(find, len(frames), spec.face_detector)
    crops = np.zeros((len(frames), spec.face_px, spec.face_px, 3), np.uint8)
    for crop, frame, box in zip(crops, frames, track, strict=True):
        if box is not None:
            crop[:] = crop_square(frame, box, spec.face_px)
    return crops, np.array([box is not None for box in track], np.bool_)


def shrink_faces(clip: Clip, px: int) -> NDArray[np.uint8]:
    """What a student sees of a clip's faces: [n * px * px] grey, of the frames that have one."""
    grey = [cv2.cvtColor(face, cv2.COLOR_RGB2GRAY) for face in clip.faces[clip.has_face]]
    small = [cv2.resize(face, (px, px), interpolation=cv2.INTER_AREA) for face in grey]
    return np.array(small, np.uint8).ravel()


def crop_square(
    frame: NDArray[np.uint8], box: Box, px: int, margin: float = MARGIN
) -> NDArray[np.uint8]:
    """The box with its margin as [px, px, 3]; what lies beyond the picture repeats its edge."""
    height, width = frame.shape[:2]
    side = max(2, round(margin * side_of(box)))
    left, top = (round(centre - side / 2) for centre in centre_of(box))
    right, bottom = left + side, top + side
    inside = frame[max(0, top) : min(height, bottom), max(0, left) : min(width, right)]
    beyond = (max(0, -top), max(0, bottom - height), max(0, -left), max(0, right - width))
    if any(beyond):
        inside = cv2.copyMakeBorder(inside, *beyond, cv2.BORDER_REPLICATE)
    how = cv2.INTER_AREA if side > px else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(inside, (px, px), interpolation=how), np.uint8)


# ---------------------------------------------------------------- one track


def _follow(find: Finder, frames: int, reach: float, least: int) -> list[Box | None]:
    """One person's box in each frame.

    Args:
        reach: how far a face moves between two frames, in sides of its box.
        least: a track seen in fewer frames is a mistake of the detector: look again behind it.
    """
    start = 0
    while start < frames:
        track = [None] * start + _follow_from(find, start, frames, reach)
        seen = [number for number, box in enumerate(track) if box is not None]
        if len(seen) >= min(least, frames):
            return track
        start = seen[0] + 1 if seen else frames
    return [None] * frames


def _follow_from(find: Finder, start: int, frames: int, reach: float) -> list[Box | None]:
    last: Box | None = None
    track: list[Box | None] = []
    for number in range(start, frames):
        box = _choose(find(number, last), last, reach)
        last = box or last
        track.append(box)
    return track


def _choose(found: list[Box], last: Box | None, reach: float) -> Box | None:
    """The largest face, or once somebody is followed, the nearest of about the same size."""
    if last is None:
        return max(found, key=side_of, default=None)
    followed = last
    found = [box for box in found if _distance(box, followed) <= reach]
    return min(found, key=lambda box: _distance(box, followed), default=None)


def _distance(box: Box, other: Box) -> float:
    """Between two boxes, in sides of the other; a size twice or half as large is one side away."""
    (x, y), (other_x, other_y) = centre_of(box), centre_of(other)
    moved = float(np.hypot(x - other_x, y - other_y)) / side_of(other)
    return max(moved, abs(float(np.log2(side_of(box) / side_of(other)))))


def centre_of(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def side_of(box: Box) -> float:
    return max(box[2] - box[0], box[3] - box[1])


# ---------------------------------------------------------------- where faces are


def _given(
    boxes: NDArray[np.float64], times_s: NDArray[np.float64], size: tuple[int, ...]
) -> Finder:
    """The boxes nearest in time, where they are near enough."""
    height, width = size
    outside = (
        (boxes[:, 1] >= width) | (boxes[:, 2] >= height) | (boxes[:, 3] <= 0) | (boxes[:, 4] <= 0)
    )
    if outside.any():
        raise SampleError(
            Reason.BAD_METADATA, f"faces: a box lies outside of the {width}x{height} picture"
        )
    # What the crop costs must not depend on what the metadata claims.
    corners = np.clip(boxes[:, 1:], 0, [width, height, width, height])

    def find(number: int, _: Box | None) -> list[Box]:
        away = np.abs(boxes[:, 0] - times_s[number])
        near = (away <= BOX_REACH_S) & (away == away.min(initial=np.inf))
        return [_box(row) for row in corners[near]]

    return find


def _box(row: NDArray[np.float64]) -> Box:
    x0, y0, x1, y1 = (float(value) for value in row)
    return x0, y0, x1, y1


@functools.cache
def _haar() -> cv2.CascadeClassifier:
    return cv2.CascadeClassifier(str(Path(cv2.__file__).parent / "data" / HAAR_FILE))


def _haar_finder(frames: Frames) -> Finder:
    """Faces by Viola and Jones (2001): around the last one, in the whole frame where it is lost.

    A search around the last face, in a picture just large enough for it, costs a tenth of one of
    the whole frame.
    """

    def find(number: int, last: Box | None) -> list[Box]:
        frame = frames[number]
        height, width = frame.shape[:2]
        if last is not None:
            side = side_of(last)
            near = _haar_detect(frame, _around(last, width, height), side / 1.6, 48 / side)
            if near:
                return near
        whole = (0.0, 0.0, float(width), float(height))
        return _haar_detect(frame, whole, min(height, width) / 8, DETECT_PX / max(height, width))

    return find


def _around(box: Box, width: int, height: int) -> Box:
    (x, y), reach = centre_of(box), 1.1 * side_of(box)
    return max(0.0, x - reach), max(0.0, y - reach), min(width, x + reach), min(height, y + reach)


def _haar_detect(frame: NDArray[np.uint8], region: Box, least_px: float, scale: float) -> list[Box]:
    """Faces in a region of a frame, at least so large, searched at a scale of 1 or less."""
    scale = min(1.0, scale)
    left, top, right, bottom = (round(edge) for edge in region)
    grey = cv2.cvtColor(_shrunk(frame[top:bottom, left:right], scale), cv2.COLOR_RGB2GRAY)
    least = max(HAAR_LEAST_PX, round(least_px * scale))
    found = _haar().detectMultiScale(grey, 1.2, 4, minSize=(least, least))
    return [
        (left + x / scale, top + y / scale, left + (x + w) / scale, top + (y + h) / scale)
        for x, y, w, h in np.reshape(found, (-1, 4)).tolist()
    ]


def _shrunk(picture: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    if scale == 1.0:
        return picture
    size = [max(1, round(scale * side)) for side in picture.shape[1::-1]]
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


@functools.cache
def _yunet(path: str) -> cv2.FaceDetectorYN:
    try:
        detector = cv2.FaceDetectorYN.create(path, "", (DETECT_PX, DETECT_PX), YUNET_SCORE)
        detector.detect(np.zeros((DETECT_PX, DETECT_PX, 3), np.uint8))  # another net fails here
        return detector
    except cv2.error as error:
        raise SpecError(
            f"`clip.face_detector` is {path!r}, which OpenCV cannot use as a YuNet model: "
            f"{str(error).strip()[:200]}"
        ) from error


def _yunet_finder(frames: Frames, path: str) -> Finder:
    """Faces by YuNet (Wu et al., 2023), each frame searched whole."""
    detector = _yunet(path)

    def find(number: int, _: Box | None) -> list[Box]:
        scale = min(1.0, DETECT_PX / max(frames.shape[1:3]))
        picture = cv2.cvtColor(_shrunk(frames[number], scale), cv2.COLOR_RGB2BGR)
        detector.setInputSize(picture.shape[1::-1])
        _, found = detector.detect(picture)
        if found is None:
            return []
        return [
            (x / scale, y / scale, (x + w) / scale, (y + h) / scale)
            for x, y, w, h in found[:, :4].tolist()
        ]

    return find
