"""Draws the faces of the synthetic corpus: the frames of a clip and a box around the head in each.

They follow from the mood of the face (see `voices.py`) and from how far speech opens the mouth. The
face is drawn in head units (half the width of the head is 1), rotated, moved and scaled into a
picture of 128 x 128 pixels. Lighting, blur and camera noise are added to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from liser_dist.data.media import Pixels
from liser_dist.synthetic.voices import FACE_DIMS, FloatArray, Person

FRAME_PX = 128
FRAMES_PER_S = 8

_SUBPIXEL_BITS = 4  # cv2 takes fixed-point coordinates
_ANGLES = np.linspace(0, 2 * np.pi, 40, endpoint=False)
_CIRCLE = np.stack((np.cos(_ANGLES), np.sin(_ANGLES)), axis=1)

_Colour = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class _Pose:
    """Position, size and rotation of the head in one frame."""

    centre_px: FloatArray  # [2]
    scale_px: float  # half the head's width
    turn: FloatArray  # [2, 2] rotation

    def place(self, points: FloatArray) -> NDArray[np.int32]:
        """Convert points [n, 2] in head units to fixed-point pixels."""
        pixels = self.centre_px + self.scale_px * points @ self.turn.T
        return np.asarray(np.round(pixels * 2**_SUBPIXEL_BITS), np.int32)


def draw_background(rng: np.random.Generator) -> Pixels:
    """Draw a room out of focus: [128, 128, 3] RGB."""
    corners = rng.uniform(30, 220, (2, 2, 3)).astype(np.float32)
    room = cv2.resize(corners, (FRAME_PX, FRAME_PX), interpolation=cv2.INTER_LINEAR)
    for _ in range(rng.integers(2, 6)):
        start = rng.integers(0, FRAME_PX, 2)
        end = start + rng.integers(10, 60, 2)
        colour = rng.uniform(20, 230, 3).tolist()
        cv2.rectangle(room, start.tolist(), end.tolist(), colour, -1)
    return np.asarray(cv2.GaussianBlur(room, (0, 0), 3), np.uint8)


def draw_clip(
    person: Person | None,
    face: FloatArray,
    opening: FloatArray,
    shifted: bool,
    rng: np.random.Generator,
) -> tuple[Pixels, FloatArray]:
    """Draw the frames of a clip.

    Args:
        person: the speaker; None for an empty room.
        face: the face part of the mood, [FACE_DIMS].
        opening: how far speech opens the mouth in each frame, [n] in 0..1.
        shifted: True for the stronger variations of clips as found on the web.
        rng: random generator.

    Returns:
        Frames [n, 128, 128, 3] RGB, and head boxes [n, 4] (x0, y0, x1, y1) in pixels; no box
        without a person.
    """
    frames = [draw_background(rng)] * len(opening)
    boxes = np.empty((0, 4))
    if person is not None:
        poses = _draw_poses(len(opening), rng)
        moods = _vary_mood(face, len(opening), rng)
        frames = [
            _draw_head(frame.copy(), person, pose, mood, mouth)
            for frame, pose, mood, mouth in zip(frames, poses, moods, opening, strict=True)
        ]
        boxes = np.stack([_head_box(person, pose, rng) for pose in poses])
    return _photograph(np.stack(frames), shifted, rng), boxes


def _draw_poses(count: int, rng: np.random.Generator) -> list[_Pose]:
    """Draw the poses of a swaying head, one per frame."""
    centre = rng.uniform((50, 56), (78, 70))
    scale = rng.uniform(25, 33)
    tilt, sway = rng.normal(0, 0.1), rng.uniform(0, 2 * np.pi, 3)
    poses = []
    for number in range(count):
        swing = np.sin(number / FRAMES_PER_S * np.array((2.1, 1.6, 2.6)) + sway)
        angle = tilt + 0.06 * swing[2]
        turn = np.array(((np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))))
        poses.append(_Pose(centre + (3, 2) * swing[:2], scale, turn))
    return poses


def _vary_mood(face: FloatArray, count: int, rng: np.random.Generator) -> FloatArray:
    """Return the mood of each frame, [n, FACE_DIMS]: it rises, falls and varies at random."""
    rise = 0.85 + 0.3 * np.sin(np.linspace(0, np.pi, count) + rng.normal(0, 0.4))
    return rise[:, None] * face + rng.normal(0, 0.3, (count, FACE_DIMS))


def _head_box(person: Person, pose: _Pose, rng: np.random.Generator) -> FloatArray:
    """Return the box that a detector would give for the head."""
    half = np.array((1.0, 1.3 + 0.08 * person.shape[0])) * pose.scale_px
    half = half * rng.normal(1, 0.03, 2)
    centre = pose.centre_px + rng.normal(0, 1, 2)
    return np.clip(np.concatenate((centre - half, centre + half)), 0, FRAME_PX)


def _draw_head(
    frame: Pixels, person: Person, pose: _Pose, mood: FloatArray, speech_opening: float
) -> Pixels:
    """Draw the head on a frame, from back to front, and return the frame."""
    aspect, _, _, _, _, hairline = person.shape
    skin: _Colour = tuple(person.skin.tolist())
    hair: _Colour = tuple(person.hair.tolist())
    height = 1.3 + 0.08 * aspect
    _fill(frame, pose, _CIRCLE * (0.45, 0.9) + (0, height), _shade(skin, 0.8))
    _fill(frame, pose, _CIRCLE * (1.12, 0.95 * height) - (0, 0.25), hair)
    _fill(frame, pose, _CIRCLE * (1.0, height), skin)
    top = _CIRCLE * (1.02, height * 1.01)
    _fill(frame, pose, top[top[:, 1] < -0.78 + 0.12 * hairline], hair)
    for side in (-1.0, 1.0):
        _draw_eye(frame, person, pose, mood, side)
    _stroke(frame, pose, np.array(((0.0, -0.1), (0.09, 0.28), (-0.07, 0.3))), _shade(skin, 0.7), 1)
    _draw_sneer(frame, pose, mood[5], _shade(skin, 0.62))
    _draw_mouth(frame, person, pose, mood, speech_opening)
    return frame


def _draw_eye(frame: Pixels, person: Person, pose: _Pose, mood: FloatArray, side: float) -> None:
    """Draw an eye and its brow; the inner end of the brow is on the side of the nose."""
    _, size, distance, _, weight, _ = person.shape
    centre = np.array((side * (0.4 + 0.04 * distance), -0.2))
    half_height = 0.115 * (1 + 0.12 * size) * np.exp(0.4 * np.clip(mood[4], -2.5, 2.5))
    _fill(frame, pose, centre + _CIRCLE * (0.2, half_height), (240.0, 240.0, 235.0))
    _fill(frame, pose, centre + _CIRCLE * (0.09, min(0.09, half_height)), (45.0, 35.0, 30.0))
    lift = -0.5 - 0.1 * mood[2]
    inner, outer = lift - 0.1 * mood[3], lift + 0.07 * mood[3]
    brow = np.array(((side * 0.15, inner), (side * 0.4, lift - 0.05), (side * 0.65, outer)))
    _stroke(frame, pose, brow, _shade(tuple(person.hair.tolist()), 0.7), 3 if weight > 0 else 2)


def _draw_sneer(frame: Pixels, pose: _Pose, sneer: float, colour: _Colour) -> None:
    """Draw the folds beside a wrinkled nose, longer for a stronger sneer."""
    length = 0.1 + 0.13 * np.clip(sneer, -0.5, 3)
    for side in (-1.0, 1.0):
        fold = np.array(((side * 0.16, 0.2), (side * (0.2 + length), 0.24 + 0.8 * length)))
        _stroke(frame, pose, fold, colour, 1)


def _draw_mouth(
    frame: Pixels, person: Person, pose: _Pose, mood: FloatArray, speech_opening: float
) -> None:
    """Draw lips that curve with the mood and open with the mood and the syllables."""
    half_width = 0.42 * (1 + 0.12 * person.shape[3] + 0.05 * mood[0])
    along = np.linspace(-1, 1, 13)
    bend = 0.13 * mood[0] * (0.5 - along**2)
    gap = 0.07 * np.exp(0.5 * np.clip(mood[1], -2.5, 2.5)) + 0.14 * speech_opening
    upper_lift = 0.05 * np.clip(mood[5], -1, 3)
    middle = 0.68 + bend
    upper = np.stack((along * half_width, middle - (0.5 * gap + upper_lift) * (1 - along**2)), 1)
    lower = np.stack((along * half_width, middle + gap * (1 - along**2)), 1)
    outline = np.concatenate((upper, lower[::-1]))
    _fill(frame, pose, outline, (70.0, 25.0, 30.0))
    lips = _shade(tuple((person.skin * (0.85, 0.55, 0.55)).tolist()), 1.0)
    _stroke(frame, pose, np.concatenate((outline, outline[:1])), lips, 2)


def _photograph(frames: Pixels, shifted: bool, rng: np.random.Generator) -> Pixels:
    """Add light from one side, blur and noise; more of each if `shifted`."""
    strength = 1.6 if shifted else 1.0
    slope = rng.normal(0, 0.12 * strength, 2)
    across = np.linspace(-1, 1, FRAME_PX)
    light = rng.uniform(1 - 0.2 * strength, 1 + 0.15 * strength)
    light = light + slope[0] * across[:, None] + slope[1] * across[None, :]
    blur_px = rng.uniform(0.3, 0.7 * strength)
    # One sheet of noise is moved from frame to frame: drawing a new one each time would cost more
    # than drawing the face.
    sheet = rng.normal(0, rng.uniform(2, 4) * strength, (FRAME_PX, FRAME_PX, 1)).astype(np.float32)
    scale = light[:, :, None].astype(np.float32)
    filmed = np.empty_like(frames)
    for number, frame in enumerate(frames):
        soft = cv2.GaussianBlur(frame, (0, 0), blur_px).astype(np.float32)
        noise = np.roll(sheet, rng.integers(0, FRAME_PX, 2), axis=(0, 1))
        filmed[number] = np.clip(soft * scale + noise, 0, 255)
    return filmed


def _shade(colour: _Colour, share: float) -> _Colour:
    red, green, blue = colour
    return red * share, green * share, blue * share


def _fill(frame: Pixels, pose: _Pose, points: FloatArray, colour: _Colour) -> None:
    if len(points) > 2:
        cv2.fillPoly(frame, [pose.place(points)], colour, cv2.LINE_AA, _SUBPIXEL_BITS)


def _stroke(frame: Pixels, pose: _Pose, points: FloatArray, colour: _Colour, width_px: int) -> None:
    placed = [pose.place(points)]
    cv2.polylines(frame, placed, False, colour, width_px, cv2.LINE_AA, _SUBPIXEL_BITS)
