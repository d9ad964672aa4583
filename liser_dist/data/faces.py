"""Crops the face of one person from a clip's frames.

1. where faces are: the sample's own boxes, or a detector of OpenCV (Haar, or a YuNet file)
2. one person: the largest face at first, then the one nearest to the last box
3. a square crop with a margin, resized; zeros where this person is not visible
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from liser_dist.config.stream import ClipSpec
from liser_dist.errors import SampleError, SpecError
from liser_dist.records import Clip, Reason

Frames = NDArray[np.uint8]  # [n, height, width, 3] RGB
Crops = NDArray[np.uint8]  # [n, px, px, 3] RGB, zeros without a face
Flags = NDArray[np.bool_]  # [n]
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the frame
FaceFinder = Callable[[int, Box | None], list[Box]]  # (frame, last box) -> faces in it

_CROP_MARGIN = 1.2  # side of the crop by that of the box
_BOX_REACH_S = 0.5  # how far in time a given box holds
_DETECT_PX = 320  # longest side of the picture in which faces are detected
_HAAR_FILE = "haarcascade_frontalface_default.xml"
_HAAR_WINDOW_PX = 24  # side of the cascade's own window
_YUNET_SCORE = 0.7


def parse_boxes(text: str) -> NDArray[np.float64] | None:
    """Parse a sample's `faces`.

    Returns:
        [boxes, 5] with t_s, x0, y0, x1, y1; None if the sample does not say where faces are.

    Raises:
        SampleError: BAD_METADATA, if the JSON is not a list of such boxes.
    """
    if not text:
        return None
    try:
        boxes = np.array(json.loads(text), np.float64)
    except (ValueError, TypeError, RecursionError) as error:
        raise SampleError(Reason.BAD_METADATA, f"`faces` cannot be parsed: {error}") from error
    if boxes.size == 0 and boxes.ndim == 1:
        return np.empty((0, 5))
    if boxes.ndim != 2 or boxes.shape[1] != 5:
        raise SampleError(
            Reason.BAD_METADATA,
            f"`faces` has the shape {list(boxes.shape)} instead of [n, 5]: t_s, x0, y0, x1, y1",
        )
    empty = (boxes[:, 3] <= boxes[:, 1]) | (boxes[:, 4] <= boxes[:, 2])
    if not np.isfinite(boxes).all() or empty.any():
        raise SampleError(Reason.BAD_METADATA, "`faces` has a box that is empty or not finite")
    return boxes


def check_detector(detector: str, field: str) -> None:
    """Check that a face detector can be loaded, before any clip is decoded.

    Args:
        detector: "haar", or the path of a YuNet model.
        field: the spec's field that names it, for the error message.

    Raises:
        SpecError: there is no YuNet model at the path.
    """
    if detector == "haar":
        return
    if not Path(detector).is_file():
        raise SpecError(
            f"`{field}` is {detector!r}: no such file; set it to 'haar', or to the path of a "
            "YuNet .onnx file that every node can read"
        )
    _load_yunet(detector, field)


def make_finder(frames: Frames, detector: str, field: str) -> FaceFinder:
    """Return a function that finds the faces in these frames.

    Raises:
        SpecError: the detector, which the spec's `field` names, cannot be loaded.
    """
    return _haar_finder(frames) if detector == "haar" else _yunet_finder(frames, detector, field)


def follow_face(find: FaceFinder, frames: int, detector: str) -> list[Box | None]:
    """Return the box of one person in each frame, None where the person is not visible."""
    return _follow(find, frames, 1.0, min(2, frames) if detector == "haar" else 1)


def crop_faces(
    frames: Frames, times_s: NDArray[np.float64], boxes: NDArray[np.float64] | None, spec: ClipSpec
) -> tuple[Crops, Flags]:
    """Crop the face of one person.

    Args:
        frames: [n, height, width, 3] RGB.
        times_s: [n], time of each frame.
        boxes: from `parse_boxes`; None runs the face detector.
        spec: size of the crops, and the detector.

    Returns:
        The crops [n, px, px, 3], and [n] whether there is a face.

    Raises:
        SampleError: BAD_METADATA, if a given box lies outside of the picture.
        SpecError: the detector cannot be loaded.
    """
    if boxes is not None:
        track = _follow(_given(boxes, times_s, frames.shape[1:3]), len(frames), np.inf, 1)
    else:
        find = make_finder(frames, spec.face_detector, "clip.face_detector")
        track = follow_face(find, len(frames), spec.face_detector)
    crops = np.zeros((len(frames), spec.face_px, spec.face_px, 3), np.uint8)
    for crop, frame, box in zip(crops, frames, track, strict=True):
        if box is not None:
            crop[:] = crop_square(frame, box, spec.face_px)
    return crops, np.array([box is not None for box in track], np.bool_)


def shrink_faces(clip: Clip, px: int) -> NDArray[np.uint8]:
    """Return the student's face input: [n * px * px] grey, of the frames that have a face."""
    grey = [cv2.cvtColor(face, cv2.COLOR_RGB2GRAY) for face in clip.faces[clip.has_face]]
    small = [cv2.resize(face, (px, px), interpolation=cv2.INTER_AREA) for face in grey]
    return np.array(small, np.uint8).ravel()


def crop_square(
    frame: NDArray[np.uint8], box: Box, px: int, margin: float = _CROP_MARGIN
) -> NDArray[np.uint8]:
    """Return the box with its margin as [px, px, 3]; pixels outside the picture repeat its edge."""
    height, width = frame.shape[:2]
    side = max(2, round(margin * side_of(box)))
    left, top = (round(centre - side / 2) for centre in centre_of(box))
    right, bottom = left + side, top + side
    inside = frame[max(0, top) : min(height, bottom), max(0, left) : min(width, right)]
    beyond = (max(0, -top), max(0, bottom - height), max(0, -left), max(0, right - width))
    if any(beyond):
        inside = cv2.copyMakeBorder(inside, *beyond, cv2.BORDER_REPLICATE)
    interpolation = cv2.INTER_AREA if side > px else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(inside, (px, px), interpolation=interpolation), np.uint8)


# ---------------------------------------------------------------- one track


def _follow(find: FaceFinder, frames: int, reach: float, min_frames: int) -> list[Box | None]:
    """Return one person's box in each frame.

    Args:
        find: finds the faces in a frame.
        frames: number of frames.
        reach: how far a face moves between two frames, in sides of its box.
        min_frames: a track with fewer boxes is a false detection; the search goes on behind it.
    """
    start = 0
    while start < frames:
        track = [None] * start + _follow_from(find, start, frames, reach)
        visible = [number for number, box in enumerate(track) if box is not None]
        if len(visible) >= min(min_frames, frames):
            return track
        start = visible[0] + 1 if visible else frames
    return [None] * frames


def _follow_from(find: FaceFinder, start: int, frames: int, reach: float) -> list[Box | None]:
    last: Box | None = None
    track: list[Box | None] = []
    for number in range(start, frames):
        box = _choose(find(number, last), last, reach)
        last = box or last
        track.append(box)
    return track


def _choose(faces: list[Box], last: Box | None, reach: float) -> Box | None:
    """Return the largest face at first, later the nearest to the last of about its size."""
    if last is None:
        return max(faces, key=side_of, default=None)
    followed = last
    near = [box for box in faces if _distance(box, followed) <= reach]
    return min(near, key=lambda box: _distance(box, followed), default=None)


def _distance(box: Box, other: Box) -> float:
    """Return a distance in sides of `other`; being twice or half its size counts as one side."""
    (x, y), (other_x, other_y) = centre_of(box), centre_of(other)
    moved = float(np.hypot(x - other_x, y - other_y)) / side_of(other)
    return max(moved, abs(float(np.log2(side_of(box) / side_of(other)))))


def centre_of(box: Box) -> tuple[float, float]:
    """Return the centre of a box."""
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def side_of(box: Box) -> float:
    """Return the longer side of a box."""
    return max(box[2] - box[0], box[3] - box[1])


# ---------------------------------------------------------------- where faces are


def _given(
    boxes: NDArray[np.float64], times_s: NDArray[np.float64], size: tuple[int, ...]
) -> FaceFinder:
    """Find the given boxes that are nearest in time, within _BOX_REACH_S."""
    height, width = size
    outside = (
        (boxes[:, 1] >= width) | (boxes[:, 2] >= height) | (boxes[:, 3] <= 0) | (boxes[:, 4] <= 0)
    )
    if outside.any():
        raise SampleError(
            Reason.BAD_METADATA, f"`faces` has a box outside of the {width}x{height} picture"
        )
    # Clipped, so that metadata cannot ask for a crop of any size.
    corners = np.clip(boxes[:, 1:], 0, [width, height, width, height])

    def find(number: int, _: Box | None) -> list[Box]:
        away = np.abs(boxes[:, 0] - times_s[number])
        near = (away <= _BOX_REACH_S) & (away == away.min(initial=np.inf))
        return [_box(row) for row in corners[near]]

    return find


def _box(row: NDArray[np.float64]) -> Box:
    x0, y0, x1, y1 = (float(value) for value in row)
    return x0, y0, x1, y1


@functools.cache
def _haar() -> cv2.CascadeClassifier:
    return cv2.CascadeClassifier(str(Path(cv2.__file__).parent / "data" / _HAAR_FILE))


def _haar_finder(frames: Frames) -> FaceFinder:
    """Find faces by Viola and Jones (2001), around the last one or else in the complete frame.

    A search around the last face, in a picture just large enough for it, costs a tenth of a search
    of the complete frame.
    """

    def find(number: int, last: Box | None) -> list[Box]:
        frame = frames[number]
        height, width = frame.shape[:2]
        if last is not None:
            side = side_of(last)
            near = _haar_detect(frame, _around(last, width, height), side / 1.6, 48 / side)
            if near:
                return near
        everywhere = (0.0, 0.0, float(width), float(height))
        return _haar_detect(
            frame, everywhere, min(height, width) / 8, _DETECT_PX / max(height, width)
        )

    return find


def _around(box: Box, width: int, height: int) -> Box:
    (x, y), reach = centre_of(box), 1.1 * side_of(box)
    return max(0.0, x - reach), max(0.0, y - reach), min(width, x + reach), min(height, y + reach)


def _haar_detect(frame: NDArray[np.uint8], region: Box, min_px: float, scale: float) -> list[Box]:
    """Return the faces in a region that have `min_px`, detected at a scale of at most 1."""
    scale = min(1.0, scale)
    left, top, right, bottom = (round(edge) for edge in region)
    grey = cv2.cvtColor(_shrink(frame[top:bottom, left:right], scale), cv2.COLOR_RGB2GRAY)
    min_side = max(_HAAR_WINDOW_PX, round(min_px * scale))
    faces = _haar().detectMultiScale(grey, 1.2, 4, minSize=(min_side, min_side))
    return [
        (left + x / scale, top + y / scale, left + (x + w) / scale, top + (y + h) / scale)
        for x, y, w, h in np.reshape(faces, (-1, 4)).tolist()
    ]


def _shrink(picture: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    if scale == 1.0:
        return picture
    size = [max(1, round(scale * side)) for side in picture.shape[1::-1]]
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def _load_yunet(path: str, field: str) -> cv2.FaceDetectorYN:
    try:
        return _yunet(path)
    except cv2.error as error:
        raise SpecError(
            f"`{field}` is {path!r}, which OpenCV cannot use as a YuNet model "
            f"({str(error).strip()[:200]}): give another file, or 'haar'"
        ) from error


@functools.cache
def _yunet(path: str) -> cv2.FaceDetectorYN:
    detector = cv2.FaceDetectorYN.create(path, "", (_DETECT_PX, _DETECT_PX), _YUNET_SCORE)
    detector.detect(np.zeros((_DETECT_PX, _DETECT_PX, 3), np.uint8))  # another net fails here
    return detector


def _yunet_finder(frames: Frames, path: str, field: str) -> FaceFinder:
    """Find faces by YuNet (Wu et al., 2023), always in the complete frame."""
    detector = _load_yunet(path, field)

    def find(number: int, _: Box | None) -> list[Box]:
        scale = min(1.0, _DETECT_PX / max(frames.shape[1:3]))
        picture = cv2.cvtColor(_shrink(frames[number], scale), cv2.COLOR_RGB2BGR)
        detector.setInputSize(picture.shape[1::-1])
        _, faces = detector.detect(picture)
        if faces is None:
            return []
        return [
            (x / scale, y / scale, (x + w) / scale, (y + h) / scale)
            for x, y, w, h in faces[:, :4].tolist()
        ]

    return find
