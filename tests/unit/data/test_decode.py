"""Decoding keeps sound and frames in step, and rejects unusable files in a child process."""

import io
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from liser_dist.config.base import EMOTIONS
from liser_dist.config.stream import ClipSpec
from liser_dist.data.clip_decoder import ClipDecoder

# Decord comes from where it is imported without NVIDIA's libraries, which crash torch later.
from liser_dist.data.decode import decode_clip, decode_window, decord
from liser_dist.data.media import Encoding, encode_film
from liser_dist.errors import SampleError, SpecError
from liser_dist.records import Reason, Sample
from liser_dist.synthetic.voices import draw_mood, draw_person, draw_syllables, record, speak
from tests.real import CLIPS, needs_clips

HOSTILE = CLIPS / "hostile"
SPEC = ClipSpec(face_px=32)
RATE = SPEC.sample_rate_hz
NO_FACES = "[]"  # spares the search for them


def make_video(
    container: str = "mp4",
    codecs: tuple[str, str] = ("libx264", "aac"),
    *,
    duration_s: float = 4.0,
    fps: int = 30,
    size: tuple[int, int] = (64, 48),
    sound_from_s: float = 0.0,
    video_from_s: float = 0.0,
    events_s: tuple[float, ...] = (1.0, 2.0, 3.0),
    hiss: float = 0.001,
    gop: int | None = None,
    numbered: bool = False,
    kept: Callable[[int], bool] = lambda number: True,
) -> bytes:
    """A grey film whose left half is darker, with a white flash and a click at each event.

    `numbered`: the lower half tells frames apart. `kept`: the others are left out of their places.
    """
    rate = 48000
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        video = output.add_stream(codecs[0], rate=fps, width=size[0], height=size[1])
        video.pix_fmt = "yuv420p"
        video.gop_size = gop or video.gop_size
        sound = output.add_stream(codecs[1], rate=rate, layout="mono")
        packets = []
        for number in filter(kept, range(round(duration_s * fps))):
            time_s = number / fps + video_from_s
            flash = any(abs(time_s - event_s) < 0.5 / fps for event_s in events_s)
            picture = np.full((size[1], size[0], 3), 255 if flash else 60, np.uint8)
            if not flash:
                picture[:, : size[0] // 2] = 20
            if numbered:
                picture[size[1] // 2 :] = 37 * number % 256
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number + round(video_from_s * fps), Fraction(1, fps)
            packets += video.encode(frame)
        pcm = np.random.default_rng(0).normal(size=round(duration_s * rate)) * hiss
        for event_s in events_s:
            first = round((event_s - sound_from_s) * rate)
            if hiss and first >= 0:
                pcm[first : first + 48] = 0.9
        for first in range(0, len(pcm), 1024):
            piece = pcm[None, first : first + 1024].astype(np.float32)
            frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="mono")
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = first + round(sound_from_s * rate)
            packets += sound.encode(frame)
        packets += video.encode(None) + sound.encode(None)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            output.mux(packet)
    return file.getvalue()


def sample(video: bytes, key: str = "clip", **values: object) -> Sample:
    given = {"shard": "s.tar", "index": 3, "epoch": 1, "faces": NO_FACES, **values}
    return Sample(key=key, video=video, **given)


def real(path: Path) -> Sample:
    return sample(path.read_bytes(), key=path.name)


def reason(video: bytes, spec: ClipSpec = SPEC, **values: object) -> Reason:
    with pytest.raises(SampleError) as error:
        decode_clip(sample(video, **values), spec, 0.5)
    assert len(error.value.detail) <= 200
    assert error.value.detail.isprintable()
    return error.value.reason


def events(video: bytes, share: float) -> tuple[list, list]:
    """When flashes and when clicks begin, in seconds from the window's start."""
    window = decode_window(video, ClipSpec(faces=600, window_s=3.5), share)
    bright = window.frames.mean(axis=(1, 2, 3)) > 128
    times_s = window.times_s - window.times_s[0]
    flashes = times_s[1:][bright[1:] & ~bright[:-1]] + 0.5 / 30  # nearest: half a frame early
    loud = np.flatnonzero(np.abs(window.waveform.astype(int)) > 12000) / RATE
    clicks = loud[np.diff(loud, prepend=-1) > 0.2]
    return flashes.tolist(), clicks.tolist()


@pytest.fixture(scope="module")
def film() -> bytes:
    return make_video()


@pytest.fixture(scope="module")
def decoder():
    with ClipDecoder(SPEC) as started:
        yield started


# ---------------------------------------------------------------- windows


def test_a_clip_carries_what_its_sample_was(film):
    clip = decode_clip(sample(film, key="k", emotion="sad", speaker="s7"), SPEC, 0.5)
    assert (clip.key, clip.shard, clip.index, clip.epoch) == ("k", "s.tar", 3, 1)
    assert (clip.emotion, clip.speaker, clip.reason) == ("sad", "s7", "")
    assert clip.waveform.dtype == np.int16
    assert clip.waveform.shape == (3 * RATE,)
    assert clip.faces.shape == (8, 32, 32, 3)
    assert not clip.has_face.any()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_long_clip_gives_the_window_at_its_share(share):
    clip = decode_clip(sample(make_video(events_s=(1.5,))), SPEC, share)
    click = np.flatnonzero(np.abs(clip.waveform.astype(int)) > 12000)[0] / RATE
    assert click == pytest.approx(1.5 - share, abs=0.005)


def test_a_short_clip_is_given_whole_and_unpadded():
    clip = decode_clip(sample(make_video(duration_s=1.2)), SPEC, 0.7)
    assert len(clip.waveform) == pytest.approx(1.2 * RATE, abs=2)


def test_sound_that_starts_late_keeps_its_place():
    clip = decode_clip(sample(make_video(sound_from_s=0.5, duration_s=2.0)), SPEC, 0.0)
    assert not clip.waveform[: round(0.45 * RATE)].any()
    assert clip.waveform[round(0.55 * RATE) :].any()


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize(
    "made",
    [{}, {"sound_from_s": 0.5}, {"video_from_s": 0.5},
     {"container": "matroska", "sound_from_s": 0.4},
     {"container": "webm", "codecs": ("libvpx", "libopus")}],
    ids=str,
)  # fmt: skip
def test_flash_and_click_coincide(made, share):
    flashes, clicks = events(make_video(**made), share)
    assert len(clicks) >= 2
    assert flashes[: len(clicks)] == pytest.approx(clicks, abs=0.02)


@needs_clips
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_flash_and_click_coincide_in_a_clip_cut_between_key_frames(share):
    flashes, clicks = events((HOSTILE / "clickcut.mp4").read_bytes(), share)
    assert clicks == pytest.approx([0.5, 1.5, 2.5], abs=0.002)
    assert flashes[:3] == pytest.approx(clicks, abs=0.02)


def test_frames_of_a_variable_rate_are_found_by_their_time():
    # Thirty frames a second, then seven and a half, then three.
    def kept(number: int) -> bool:
        return number % (1 if number < 50 else 4 if number < 100 else 10) == 0

    video = make_video(duration_s=5.0, numbered=True, kept=kept)
    window = decode_window(video, ClipSpec(window_s=4.2, faces=4), 0.0)
    with av.open(io.BytesIO(video)) as container:
        truth = [
            (frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)
        ]
    for number, frame in enumerate(window.frames):
        wanted = (number + 0.5) * 1.05
        nearest = min(truth, key=lambda shown: abs(shown[0] - wanted))[1]
        assert np.array_equal(frame, nearest)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_turned_frames_come_out_upright(film, degrees):
    frame = decode_window(turned(film, degrees), SPEC, 0.0).frames[0]
    plain = np.zeros((48, 64), np.uint8)
    plain[:, 32:] = 1
    upright = np.rot90(plain, -degrees // 90)  # a player turns the picture clockwise
    assert frame.shape[:2] == upright.shape
    assert frame[upright == 1].mean() > frame[upright == 0].mean() + 20


def turned(video: bytes, degrees: int) -> bytes:
    """The film with a display matrix that has players turn it clockwise."""
    turns = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}
    a, b, c, d = (value * 65536 for value in turns[degrees])
    matrix = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4").tobytes()
    plain = np.array([65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30], ">i4").tobytes()
    track = video.index(b"tkhd")  # the first track is the film
    place = video.index(plain, track)
    return video[:place] + matrix + video[place + len(plain) :]


# ---------------------------------------------------------------- unusable clips


def test_unusable_bytes_are_told_apart(film):
    assert reason(b"") == Reason.EMPTY
    assert reason(bytes(5000)) == Reason.UNREADABLE
    assert reason(b"<html>403 Forbidden</html>" * 400) == Reason.UNREADABLE
    assert reason(film, faces="[[0, 1, 2]]") == Reason.BAD_METADATA


def test_a_file_that_is_cut_off_is_noticed():
    whole = make_video("matroska")
    assert reason(whole[: len(whole) * 6 // 10]) == Reason.TRUNCATED


def test_too_short_and_silent_clips_are_told_apart():
    assert reason(make_video(duration_s=0.3)) == Reason.TOO_SHORT
    assert reason(make_video(hiss=0.0)) == Reason.SILENT


def test_noise_is_no_speech(film):
    assert reason(film, ClipSpec(min_speech_s=0.5)) == Reason.NO_SPEECH


def test_speech_is_speech():
    draw = np.random.default_rng(2)
    person = draw_person("voice", draw)
    voice, _ = draw_mood(person, EMOTIONS[2], 1.0, draw)
    syllables = draw_syllables(person, voice, 4.0, draw)
    said = record(speak(person, voice, syllables, draw), False, draw)
    frames = np.zeros((32, 48, 64, 3), np.uint8)
    film = encode_film(frames, said, Encoding(8, 64, 48, RATE, 64_000))
    clip = decode_clip(sample(film), ClipSpec(min_speech_s=1.5), 0.5)
    assert len(clip.waveform) == 3 * RATE


def test_a_detector_that_is_not_there_is_the_users_mistake(tmp_path):
    with pytest.raises(SpecError, match=r"`clip.face_detector`"):
        ClipDecoder(ClipSpec(face_detector=str(tmp_path / "none.onnx")))


# ---------------------------------------------------------------- the guard

HOSTILE_OUTCOMES = {
    "audiolate.mp4": "",
    "clickcut.mp4": "",
    "empty.mp4": Reason.EMPTY,
    "garbage.mp4": Reason.UNREADABLE,
    "hevc.mp4": "",
    "html.mp4": Reason.UNREADABLE,
    "noaudio.mp4": Reason.NO_AUDIO,
    "novideo.mp4": Reason.NO_VIDEO,
    "rot90.mp4": "",
    "trunc_faststart.mp4": Reason.TRUNCATED,
    "vfr.mp4": "",
}


@needs_clips
@pytest.mark.parametrize("name", HOSTILE_OUTCOMES)
def test_each_hostile_file_has_its_outcome(decoder, name):
    clip = decoder.decode(real(HOSTILE / name), 0.5)
    assert clip.reason == HOSTILE_OUTCOMES[name], clip.detail
    assert bool(clip.waveform.size) == (not clip.rejected)
    assert (clip.key, clip.shard, clip.index, clip.epoch) == (name, "s.tar", 3, 1)


@needs_clips
def test_files_that_kill_cost_a_child_and_not_their_neighbours(decoder, film):
    lost = decoder.children_lost
    crashes = sorted(HOSTILE.glob("crash_*.mp4"))
    queue = [sample(film, key="good")]
    for path in crashes:
        queue += [real(path), sample(film, key="good"), sample(film, key="good")]
    clips = list(decoder.decode_all((item, 0.5) for item in queue))
    assert [clip.key for clip in clips] == [item.key for item in queue]
    assert {clip.reason for clip in clips if clip.key == "good"} == {""}
    bad = [clip for clip in clips if clip.key != "good"]
    assert all(clip.rejected for clip in bad)
    crashed = sum(clip.reason == Reason.CRASHED for clip in bad)
    assert crashed >= 1
    assert decoder.children_lost - lost == crashed


def test_the_guard_hands_back_what_decoding_gives(decoder, film):
    given = sample(film, faces="[[1.0, 10, 10, 40, 40]]")
    plain, guarded = decode_clip(given, SPEC, 0.5), decoder.decode(given, 0.5)
    for name in ("waveform", "faces", "has_face"):
        assert np.array_equal(getattr(plain, name), getattr(guarded, name)), name


def test_a_child_killed_between_two_clips_costs_none(film):
    with ClipDecoder(SPEC) as decoder:
        before = {child.pid for child in multiprocessing.active_children()}
        assert not decoder.decode(sample(film), 0.5).rejected
        (mine,) = {child.pid for child in multiprocessing.active_children()} - before
        os.kill(mine, signal.SIGKILL)
        clips = list(decoder.decode_all([(sample(film), 0.5)] * 8))
    assert [clip.reason for clip in clips] == [""] * 8


def test_a_child_is_renewed_after_so_many_clips(film):
    with ClipDecoder(SPEC, clips_per_child=3) as decoder:
        clips = list(decoder.decode_all([(sample(film), 0.5)] * 8))
        assert [clip.reason for clip in clips] == [""] * 8
        assert decoder.children_lost == 0


@pytest.fixture(scope="module")
def large_film() -> bytes:
    return make_video(codecs=("mpeg4", "aac"), size=(1920, 1080), fps=6, duration_s=32.0)


@pytest.mark.slow
def test_a_clip_that_takes_too_long_is_rejected_alone(film, large_film):
    spec = ClipSpec(decode_limit_s=0.3, faces=45, window_s=32.0)  # nearly three times the limit
    with ClipDecoder(spec) as decoder:
        decoder.decode(sample(film), 0.5)
        queue = [sample(large_film, faces=""), sample(film)]
        slow, quick = decoder.decode_all((item, 0.5) for item in queue)
        assert slow.reason == Reason.TIMEOUT
        assert "0.3 s" in slow.detail
        assert not quick.rejected
        assert decoder.children_lost == 1


@pytest.mark.slow
def test_a_clip_that_takes_too_much_memory_is_rejected_alone(film, large_film):
    spec = ClipSpec(decode_limit_bytes=256 * 2**20, faces=60)
    with ClipDecoder(spec) as decoder:
        queue = [sample(large_film), sample(film)]
        large, small = decoder.decode_all((item, 0.5) for item in queue)
        assert large.reason == Reason.TOO_LARGE, large.detail
        assert not small.rejected


def test_a_file_larger_than_memory_allows_is_not_even_sent():
    spec = ClipSpec(decode_limit_bytes=256 * 2**20)
    with ClipDecoder(spec) as decoder:
        clip = decoder.decode(sample(bytes(70 * 2**20)), 0.5)
    assert clip.reason == Reason.TOO_LARGE


def test_what_was_rejected_before_stays_so(decoder):
    lost = Sample(
        key="k", shard="s", index=0, epoch=0, reason=Reason.SHARD_DAMAGED, detail="cut tar"
    )
    clip = decoder.decode(lost, 0.5)
    assert (clip.reason, clip.detail) == (Reason.SHARD_DAMAGED, "cut tar")


def test_closing_ends_the_child(film):
    before = set(multiprocessing.active_children())
    decoder = ClipDecoder(SPEC)
    stream = decoder.decode_all([(sample(film), 0.5)] * 5)
    next(stream)  # with more on their way
    decoder.close()
    decoder.close()
    assert set(multiprocessing.active_children()) <= before


class FailingReader(decord.VideoReader):
    """Opens a file, and then reads no frame of it."""

    def get_batch(self, *_: object) -> None:
        raise RuntimeError("Error sending packet")


def test_frames_that_decord_cannot_get_come_by_another_way(film):
    plain = decode_window(film, SPEC, 0.5)
    other = decode_window(film, SPEC, 0.5, open_video=FailingReader)
    assert np.array_equal(plain.frames, other.frames)
    assert np.array_equal(plain.waveform, other.waveform)


def test_boxes_hold_at_the_clips_own_times(film):
    clip = decode_clip(sample(film, faces="[[1.0, 0, 0, 24, 24]]"), SPEC, 0.0)
    assert clip.has_face.tolist() == [abs((i + 0.5) * 0.375 - 1.0) <= 0.5 for i in range(8)]


def test_key_frames_stand_for_the_frames_around_them():
    # Bright at the key frames of a film that has one a second, and darker from one to the next.
    video = make_video(gop=30, events_s=(0.0, 1.0, 2.0, 3.0))
    window = decode_window(video, ClipSpec(frames="keyframes", faces=6, window_s=3.0), 0.0)
    assert window.times_s == pytest.approx([0.0, 1.0, 2.0, 3.0], abs=0.01)
    assert (window.frames.mean(axis=(1, 2, 3)) > 128).all()
    assert window.frame_of.tolist() == [0, 1, 1, 2, 2, 3]


def test_a_clip_repeats_the_face_of_a_key_frame_that_stands_for_two():
    video = make_video(gop=30, events_s=(0.0, 1.0, 2.0, 3.0))
    given = sample(video, faces="[[1.0, 10, 10, 40, 40]]")
    clip = decode_clip(given, ClipSpec(frames="keyframes", faces=6, window_s=3.0, face_px=32), 0.0)
    assert clip.has_face.tolist() == [False, True, True, False, False, False]
    assert np.array_equal(clip.faces[1], clip.faces[2])


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM])
def test_a_clip_whose_child_was_killed_from_outside_is_tried_again(film, large_film, kill):
    with ClipDecoder(ClipSpec(faces=45)) as decoder:
        before = {child.pid for child in multiprocessing.active_children()}
        assert not decoder.decode(sample(film), 0.5).rejected
        (mine,) = {child.pid for child in multiprocessing.active_children()} - before
        killer = threading.Timer(0.2, os.kill, (mine, kill))
        killer.start()
        clip = decoder.decode(sample(large_film, faces=""), 0.5)
        assert decoder.children_lost == 1
    assert not clip.rejected
