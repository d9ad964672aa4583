"""An exported student predicts as in torch, is small, and runs alone with three libraries."""

import functools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from importlib import metadata
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from scipy.io import wavfile

from liser_dist import cli, load_student
from liser_dist.config.distill import DistillSpec
from liser_dist.config.export import ExportSpec
from liser_dist.data.shards import write_shards
from liser_dist.errors import CheckpointError, LiserError, SpecError
from liser_dist.export.clips import read_scored_clips
from liser_dist.export.job import plan_export, run_export
from liser_dist.export.predict import ExportedStudent, InputError
from liser_dist.export.result import Export
from liser_dist.records import Example
from liser_dist.runs.checkpoints import Checkpoint, CheckpointWriter
from liser_dist.runs.ledger import Ledger
from liser_dist.students.batches import Batcher
from liser_dist.students.models import Student
from liser_dist.students.scoring import LabelledSet, score_student
from tests.films import small_film
from tests.real import CLIPS, needs_clips

pytestmark = pytest.mark.slow  # each export traces and quantises a model
EMOTIONS = ("sad", "happy", "angry")
RATE_HZ = 16000
Alone = Callable[..., subprocess.CompletedProcess]


def spec_of(folder: Path, student: dict[str, object], clip: dict[str, object]) -> DistillSpec:
    labelled = str(folder / "test")
    return DistillSpec.model_validate(
        {
            "name": "small",
            "emotions": EMOTIONS,
            "data": {"unlabelled": labelled, "test": labelled},
            "clip": {"faces": 2, "face_px": 32, "window_s": 1.0} | clip,
            "teachers": {"speech": {"kind": "mock"}},
            "student": student,
        }
    )


def write_run(folder: Path, clip: dict[str, object] | None = None, **student: object) -> Path:
    """A run's folder with a checkpoint, in which nothing was learned; and its test clips."""
    samples = (
        (f"clip-{n}", small_film(n), {"emotion": EMOTIONS[n % 3], "speaker": str(n // 3)})
        for n in range(12)
    )
    write_shards(samples, str(folder / "test"), clips_per_shard=12)
    spec = spec_of(folder, student, clip or {})
    torch.manual_seed(0)
    weights = Student(spec.student, len(EMOTIONS), spec.clip.sample_rate_hz).state_dict()
    run = folder / "runs" / "small" / "001"
    writer = CheckpointWriter(str(run), keep=2)
    checkpoint = Checkpoint(spec=spec, students={}, best={"distilled": weights}, optimizer={},
                            state={"steps": 1}, ledger=Ledger())  # fmt: skip
    writer.save(1, checkpoint, then=lambda: None)
    writer.finish()
    return run


def export_run(run: Path) -> tuple[Path, Export]:
    spec = ExportSpec(checkpoint=str(run), output=str(run / "exported"), clips=40)
    export, place = run_export(plan_export(spec))
    assert Path(place).read_text() == export.model_dump_json(indent=1)
    return Path(place).parent, export


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Export]]:
    """Of each kind of student, once."""
    return functools.cache(
        lambda kind: export_run(write_run(tmp_path_factory.mktemp("run"), kind=kind))
    )


@pytest.fixture(scope="module", params=["cnn", "reslstm"])
def exported(
    request: pytest.FixtureRequest, made: Callable[[str], tuple[Path, Export]]
) -> tuple[Path, Export]:
    return made(request.param)


@pytest.fixture(scope="module")
def folder(made: Callable[[str], tuple[Path, Export]]) -> Path:
    return made("cnn")[0]


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """4.3 s of something that changes."""
    noise = np.random.default_rng(0).standard_normal(round(4.3 * RATE_HZ))
    swelling = np.linspace(0.01, 0.5, len(noise)) * noise
    file = tmp_path / "speech.wav"
    wavfile.write(file, RATE_HZ, (swelling.clip(-1, 1) * 32767).astype(np.int16))
    return file


@pytest.fixture(scope="module")
def site(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What requirements.txt names, with what those need, and nothing else."""
    site, todo, done = tmp_path_factory.mktemp("site"), [], set()
    todo += (folder / "requirements.txt").read_text().split()
    while todo:
        name = re.split(r"[^\w.-]", todo.pop())[0]
        if name in done:
            continue
        done.add(name)
        todo += [line for line in metadata.requires(name) or () if "extra ==" not in line]
        found = metadata.distribution(name)
        for top in {file.parts[0] for file in found.files or () if file.parts[0] != ".."}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(found.locate_file(top))))
    return site


@pytest.fixture
def run_alone(folder: Path, site: Path) -> Callable[..., subprocess.CompletedProcess]:
    """predict.py as its folder has it, with that and the standard library alone."""

    def run(*arguments: object, pcm: bytes = b"") -> subprocess.CompletedProcess:
        code = (
            f"import runpy, sys; sys.path.append({str(site)!r});"
            f"runpy.run_path({str(folder / 'predict.py')!r}, run_name='__main__')"
        )
        command = [sys.executable, "-I", "-S", "-c", code, *map(str, arguments)]
        return subprocess.run(command, input=pcm, capture_output=True, timeout=60, check=False)

    return run


def lines_of(done: subprocess.CompletedProcess) -> list[dict]:
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_onnx_answers_as_torch_does_and_is_small(exported: tuple[Path, Export]) -> None:
    folder, export = exported
    assert export.parity_max_abs < 1e-4
    assert export.compared == 40
    assert export.int8_max_abs < 0.1
    assert export.int8_bytes - export.front_bytes < 150_000
    assert export.int8_bytes == (folder / "model.int8.onnx").stat().st_size < export.onnx_bytes
    assert export.front_bytes < 60_000
    facts = json.loads((folder / "export.json").read_text())
    assert {"parity_max_abs", "onnx_bytes", "int8_bytes", "uar", "int8_uar", "real_time_factor",
            "p99_ms"} <= facts.keys()  # fmt: skip
    for cost in export.footprints.values():
        assert min(cost.size_bytes, cost.real_time_factor, cost.p99_ms, cost.memory_bytes) > 0


def test_any_number_of_clips_of_any_length_is_answered_as_each_alone(
    exported: tuple[Path, Export],
) -> None:
    student = ExportedStudent(exported[0])
    random = np.random.default_rng(1)
    for samples in (8000, 12345, 60 * RATE_HZ):
        waveforms = random.standard_normal((3, samples)).astype(np.float32) / 10
        together, embeddings = student.infer(waveforms)
        assert embeddings.shape == (3, embeddings.shape[1])
        alone = np.concatenate([student.infer(one[None])[0] for one in waveforms])
        np.testing.assert_allclose(together, alone, atol=1e-5)
        np.testing.assert_allclose(together.sum(axis=1), 1, atol=1e-5)


def test_it_is_scored_as_a_run_scores_it(exported: tuple[Path, Export]) -> None:
    folder, export = exported
    export_spec = ExportSpec(checkpoint=str(folder.parent), output=str(folder.parent / "again"))
    plan = plan_export(export_spec)
    examples = [
        Example(**clip.provenance(), **clip.labels(), waveform=clip.waveform)
        for clip in read_scored_clips(plan.shards["labelled"], EMOTIONS, plan.run_spec.clip)
    ]
    expected = score_student(
        plan.student, LabelledSet.from_examples(examples, Batcher.from_spec(plan.run_spec))
    )
    assert (export.uar, len(examples)) == (pytest.approx(expected.uar), expected.clips)
    assert export.scores is not None
    assert (export.scores.clips, export.scores.speakers) == (12, 4)


def test_the_folder_answers_alone_and_shows_how_long_it_takes_to_begin(
    run_alone: Alone, folder: Path, site: Path, speech: Path, tmp_path: Path
) -> None:
    film = tmp_path / "film.mp4"
    film.write_bytes(small_film(0))
    done = run_alone(film, speech)
    assert done.returncode == 0, done.stderr.decode()
    assert b"imports" in done.stderr
    shown = done.stdout.decode()
    assert str(film) in shown
    assert "from s" in shown
    requirements = (folder / "requirements.txt").read_text().split()
    assert [line.partition(">")[0] for line in requirements] == ["onnxruntime", "numpy", "av"]
    assert not {"torch", "ray", "yaml", "liser_dist"} & {entry.name for entry in site.iterdir()}


@needs_clips
def test_real_speech_and_video_are_answered(run_alone: Alone) -> None:
    files = [CLIPS / name for name in ("obama_speech.mp4", "beckett.wav", "single_face.mp4")]
    predictions = lines_of(run_alone("--json", *files))
    assert {one["file"] for one in predictions} == set(map(str, files))
    assert len([one for one in predictions if one["file"].endswith("beckett.wav")]) == 10
    totals = [sum(one["probabilities"].values()) for one in predictions]
    assert totals == [pytest.approx(1, abs=1e-3)] * len(predictions)


@pytest.mark.parametrize("options", [[], ["--int8"], ["--hop-s", "0.25"]])
def test_a_stream_is_answered_as_the_whole_file_window_by_window(
    run_alone: Alone, speech: Path, options: list[str]
) -> None:
    of_file = lines_of(run_alone("--json", *options, speech))
    _, samples = wavfile.read(speech)
    of_pipe = lines_of(run_alone("--json", "--stream", *options, pcm=samples.tobytes()))
    # Windows of 1 s; less than half a second at the end is no window.
    windows, end_s = (15, 4.3) if "0.25" in options else (4, 4.0)
    assert len(of_file) == windows
    assert [one | {"file": ""} for one in of_file] == [one | {"file": ""} for one in of_pipe]
    assert len({one["probabilities"]["sad"] for one in of_file}) > 1
    assert of_file[0]["start_s"] == 0
    assert of_file[-1]["end_s"] == pytest.approx(end_s, abs=0.01)


def test_what_comes_later_changes_no_answer(folder: Path, speech: Path) -> None:
    _, samples = wavfile.read(speech)
    student, sound = load_student(folder), samples.astype(np.float32) / 32768
    whole = list(student.predict_stream([sound]))
    begun = list(student.predict_stream([sound[: 2 * RATE_HZ]]))
    assert [one.probabilities for one in begun] == [one.probabilities for one in whole[:2]]


@pytest.mark.parametrize(("rate_hz", "channels"), [(48000, 2), (8000, 1), (44100, 2)])
def test_sound_of_any_rate_is_heard_as_the_same_sound(
    folder: Path, tmp_path: Path, rate_hz: int, channels: int
) -> None:
    def tone(rate: int) -> np.ndarray:
        times = np.arange(3 * rate) / rate
        return 0.3 * np.sin(2 * np.pi * 440 * times) * np.sin(2 * np.pi * 3 * times)

    files = []
    for rate, count in ((RATE_HZ, 1), (rate_hz, channels)):
        files.append(tmp_path / f"{rate}-{count}.wav")
        wavfile.write(files[-1], rate, np.stack([tone(rate)] * count, 1).astype(np.float32))
    expected, actual = (load_student(folder).predict(file) for file in files)
    assert [one.emotion for one in expected] == [one.emotion for one in actual]
    for one, other in zip(expected, actual, strict=True):
        for emotion, share in one.probabilities.items():
            assert other.probabilities[emotion] == pytest.approx(share, abs=0.05)


def test_other_rates_and_short_windows_are_no_other_matter(tmp_path: Path, speech: Path) -> None:
    clip = {"sample_rate_hz": 22050, "window_s": 0.4, "min_duration_s": 0.0}
    folder, export = export_run(write_run(tmp_path, clip=clip, kind="cnn", width=8))
    assert export.parity_max_abs < 1e-4
    predictions = load_student(folder).predict(speech)
    assert [round(one.start_s, 2) for one in predictions[:3]] == [0.0, 0.4, 0.8]
    with pytest.raises(InputError, match=r"--hop-s.*give a value from 0.01 to 0.4"):
        load_student(folder).predict(speech, hop_s=1e-5)


def film_with_pauses(file: Path) -> None:
    """A picture from 0 on; a tone from 2 to 4 s and from 6 to 8 s."""
    with av.open(file, "w", format="matroska") as output:
        video = output.add_stream("libx264", rate=5, width=64, height=48, pix_fmt="yuv420p")
        sound = output.add_stream("pcm_s16le", rate=RATE_HZ, layout="mono")
        for number in range(45):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 5)
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
        tone = (8000 * np.sin(np.arange(RATE_HZ // 10) / 10)).astype(np.int16)
        for tenth in [*range(20, 40), *range(60, 80)]:
            frame = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
            frame.sample_rate, frame.time_base = RATE_HZ, Fraction(1, RATE_HZ)
            frame.pts = tenth * len(tone)
            output.mux(sound.encode(frame))


def test_times_are_those_of_the_film_also_where_its_sound_begins_late_and_pauses(
    folder: Path, tmp_path: Path
) -> None:
    film_with_pauses(tmp_path / "film.mkv")
    predictions = load_student(folder).predict(tmp_path / "film.mkv")
    audible = [one for one in predictions if one.emotion is not None]
    heard = [(round(one.start_s), round(one.end_s)) for one in audible]
    assert heard == [(2, 3), (3, 4), (6, 7), (7, 8)]
    assert len(predictions) == 8


def test_a_file_that_ends_too_soon_is_told_and_one_that_is_piped_is_refused(
    run_alone: Alone, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "film.mkv", tmp_path / "cut.flac"
    film_with_pauses(whole)
    noise = np.random.default_rng(0).integers(-9999, 9999, (1, 4 * RATE_HZ)).astype(np.int16)
    with av.open(cut, "w") as output:
        sound = output.add_stream("flac", rate=RATE_HZ, layout="mono")
        frame = av.AudioFrame.from_ndarray(noise, format="s16", layout="mono")
        frame.sample_rate = RATE_HZ
        output.mux([*sound.encode(frame), *sound.encode(None)])
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    done = run_alone("--json", cut)
    assert len(lines_of(done)) == 2
    assert b"s of 4.0 s; the file is damaged or truncated" in done.stderr
    for file in (whole, cut):
        done = run_alone("--stream", pcm=file.read_bytes())
        assert done.returncode == 2
        assert b"pass the file name instead of --stream" in done.stderr


def test_silence_has_no_emotion(folder: Path) -> None:
    predictions = list(load_student(folder).predict_stream([np.zeros(2 * RATE_HZ, np.float32)]))
    assert [(one.emotion, one.probabilities) for one in predictions] == [(None, {})] * 2


def test_what_cannot_be_heard_is_told_in_a_line_and_the_rest_is_answered(
    run_alone: Alone, speech: Path, tmp_path: Path
) -> None:
    tone = np.sin(np.arange(5 * RATE_HZ) / 10).astype(np.float32) / 2
    wavfile.write(tmp_path / "short.wav", RATE_HZ, tone[: RATE_HZ // 10])
    broken = tone.copy()
    broken[40000] = np.nan
    wavfile.write(tmp_path / "nan.wav", RATE_HZ, broken)
    (tmp_path / "words.mp3").write_bytes(b"\x00these are words\n" * 100)
    cv2.imwrite(str(tmp_path / "mute.png"), np.zeros((48, 64, 3), np.uint8))
    messages = {
        "short.wav": "0.10 s of audio",
        "nan.wav": "NaN",
        "words.mp3": "FFmpeg c",
        "mute.png": "no audio stream",
        "nowhere.mp4": "cannot be opened",
    }
    for name, words in messages.items():
        done = run_alone("--json", tmp_path / name, speech)
        assert done.returncode == 2
        (line,) = [text for text in done.stderr.decode().splitlines() if "error" in text]
        assert name in line
        assert words in line
        assert str(speech) in done.stdout.decode()
        assert b"Traceback" not in done.stderr


def test_a_folder_that_is_no_export_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match=r"not an exported student.*jobs/export.py"):
        load_student(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "model.onnx").write_text("words")
    with pytest.raises(InputError, match="not an exported student"):
        load_student(tmp_path)


def test_the_command_draws_a_picture_of_a_file(
    folder: Path, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / "$%$.wav"  # which is mathematics to matplotlib
    odd.write_bytes(speech.read_bytes())
    command = ["predict", "--student", str(folder)]
    with pytest.raises(SystemExit, match="0"):
        cli.main([*command, "--pictures", str(tmp_path), *map(str, (speech, speech, odd))])
    for name in ("speech.wav.png", "speech.wav-2.png", "$%$.wav.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert "from s" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        cli.main([*command, "--pictures", str(speech), str(speech)])
    assert "give a writable folder" in capsys.readouterr().err


def test_the_card_is_read_by_the_hub_and_says_that_the_run_is_not_finished(
    exported: tuple[Path, Export],
) -> None:
    folder, export = exported
    card = ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag == "audio-classification"
    (score,) = card.data.eval_results
    assert score.metric_value == pytest.approx(export.uar, abs=1e-4)
    assert "training run was not finished" in card.text
    assert "AI Act" in card.text


def test_nothing_in_the_folder_names_who_spoke_or_where_the_data_lies(folder: Path) -> None:
    for file in folder.iterdir():
        assert str(folder.parent.parent.parent.parent).encode() not in file.read_bytes()
    scores = json.loads((folder / "export.json").read_text())["scores"]
    assert (scores["speakers"], scores["by_speaker"]) == (4, {})


def test_what_cannot_be_exported_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    run = write_run(tmp_path, kind="cnn", width=8, input="both")

    def refused(kind: type[LiserError], words: str, **change: object) -> None:
        asked = {"checkpoint": str(run), "output": str(tmp_path / "out")} | change
        with pytest.raises(kind, match=words):
            plan_export(ExportSpec.model_validate(asked))

    refused(SpecError, "takes face input")
    refused(CheckpointError, "`checkpoint`.*has no checkpoint", checkpoint=str(tmp_path))
    refused(CheckpointError, "no student 'face_only'", student="face_only")
    heard = write_run(tmp_path / "heard", kind="cnn", width=8)
    refused(SpecError, "is not empty", checkpoint=str(heard), output=str(tmp_path))
