"""A run's report is one self-contained file, and its size does not grow with the run."""

import base64
import html.parser
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from liser_dist.config import base as fields
from liser_dist.config.distill import DistillSpec
from liser_dist.data.shard_list import find_shards
from liser_dist.data.shards import write_shards
from liser_dist.errors import CheckpointError, SpecError
from liser_dist.evaluation.study_report import Gain, MethodSummary, StudyResult
from liser_dist.records import Clip, Example, Provenance, Reason
from liser_dist.reports.disagreements import encode_video
from liser_dist.reports.page import write_report
from liser_dist.runs.checkpoints import Checkpoint, CheckpointWriter
from liser_dist.runs.disagreement import DisagreementRecord
from liser_dist.runs.ledger import Ledger
from liser_dist.runs.predictions import Predictions, probabilities_of
from liser_dist.runs.results import (
    DistillResult,
    RunClipCounts,
    Seconds,
    StudentScores,
    write_result,
)
from liser_dist.students.models import Student
from liser_dist.training.tensorboard import TensorBoardWriter
from tests.films import small_film

pytestmark = pytest.mark.slow  # runs of 100,000 clips: 45 s of one core

EMOTIONS = fields.EMOTIONS
CLIPS, REJECTED, STEPS = 100_000, 3_000, 20_000
BOXES = [[0.2 * n, 4.0, 4.0, 44.0, 44.0] for n in range(7)]
EVIL = "<script>alert(1)</script>"


class Page(html.parser.HTMLParser):
    """What a browser would load, and run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        own = {"src", "poster", "srcset", "data"} | ({"href"} if tag == "link" else set())
        self.loaded += [value or "" for name, value in attributes if name in own]

    def content(self, kind: str) -> list[bytes]:
        head = f"data:{kind};base64,"
        return [base64.b64decode(one.removeprefix(head)) for one in self.loaded if head in one]


def ledger_of(shard: str) -> Ledger:
    """100,000 clips, of which 3,000 were rejected."""
    ledger = Ledger()
    ledger.enter(
        Provenance(
            key=f"{EVIL}-{n}", shard=shard, index=n, epoch=0,
            reason=Reason.CRASHED if n < REJECTED else "", detail=f"of {EVIL}",
            ends_shard=n == CLIPS - 1,
        )
        for n in range(CLIPS)
    )  # fmt: skip
    return ledger


def opinions_on(shard: str) -> DisagreementRecord:
    """Twelve clips that are there, and twelve of a shard that is not."""
    opinions = DisagreementRecord([True] * len(EMOTIONS))
    probabilities = np.full((24, 2, len(EMOTIONS)), 0.02, np.float32)
    probabilities[:, 0, 0] = probabilities[:, 1, 1] = 0.9 - 0.01 * np.arange(24)
    rows = [
        Provenance(key=f"clip-{n}", shard=shard if n < 12 else "/gone.tar", index=n % 12, epoch=0)
        for n in range(24)
    ]
    opinions.enter(rows, probabilities, lambda _: 0.5)
    return opinions


def answers_of(clips: int) -> Predictions:
    random = np.random.default_rng(0)
    examples = [
        Example(key=str(n), shard="test", index=n, epoch=0, speaker=str(n % 20),
                emotion=EMOTIONS[n % len(EMOTIONS)]) for n in range(clips)
    ]  # fmt: skip
    models = ("labels_only", "distilled", "speech_teacher", "face_teacher")
    logits = {m: random.standard_normal((clips, len(EMOTIONS))).astype(np.float32) for m in models}
    logits["face_teacher"][::3] = np.nan  # no face in every third
    logits["speech_teacher"][:, -1] = -np.inf  # an emotion that it does not know
    probabilities = {name: probabilities_of(of_model) for name, of_model in logits.items()}
    return Predictions(examples, EMOTIONS, probabilities)


def write_run(folder: Path, name: str, finished: bool = True, seed: int = 0) -> Path:
    shards = str(folder / "shards")
    samples = ((f"clip-{n}", small_film(n), {"faces": BOXES}) for n in range(12))
    write_shards(samples, shards, clips_per_shard=12)
    spec = DistillSpec.model_validate(
        {
            "name": name,
            "seed": seed,
            "data": {"unlabelled": shards, "test": shards},
            "clip": {"faces": 4, "face_px": 32, "window_s": 1.0},
            "teachers": {"speech": {"kind": "mock"}, "face": {"kind": "mock"}},
            "student": {"kind": "cnn", "width": 8},
        }
    )
    run = folder / name / "001"
    run.mkdir(parents=True)
    (run / "spec.json").write_text(spec.model_dump_json())
    sets = {"unlabelled": [asdict(one) for one in find_shards(shards, "shards")]}
    (run / "shards.json").write_text(json.dumps(sets))
    shard = f"{shards}/000000.tar"
    student = Student(spec.student, len(EMOTIONS), 16000)
    state = {"steps": STEPS, "opinions": opinions_on(shard).to_json()}
    writer = CheckpointWriter(str(run), keep=1)
    writer.save(
        STEPS,
        Checkpoint(spec=spec, students={}, best={"distilled": student.state_dict()},
                   optimizer={"step": torch.tensor(1)}, state=state, ledger=ledger_of(shard)),
        then=lambda: None,
    )  # fmt: skip
    writer.finish()
    curves = TensorBoardWriter(str(run))
    for step in range(STEPS if name == "large" else 100):
        curves.add("train/distilled_0.001_loss", 1 / (1 + step), step)
        curves.add("train/agrees_with_speech", 0.5, step)
    curves.add("validation/distilled_uar", 0.6, 100)
    curves.upload()
    if finished:
        answers_of(6000).write(str(run))
        write_result(str(run), result_of(spec, writer.newest or ""))
    return run


def result_of(spec: DistillSpec, checkpoint: str) -> DistillResult:
    return DistillResult(
        name=spec.name, seed=spec.seed, steps=STEPS, clips_per_s=50.0, data_wait_share=0.2,
        clips=RunClipCounts(total=CLIPS, trained=CLIPS - REJECTED, rejected=REJECTED, passes=CLIPS,
                         taught=CLIPS, unsure=0, differing=0, labelled=10, labelled_rejected=1,
                         labelled_by_set={"labelled": 4, "test": 6}, labelled_left_out={"calm": 7}),
        warnings=["the student is not shown to be better than chance"],
        seconds=Seconds(to_first_step=30, training=2000, total=2050),
        student=StudentScores(params=1234, learning_rate=0.001, uar=0.5, war=0.5, macro_f1=0.5),
        checkpoint=checkpoint, spec_hash=spec.spec_hash,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"), "large")


@pytest.fixture(scope="module")
def text(run: Path) -> str:
    return Path(write_report([str(run)], disagreements=24)).read_text()


def pictures(text: str) -> Iterator[str]:
    while "<svg" in text:
        drawn, _, text = text[text.index("<svg") :].partition("</svg>")
        yield drawn


def test_a_page_of_100_000_clips_asks_nobody_for_anything_and_is_small(text: str) -> None:
    page = Page(text)
    assert len(text) < 10e6
    assert "script" not in page.tags
    assert {address.partition(":")[0] for address in page.loaded} == {"data"}
    assert "default-src 'none'" in text
    assert "url(http" not in text
    assert "prefers-color-scheme: dark" in text
    assert len(list(pictures(text))) == 4
    assert all("currentColor" in one for one in pictures(text))


def test_the_clips_on_which_the_teachers_differ_can_be_played_with_their_faces(text: str) -> None:
    page = Page(text)
    films = page.content("video/mp4")
    assert len(films) == 12
    for film in films:
        with av.open(io.BytesIO(film)) as container:
            assert len(list(container.decode(video=0))) == 4
            container.seek(0)
            sound = sum(frame.samples for frame in container.decode(audio=0))
            assert sound / 16000 == pytest.approx(1.0, abs=0.1)
    drawn = page.content("image/jpeg")
    assert len(drawn) == 24
    assert all(cv2.imdecode(np.frombuffer(one, np.uint8), cv2.IMREAD_COLOR).any() for one in drawn)
    assert text.count("no longer available") == 12


def test_it_says_what_came_out_and_what_became_of_the_clips(text: str) -> None:
    for words in (
        "97,000 trained", "3,000 rejected", "crashed", "face teacher", "6,000 test clips",
        "4,000 test clips", "1 labelled clip rejected", "34 min", "1,234",
        "labelled 4, test 6. Left out", "calm 7", "not shown to be better than chance",
        f"speech teacher: {EMOTIONS[0]} 100.0 %", f"face teacher: {EMOTIONS[1]} 100.0 %",
        "in 24 of 100,000 passes (clips, counted once per epoch)",
    ):  # fmt: skip
        assert words in text
    assert EVIL not in text
    assert "&lt;script&gt;" in text


def test_two_runs_stand_side_by_side_with_what_they_were_asked_otherwise(
    run: Path, tmp_path: Path
) -> None:
    other = write_run(tmp_path, "other", finished=False, seed=5)
    text = Path(write_report([str(run), str(other)], output=str(tmp_path / "two.html"))).read_text()
    assert "large/001 compared with other/001" in text
    assert "<td>seed</td>" in text
    assert "This run is not finished" in text
    assert len(list(pictures(text))) == 4
    assert "distilled 0.001 (B)" in text
    alone = Path(write_report([str(other)])).read_text()
    assert "no scores yet" in alone


def test_a_study_and_a_benchmark_have_pages_too(tmp_path: Path) -> None:
    study, benchmark = tmp_path / "study", tmp_path / "benchmark"
    one = MethodSummary(method="both", label_share=0.05, uar=0.64, spread=0.01, low=0.6, high=0.7)
    more = one.model_copy(update={"label_share": 1.0, "uar": 0.7})
    gain = Gain(label_share=0.05, method="both", over="labels_only", gain=0.2, low=0.1, high=0.3)
    result = StudyResult(
        name="few", corpus="synthetic", cells=2, test_speakers=10, students=[one, more],
        teachers=[one], gains=[gain], chance=1 / 6, seconds=60, spec_hash="",
    )  # fmt: skip
    study.mkdir()
    (study / "study.parquet").touch()
    (study / "result.json").write_text(result.model_dump_json())
    text = Path(write_report([str(study)])).read_text()
    assert "+20.0" in text
    assert "<td>chance</td><td>16.7</td>" in text
    assert len(list(pictures(text))) == 1
    benchmark.mkdir()
    row = {"kind": "decoder", "bytes_before": 2**20, "bytes_after": 2**21, "growth": 1.0}
    (benchmark / "memory.json").write_text(json.dumps([row]))
    assert "+100.0%" in Path(write_report([str(benchmark)])).read_text()
    with pytest.raises(SpecError, match="only runs can be compared"):
        write_report([str(study), str(benchmark)])


def test_runs_of_one_name_are_told_apart_and_one_is_not_shown_beside_itself(
    run: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "elsewhere" / "large" / "001"
    shutil.copytree(run, copy)
    text = Path(write_report([str(run), str(copy)], 0, str(tmp_path / "two.html"))).read_text()
    assert f"{run.parent.parent.name}/large/001 compared with elsewhere/large/001 (B)" in text
    assert text.count("<h3>elsewhere/large/001 (B)</h3>") == 2
    assert "<td>face teacher</td>" in text
    assert "<td>+0.0</td>" in text  # points of UAR that the copy has more
    with pytest.raises(SpecError, match="given twice"):
        write_report([str(run), f"{run}/"])


def test_another_clip_at_a_disputed_ones_place_is_not_shown_for_it(tmp_path: Path) -> None:
    run = write_run(tmp_path, "moved")
    samples = ((f"other-{n}", small_film(n), {"faces": BOXES}) for n in range(12))
    write_shards(samples, str(tmp_path / "shards"), clips_per_shard=12)
    text = Path(write_report([str(run)])).read_text()
    assert "<video" not in text
    assert text.count("no longer available") == 12


def test_runs_of_other_versions_are_told_and_what_they_kept_is_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path, "old")
    (run / "answers.parquet").unlink()
    text = Path(write_report([str(run)], 0)).read_text()
    assert "were not stored" in text
    assert "50.0 %" in text  # the student's UAR, by its result
    spec = json.loads((run / "spec.json").read_text()) | {"of_a_later_version": 1}
    (run / "spec.json").write_text(json.dumps(spec))
    with pytest.raises(CheckpointError, match=r"spec.json was written by another .*of_a_later"):
        write_report([str(run)])


def test_settings_that_were_removed_since_are_shown_as_the_run_used_them(tmp_path: Path) -> None:
    run = write_run(tmp_path, "removed")
    spec = json.loads((run / "spec.json").read_text())
    spec["loss"] |= {"fusion": "product"}
    (run / "spec.json").write_text(json.dumps(spec))
    other = write_run(tmp_path, "present", seed=5)
    text = Path(write_report([str(run), str(other)], 0)).read_text()
    assert "fusion: product" in text
    assert "loss.fusion" in text


def test_sound_of_a_rate_that_browsers_do_not_know_can_be_played() -> None:
    clip = Clip(
        key="k", shard="s", index=0, epoch=0, waveform=np.full(30 * 7000, 99, np.int16),
        faces=np.zeros((60, 32, 32, 3), np.uint8), has_face=np.ones(60, np.bool_),
    )  # fmt: skip
    with av.open(io.BytesIO(encode_video(clip, 7000))) as film:
        assert film.duration / av.time_base == pytest.approx(10, abs=0.2)  # the beginning of it


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"neither a run, nor .*study.parquet"):
        write_report([str(tmp_path)])
    (tmp_path / "study.parquet").touch()  # and killed before its result was written
    with pytest.raises(SpecError, match="nor a finished study"):
        write_report([str(tmp_path)])
