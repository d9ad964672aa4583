"""Clips cut from a film keep sound and pictures in step; unusable pieces are rejected."""

import io
import json
from pathlib import Path

import av
import numpy as np
import pytest

from liser_dist.config.ingest import CutSpec, FaceSpec, NormaliseSpec
from liser_dist.config.stream import ClipSpec
from liser_dist.data.decode import decode_clip
from liser_dist.errors import SampleError
from liser_dist.ingest.clip_maker import cut_clip
from liser_dist.ingest.film import MediaReader
from liser_dist.ingest.scan import scan_film
from liser_dist.records import Reason, Sample
from tests.films import Scene, talking_film
from tests.real import CLIPS, needs_clips

FACE, NORMALISE = FaceSpec(), NormaliseSpec()
# One white frame hides the face: those are few.
EVENTS_S = (2.0, 3.0, 4.0, 5.0)
SOURCES = {
    "mp4": {},
    "mov": {"container": "mov"},
    "mkv": {"container": "matroska"},
    "webm": {"container": "webm", "codecs": ("libvpx", "libopus")},
    "ts": {"container": "mpegts"},
    "avi": {"container": "avi", "codecs": ("mpeg4", "mp3")},
    "flv": {"container": "flv", "codecs": ("libx264", "aac")},
    "mp4 that starts late": {"from_s": 1.5},
    "mkv that starts late": {"container": "matroska", "from_s": 1.5},
}


def clip_of(video: bytes, piece=(1.0, 6.0), face=FACE, normalise=NORMALISE):
    with MediaReader.opened(io.BytesIO(video)) as film:
        return cut_clip(film, piece, face, normalise)


def played(video: bytes) -> tuple[list[tuple[float, np.ndarray]], np.ndarray]:
    """A clip's pictures with their times, and its sound."""
    with av.open(io.BytesIO(video)) as container:
        pictures = [(f.time, f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    with av.open(io.BytesIO(video)) as container:
        sound = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
    return pictures, sound


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(made, id=name, marks=() if name == "mp4" else pytest.mark.slow)
        for name, made in SOURCES.items()
    ],
)
def test_flash_and_click_coincide_in_a_clip(made):
    video = talking_film([Scene(7.0)], events_s=EVENTS_S, **made)
    clip = clip_of(video, normalise=NormaliseSpec(frames_per_s=24))  # every frame
    pictures, sound = played(clip.video)
    flashes = [time_s for time_s, picture in pictures if picture.mean() > 200]
    loud = (
        np.flatnonzero(np.abs(sound.astype(int)) > 0.85 * np.abs(sound.astype(int)).max()) / 16000
    )
    clicks = loud[np.diff(loud, prepend=-1.0) > 0.3]
    assert len(flashes) == len(clicks) == 4
    for flash_s in flashes:
        assert min(abs(clicks - flash_s)) <= 0.02


def test_a_clip_is_what_the_main_job_reads():
    clip = clip_of(talking_film([Scene(7.0)]))
    facts = json.loads(json.dumps(clip.facts))
    sample = Sample(
        key="k", shard="s", index=0, epoch=0, video=clip.video, faces=json.dumps(facts["faces"])
    )
    seen = decode_clip(sample, ClipSpec(faces=8, face_px=64), 0.0)
    assert seen.has_face.all()
    assert len(seen.waveform) == 3 * 16000
    assert (facts["start_s"], facts["end_s"]) == pytest.approx((1.0, 6.0), abs=0.05)
    with av.open(io.BytesIO(clip.video)) as container:
        assert container.streams.video[0].width == 224
        assert all(frame.key_frame for frame in container.decode(video=0))


def test_sound_is_not_coloured():
    video = talking_film([Scene(7.0)], "mov", ("libx264", "pcm_s16le"))
    _, sound = played(clip_of(video).video)
    with av.open(io.BytesIO(video)) as container:
        truth = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])[::3]
    # What the film was made of has no more than 16 kHz.
    assert np.corrcoef(sound[: 4 * 16000], truth[16000:][: 4 * 16000])[0, 1] > 0.99


def test_the_whole_picture_keeps_its_size_and_all_its_frames():
    clip = clip_of(talking_film([Scene(7.0)], events_s=EVENTS_S), normalise=None)
    pictures, _ = played(clip.video)
    assert {picture.shape for _, picture in pictures} == {(240, 480, 3)}
    assert len(pictures) == pytest.approx(5.0 * 24, abs=1)
    flashes = [time_s for time_s, picture in pictures if picture.mean() > 200]
    assert flashes == pytest.approx([1.0, 2.0, 3.0, 4.0], abs=0.02)
    _, x0, y0, x1, y1 = clip.facts["faces"][0]
    assert 0 <= x0 < x1 <= 480
    assert 0 <= y0 < y1 <= 240


@pytest.mark.parametrize(
    ("scene", "reason"),
    [
        (Scene(7.0, faces=0), Reason.NO_FACE),
        (Scene(7.0, face_px=34), Reason.NO_FACE),
        (Scene(7.0, faces=2), Reason.OTHER_FACES),
    ],
    ids=["nobody", "far away", "two"],
)
def test_what_is_no_clip_is_told_apart(scene, reason):
    with pytest.raises(SampleError) as error:
        clip_of(talking_film([scene]))
    assert error.value.reason == reason


def test_a_small_face_is_told_by_its_size():
    with pytest.raises(SampleError) as error:
        clip_of(talking_film([Scene(7.0)]), face=FaceSpec(least_px=470))
    assert error.value.reason == Reason.SMALL_FACE


@needs_clips
def test_a_mouth_that_says_something_else_is_told_apart():
    video = (CLIPS / "obama_speech.mp4").read_bytes()
    look = FaceSpec(alone=False, speaking=0.5)
    assert clip_of(video, (0.2, 8.5), look).facts["scores"]["speaking"] > 0.5
    with pytest.raises(SampleError) as error:
        clip_of(with_late_sound(video, 0.9), (0.2, 8.5), look)
    assert error.value.reason == Reason.NOT_SPEAKING


def with_late_sound(video: bytes, late_s: float) -> bytes:
    """A film that is dubbed with its own voice."""
    file = io.BytesIO()
    with av.open(io.BytesIO(video)) as film, av.open(file, "w", format="matroska") as output:
        streams = {stream: output.add_stream_from_template(stream) for stream in film.streams}
        for packet in film.demux():
            if packet.dts is None:
                continue
            if packet.stream.type == "audio":
                packet.pts += round(late_s / packet.time_base)
                packet.dts = packet.pts
            packet.stream = streams[packet.stream]
            output.mux(packet)
    return file.getvalue()


def test_speech_and_shots_are_found():
    scenes = [Scene(4.0, speech=False), Scene(5.0, shade=200), Scene(5.0, shade=30)]
    with MediaReader.opened(io.BytesIO(talking_film(scenes))) as film:
        scan = scan_film(film, CutSpec())
    assert scan.cuts_s == pytest.approx([4.0, 9.0], abs=0.05)
    heard_s = sum(end_s - start_s for start_s, end_s in scan.speech)
    assert heard_s > 8.0
    assert min(start_s for start_s, _ in scan.speech) > 3.5
    assert scan.length_s == pytest.approx(14.0, abs=0.1)


def test_a_file_that_is_none_is_unreadable(tmp_path: Path):
    with pytest.raises(SampleError) as error, MediaReader.opened(io.BytesIO(b"no film" * 100)):
        pass
    assert error.value.reason == Reason.UNREADABLE
