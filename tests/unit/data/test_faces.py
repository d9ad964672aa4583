"""Face crops: given boxes, found faces, one person."""

import av
import cv2
import numpy as np
import pytest

from liser_dist.config.stream import ClipSpec
from liser_dist.data.faces import (
    check_detector,
    crop_faces,
    crop_square,
    make_finder,
    parse_boxes,
)
from liser_dist.errors import SampleError, SpecError
from liser_dist.records import Reason
from tests.nets import face_net
from tests.real import CLIPS, needs_clips

SPEC = ClipSpec(face_px=32)


def _frames(name: str, count: int = 8) -> np.ndarray:
    with av.open(str(CLIPS / name)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack([pictures[i] for i in np.linspace(0, len(pictures) - 1, count).astype(int)])


def _times(frames: np.ndarray) -> np.ndarray:
    return np.arange(len(frames)) * 0.4


@pytest.mark.parametrize(
    "text", ["{", "{}", "3", "[[1, 2, 3]]", '[["a", 0, 0, 1, 1]]', "[[0, 5, 5, 5, 9]]", "[[[[1]]]]",
             "[[0, 0, 0, 1, NaN]]", "[[1,2,3,4,5],[1]]", "[" * 100_000],
)  # fmt: skip
def test_metadata_that_is_no_list_of_boxes_is_refused(text):
    with pytest.raises(SampleError) as error:
        parse_boxes(text)
    assert error.value.reason == Reason.BAD_METADATA


def test_no_metadata_and_no_face_are_told_apart():
    assert parse_boxes("") is None
    assert parse_boxes("[]").shape == (0, 5)


def test_given_boxes_hold_for_half_a_second():
    frames = np.full((5, 60, 80, 3), 200, np.uint8)
    times = np.array([0.0, 0.4, 0.9, 1.4, 2.0])
    crops, has_face = crop_faces(frames, times, parse_boxes("[[0.5, 20, 20, 40, 40]]"), SPEC)
    assert has_face.tolist() == [True, True, True, False, False]
    assert crops.shape == (5, 32, 32, 3)
    assert crops[0].min() == 200
    assert crops[4].max() == 0


def test_no_boxes_means_no_face_even_where_one_could_be_found():
    frames = np.full((2, 60, 80, 3), 200, np.uint8)
    _, has_face = crop_faces(frames, np.zeros(2), parse_boxes("[]"), SPEC)
    assert not has_face.any()


def test_a_box_outside_of_the_picture_is_refused():
    frames = np.zeros((1, 60, 80, 3), np.uint8)
    with pytest.raises(SampleError, match="outside of the 80x60"):
        crop_faces(frames, np.zeros(1), parse_boxes("[[0, 100, 10, 140, 50]]"), SPEC)


def test_a_monstrous_box_costs_no_more_than_the_picture():
    frames = np.full((1, 60, 80, 3), 9, np.uint8)
    crops, _ = crop_faces(frames, np.zeros(1), parse_boxes("[[0, -1e9, -1e9, 1e9, 1e9]]"), SPEC)
    assert crops.min() == crops.max() == 9


def test_the_crop_is_square_with_a_margin_and_repeats_the_edge():
    frame = np.zeros((100, 100, 3), np.uint8)
    frame[:, :50, 0] = 250
    crop = crop_square(frame, (0.0, 40.0, 20.0, 60.0), 24)  # 24 px wide from -2 on
    assert crop.shape == (24, 24, 3)
    assert crop[..., 0].min() == 250
    middle = crop_square(frame, (40.0, 40.0, 60.0, 60.0), 24)  # from 38 to 62
    assert middle[0, :, 0].tolist() == [250] * 12 + [0] * 12


def test_one_person_is_followed_though_another_is_larger_later():
    frames = np.zeros((3, 100, 200, 3), np.uint8)
    frames[:, :, :100, 0] = 255  # who is on the left is red, who is on the right is blue
    frames[:, :, 100:, 2] = 255
    boxes = "".join(
        f"[{t},20,20,60,60],[{t},120,20,{right},{right - 100}],"
        for t, right in ((0, 150), (1, 190))
    )
    crops, has_face = crop_faces(
        frames[:2], np.array([0.0, 1.0]), parse_boxes(f"[{boxes[:-1]}]"), SPEC
    )
    assert has_face.all()
    assert crops[:, 16, 16].tolist() == [[255, 0, 0]] * 2


@needs_clips
@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("single_face.mp4", 8, 8), ("obama_speech.mp4", 7, 8),
     pytest.param("franck.mp4", 7, 8, marks=pytest.mark.slow),
     ("no_face.mp4", 0, 0), ("noface_face.mov", 2, 4), ("face_noface.mov", 2, 4)],
)  # fmt: skip
def test_haar_finds_the_faces_of_real_clips_and_no_others(name, least, most):
    frames = _frames(name)
    crops, has_face = crop_faces(frames, _times(frames), None, SPEC)
    assert least <= has_face.sum() <= most
    assert (crops.reshape(len(crops), -1).max(axis=1) > 0).tolist() == has_face.tolist()


@needs_clips
def test_of_two_faces_the_same_one_is_kept():
    frames = _frames("obama_speech.mp4")
    crops, has_face = crop_faces(frames, _times(frames), None, ClipSpec(face_px=64))
    grey = [cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)[:20].mean() for crop in crops[has_face]]
    assert np.ptp(grey) < 60  # dark hair throughout; the other man's is white


def test_a_missing_detector_is_refused_by_its_field(tmp_path):
    with pytest.raises(SpecError, match=r"`clip.face_detector`.*no such file"):
        check_detector(str(tmp_path / "yunet.onnx"), "clip.face_detector")


def test_a_file_that_is_no_detector_is_refused_by_its_field(tmp_path):
    file = tmp_path / "yunet.onnx"
    file.write_bytes(b"not a model")
    with pytest.raises(SpecError, match=r"`clip.face_detector`.*cannot use"):
        check_detector(str(file), "clip.face_detector")


@pytest.mark.parametrize("field", ["clip.face_detector", "face.detector"])
def test_another_net_than_a_detector_is_refused_by_its_field(tmp_path, field):
    file = face_net(tmp_path / "classifier.onnx")
    with pytest.raises(SpecError, match=f"`{field}`.*cannot use"):
        check_detector(str(file), field)
    with pytest.raises(SpecError, match=f"`{field}`.*cannot use"):
        make_finder(np.zeros((1, 60, 80, 3), np.uint8), str(file), field)
