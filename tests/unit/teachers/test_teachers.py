"""Teachers on tiny generated models, and on real ONNX models where these are available."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from liser_dist.config.base import EMOTIONS
from liser_dist.config.distill import DistillSpec
from liser_dist.config.stream import ClipSpec
from liser_dist.config.teachers import (
    HuggingFaceTeacher,
    ImageInput,
    MelPowerInput,
    MockTeacher,
    OnnxTeacher,
    StudentTeacher,
    WaveformInput,
)
from liser_dist.errors import TeacherError
from liser_dist.records import Clip, Reason
from liser_dist.runs.checkpoint_files import write_checkpoint
from liser_dist.runs.checkpoints import Checkpoint, pack_checkpoint
from liser_dist.runs.ledger import Ledger
from liser_dist.students.models import Student
from liser_dist.teachers.huggingface import HuggingFaceModel
from liser_dist.teachers.model_files import Modality
from liser_dist.teachers.model_teacher import ModelOutput, ModelTeacher, fold, map_names
from liser_dist.teachers.teachers import (
    describe_teacher,
    load_teacher,
)
from tests.hub_models import LABELS, MODELS, save
from tests.nets import face_net, speech_net

CLIP = ClipSpec()
KNOWN = (True, True, True, True, False, False)

Make = Callable[[str], Path]


def make_clip(
    key: str = "a",
    samples: int = 16000,
    seen: Sequence[bool] = (True, True, False, True),
    reason: str = "",
) -> Clip:
    random = np.random.default_rng(len(key) + samples)
    has_face = np.array(seen, np.bool_)
    faces = random.integers(0, 256, (len(seen), 112, 112, 3)).astype(np.uint8)
    faces[~has_face] = 0
    return Clip(
        key=key,
        shard="s",
        index=0,
        epoch=0,
        waveform=random.integers(-9000, 9000, samples).astype(np.int16),
        faces=faces,
        has_face=has_face,
        reason=reason,
    )


# ---------------------------------------------------------------- tiny models


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Make:
    root = tmp_path_factory.mktemp("teachers")

    def make(name: str) -> Path:
        folder = root / name
        return folder if folder.exists() else save(name, folder)

    return make


def spoil(folder: Path, to: Path, **settings: Any) -> Path:
    """A copy of a model's JSON and weights, with settings of its config changed."""
    to.mkdir(exist_ok=True)
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, **settings}))
    return to


def hugging_face(folder: Path, labels: dict[str, str] | None = LABELS) -> HuggingFaceTeacher:
    return HuggingFaceTeacher(model=str(folder), labels=labels)


@pytest.mark.parametrize(
    ("name", "modality", "classifies", "dim"),
    [
        ("wav2vec2", "audio", True, 32),
        ("wav2vec2-group-norm", "audio", True, 32),
        ("ast", "audio", True, 32),
        ("hubert-encoder", "audio", False, 32),
        ("whisper", "audio", False, 32),
        ("vit", "image", True, 32),
        ("resnet", "image", True, 16),
        ("videomae", "video", True, 32),
        ("clip", "image", False, 32),
    ],
)
def test_describes_and_teaches(
    make_model: Make, name: str, modality: str, classifies: bool, dim: int
) -> None:
    spec = hugging_face(make_model(name), LABELS if classifies else None)
    facts = describe_teacher(spec, EMOTIONS, CLIP)
    assert (facts.modality, facts.embedding_dim) == (modality, dim)
    assert facts.known == (KNOWN if classifies else (False,) * 6)
    teacher = load_teacher(spec, EMOTIONS, CLIP)
    assert tuple(teacher.known) == facts.known
    assert teacher.embedding_dim == dim
    [targets] = teacher.teach([make_clip()])
    assert targets.embedding.shape == (dim,)
    assert targets.logits.shape == ((6,) if classifies else (0,))
    assert targets.mass == pytest.approx(1.0 if classifies else 0.0)


@pytest.mark.parametrize(
    "name",
    ["wav2vec2", "wav2vec2-group-norm", "hubert-encoder", "ast", "whisper", "vit", "videomae"],
)
def test_what_is_said_of_a_clip_does_not_depend_on_its_company(make_model: Make, name: str) -> None:
    model = HuggingFaceModel(str(make_model(name)))
    clips = [make_clip("a", 9000), make_clip("bb", 48000, (True,) * 4), make_clip("ccc", 30001)]
    together = model.predict(clips)
    for clip, (logits, embedding) in zip(clips, together, strict=True):
        [(logits_alone, embedding_alone)] = model.predict([clip])
        np.testing.assert_allclose(logits, logits_alone, atol=1e-4)
        np.testing.assert_allclose(embedding, embedding_alone, atol=1e-4)
    assert np.abs(together[0][1][0] - together[1][1][0]).max() > 1e-3  # clips do differ


def test_padding_would_be_heard_without_a_mask(make_model: Make) -> None:
    """Why such nets get equal lengths together."""
    model = HuggingFaceModel(str(make_model("wav2vec2-group-norm")))
    short, long = make_clip("a", 9000), make_clip("bb", 48000)
    _, padded = model.forward(model.inputs([short, long]))
    _, alone = model.forward(model.inputs([short]))
    assert (padded[0] - alone[0]).abs().max() > 1e-3


def test_embedding_is_the_encoders_own_mean_over_sound_alone(make_model: Make) -> None:
    model = HuggingFaceModel(str(make_model("hubert-encoder")))
    clip = make_clip(samples=12000)
    inputs = model.inputs([clip])
    with torch.inference_mode():
        hidden = model.module(**inputs).last_hidden_state
    [(_, embedding)] = model.predict([clip])
    np.testing.assert_allclose(embedding[0], hidden.cpu()[0].mean(0), atol=1e-5)


def test_sound_is_resampled_to_what_the_net_was_trained_on(make_model: Make) -> None:
    model = HuggingFaceModel(str(make_model("wav2vec2")), sample_rate_hz=8000)
    assert model.inputs([make_clip(samples=8000)])["input_values"].shape == (1, 16000)


@pytest.mark.parametrize("name", ["vit", "videomae", "resnet", "clip"])
def test_pixels_are_those_of_the_models_own_processor(make_model: Make, name: str) -> None:
    pytest.importorskip("PIL", reason="the processors to compare with need Pillow")
    model = HuggingFaceModel(str(make_model(name)))
    clip = make_clip(seen=(True,) * 4)
    gradient = np.add.outer(np.arange(112), np.arange(112)).astype(np.uint8)
    clip.faces[:] = gradient[None, :, :, None]
    [pixels] = model.inputs([clip]).values()
    _, processor = MODELS[name]()
    frames = list(clip.faces)
    expected = processor([frames] if name == "videomae" else frames, return_tensors="pt")
    one_level = 1 / 255 / 0.225
    torch.testing.assert_close(
        pixels.cpu(), expected["pixel_values"], atol=1.01 * one_level, rtol=0
    )


def test_a_video_net_gets_its_number_of_frames_of_the_face(make_model: Make) -> None:
    model = HuggingFaceModel(str(make_model("videomae")))
    few = make_clip("a", seen=(True, False, False, True, False))
    many = make_clip("b", seen=(True,) * 5)
    assert model.inputs([few, many])["pixel_values"].shape == (2, 4, 3, 32, 32)


def test_image_logits_are_the_log_of_the_mean_over_faces(make_model: Make) -> None:
    spec = hugging_face(make_model("vit"))
    clip = make_clip(seen=(True, False, True, True))
    [(logits, _)] = HuggingFaceModel(spec.model).predict([clip])
    mean = torch.softmax(torch.from_numpy(logits), 1).mean(0)
    assert len(logits) == 3
    [targets] = load_teacher(spec, EMOTIONS, CLIP).teach([clip])
    order = [EMOTIONS.index(emotion) for emotion in LABELS.values()]
    np.testing.assert_allclose(targets.logits[order], mean.log(), atol=5e-3)


@pytest.mark.parametrize("name", ["vit", "videomae"])
def test_no_face_and_rejected_clips_get_no_targets(make_model: Make, name: str) -> None:
    teacher = load_teacher(hugging_face(make_model(name)), EMOTIONS, CLIP)
    clips = [
        make_clip("none", seen=(False, False)),
        make_clip("good"),
        Clip(key="bad", shard="s", index=1, epoch=0, reason=Reason.UNREADABLE),
    ]
    assert [targets.given for targets in teacher.teach(clips)] == [False, True, False]
    assert [targets.given for targets in teacher.teach(clips[::2])] == [False, False]
    assert teacher.teach([]) == []


def test_a_head_that_the_weights_lack_is_refused(make_model: Make, tmp_path: Path) -> None:
    folder = spoil(make_model("vit"), tmp_path)
    weights = load_file(folder / "model.safetensors")
    backbone = {name: value for name, value in weights.items() if "classifier" not in name}
    save_file(backbone, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(TeacherError, match=r"lacks weights.*classifier\.weight.*save it again"):
        load_teacher(hugging_face(folder), EMOTIONS, CLIP)


def test_damaged_weights_are_refused(make_model: Make, tmp_path: Path) -> None:
    folder = spoil(make_model("vit"), tmp_path)
    (folder / "model.safetensors").write_bytes(b"<html>")
    with pytest.raises(TeacherError, match=r"cannot be loaded.*check that its files are complete"):
        load_teacher(hugging_face(folder), EMOTIONS, CLIP)


# ---------------------------------------------------------------- what is refused


def refused(spec: HuggingFaceTeacher | OnnxTeacher | StudentTeacher, *parts: str) -> None:
    with pytest.raises(TeacherError) as caught:
        describe_teacher(spec, EMOTIONS, CLIP)
    for part in (spec.model, *parts):
        assert part in str(caught.value)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    refused(
        hugging_face(tmp_path / "none"),
        "not a folder on this machine",
        "give a folder with config.json",
    )
    refused(HuggingFaceTeacher(model="s3://b/m"), "copy it to a folder")
    refused(hugging_face(tmp_path), "no config.json", "give a folder with")


def test_a_hub_name_out_of_reach_is_refused_without_torch(tmp_path: Path) -> None:
    program = """
import sys
from liser_dist.errors import TeacherError
from liser_dist.config.base import EMOTIONS
from liser_dist.config.stream import ClipSpec
from liser_dist.config.teachers import HuggingFaceTeacher
from liser_dist.teachers.teachers import describe_teacher
try:
    describe_teacher(HuggingFaceTeacher(model="some/model"), EMOTIONS, ClipSpec())
except TeacherError as error:
    print(error)
print({"torch", "transformers", "onnxruntime", "ray"} & set(sys.modules))
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    message, imported = done.stdout.strip().splitlines()
    assert "'some/model'" in message
    assert "give a folder" in message
    assert imported == "set()"


def test_weights_that_are_missing_or_pickled_are_refused(make_model: Make, tmp_path: Path) -> None:
    folder = spoil(make_model("vit"), tmp_path)
    (folder / "model.safetensors").unlink()
    refused(hugging_face(folder), "has no weights", "model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    refused(hugging_face(folder), "pytorch_model.bin", "convert it to safetensors")


def test_labels_that_do_not_fit_are_refused(make_model: Make, tmp_path: Path) -> None:
    folder = make_model("wav2vec2")
    refused(hugging_face(folder, {"happy": "happy"}), "'happy'", "the model has neu, hap, ang, sad")
    unnamed = spoil(folder, tmp_path, id2label={"0": "LABEL_0", "1": "LABEL_1"})
    refused(hugging_face(unnamed, None), "no emotion in common", "LABEL_0", "with `labels`")
    refused(hugging_face(make_model("hubert-encoder")), "plain encoder")


def test_names_of_the_jobs_emotions_need_no_labels(make_model: Make, tmp_path: Path) -> None:
    names = {"0": "happy", "1": "sad", "2": "calm", "3": "bored"}
    folder = spoil(make_model("vit"), tmp_path, id2label=names)
    facts = describe_teacher(hugging_face(folder, None), EMOTIONS, CLIP)
    assert facts.known == (False, True, True, False, False, False)
    assert facts.names == ("happy", "sad", "calm", "bored")


def test_a_model_with_code_of_its_own_is_refused(make_model: Make, tmp_path: Path) -> None:
    folder = spoil(make_model("vit"), tmp_path, auto_map={"AutoModel": "x.Y"})
    refused(hugging_face(folder), "auto_map", "use a model whose architecture")


def test_a_text_model_is_refused(make_model: Make, tmp_path: Path) -> None:
    folder = spoil(make_model("vit"), tmp_path, model_type="bert")
    (folder / "preprocessor_config.json").unlink()
    refused(hugging_face(folder), "bert", "cannot tell whether teacher model", "use another model")


# ---------------------------------------------------------------- names -> emotions


class FixedModel:
    """Gives each clip the same logits and the embedding [1, 2]."""

    modality: Modality = "audio"
    embedding_dim = 2

    def __init__(self, names: Sequence[str], logits: Sequence[float]) -> None:
        self.names = tuple(names)
        self._logits = np.array([logits], np.float32)

    def predict(self, clips: Sequence[Clip]) -> list[ModelOutput]:
        return [(self._logits, np.array([[1, 2]], np.float32)) for _ in clips]


def test_many_names_may_mean_one_emotion_and_some_none() -> None:
    names = ("joy", "amusement", "sad", "surprised")
    labels = {"joy": "happy", "amusement": "happy", "sad": "sad"}
    mapping = map_names("m", names, labels, EMOTIONS)
    shares = np.array([0.1, 0.2, 0.3, 0.4])
    model = FixedModel(names, np.log(shares).tolist())
    teacher = ModelTeacher(model, mapping, temperature=1.0)
    assert teacher.known.tolist() == [False, True, True, False, False, False]
    [targets] = teacher.teach([make_clip()])
    assert targets.mass == pytest.approx(0.6)
    expected = [0, np.log(0.3), np.log(0.3), 0, 0, 0]
    np.testing.assert_allclose(targets.logits, expected, atol=1e-3)
    assert targets.embedding.tolist() == [1, 2]


def test_temperature_softens_the_teacher() -> None:
    mapping = map_names("m", ("happy", "sad"), None, EMOTIONS)
    model = FixedModel(("happy", "sad"), (4.0, 0.0))
    [targets] = ModelTeacher(model, mapping, temperature=4.0).teach([make_clip()])
    assert float(targets.logits[1] - targets.logits[2]) == pytest.approx(1.0, abs=1e-3)


def test_an_impossible_emotion_stays_finite_in_float16() -> None:
    probabilities: NDArray[np.float32] = np.array([1, 0], np.float32)
    logits, kept = fold(probabilities, np.eye(2, dtype=np.float32))
    assert logits.tolist() == [0, -20]
    assert kept == 1.0


def test_an_answer_that_is_no_number_costs_that_clip_its_targets(
    caplog: pytest.LogCaptureFixture,
) -> None:
    mapping = map_names("m", ("happy", "sad"), None, EMOTIONS)
    model = FixedModel(("happy", "sad"), (float("nan"), 0.0))
    [targets] = ModelTeacher(model, mapping, 1.0).teach([make_clip("odd")])
    assert not targets.given
    assert "odd" in caplog.text


# ---------------------------------------------------------------- ONNX

FACE = OnnxTeacher(  # this net divides by 255 itself
    model="face.onnx",
    input=ImageInput(size_px=112, mean=(122.782, 117.001, 104.298), scale=(1.0,)),
    names=("neutral", "happy", "sad", "angry", "fearful", "disgust", "surprised"),
    logits="logits",
    embedding="embedding",
    labels={
        **{name: name for name in ("neutral", "happy", "sad", "angry", "fearful")},
        "disgust": "disgusted",
    },
)
GREY_FACE = OnnxTeacher(  # this net divides by 255 itself
    model="grey.onnx",
    input=ImageInput(size_px=64, channels="grey", mean=(127.5,), scale=(1 / 127.5,)),
    names=("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"),
    logits="logits",
)
SPEECH = OnnxTeacher(model="speech.onnx", input=MelPowerInput(), embedding="embedding")


def at(spec: OnnxTeacher, file: Path) -> OnnxTeacher:
    return spec.model_copy(update={"model": str(file)})


def test_a_face_net_is_given_pixels_as_its_spec_says(tmp_path: Path) -> None:
    import onnxruntime

    face = at(FACE, face_net(tmp_path / "face.onnx"))
    clip = make_clip(seen=(True, False, True))
    pixels = clip.faces[clip.has_face].transpose(0, 3, 1, 2).astype(np.float32)
    pixels -= np.array([122.782, 117.001, 104.298], np.float32).reshape(3, 1, 1)
    session = onnxruntime.InferenceSession(face.model)
    probs, embedding = session.run(["probs", "embedding"], {"x": pixels})
    teacher = load_teacher(face, EMOTIONS, CLIP)
    [targets] = teacher.teach([clip])
    assert targets.mass == pytest.approx(1 - probs.mean(0)[6], abs=1e-4)
    expected = np.maximum(np.log(probs.mean(0)[:6]), -20)
    np.testing.assert_allclose(targets.logits, expected, atol=2e-2)
    np.testing.assert_allclose(targets.embedding, embedding.mean(0), rtol=2e-3, atol=2e-3)
    assert describe_teacher(face, EMOTIONS, CLIP).embedding_dim == teacher.embedding_dim == 256


def test_a_grey_face_net_maps_what_the_job_names_alike(tmp_path: Path) -> None:
    grey = at(GREY_FACE, face_net(tmp_path / "grey.onnx", channels=1))
    facts = describe_teacher(grey, EMOTIONS, CLIP)
    assert facts.known == (True, True, True, True, False, False)
    [targets, none] = load_teacher(grey, EMOTIONS, CLIP).teach(
        [make_clip(), make_clip(seen=(False,))]
    )
    assert 0 < targets.mass < 1
    assert not none.given


def test_a_speech_net_hears_mel_power_alike_in_any_company(tmp_path: Path) -> None:
    teacher = load_teacher(at(SPEECH, speech_net(tmp_path / "speech.onnx")), EMOTIONS, CLIP)
    clips = [make_clip("a", 16000), make_clip("bb", 40000), make_clip("ccc", 16000)]
    together = teacher.teach(clips)
    for clip, targets in zip(clips, together, strict=True):
        [alone] = teacher.teach([clip])
        assert targets.logits.size == 0
        np.testing.assert_allclose(targets.embedding, alone.embedding, atol=1e-4)
    assert np.linalg.norm(together[0].embedding.astype(np.float32)) == pytest.approx(1, abs=1e-2)


def test_onnx_files_and_specs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    face = at(FACE, face_net(tmp_path / "face.onnx"))
    refused(at(FACE, tmp_path / "no.onnx"), "give the path of")
    (tmp_path / "text.onnx").write_text("hello")
    refused(at(FACE, tmp_path / "text.onnx"), "not an ONNX file")
    refused(face.model_copy(update={"logits": "scores"}), "scores", "probs, logits, embedding")
    refused(face.model_copy(update={"names": ("a", "b")}), "`names` has 2", "has 7 logits")
    refused(face.model_copy(update={"input": WaveformInput()}), "cannot run with the `input`")
    refused(face.model_copy(update={"labels": {"joy": "happy"}}), "'joy'", "has neutral, happy")


# ---------------------------------------------------------------- a student as a teacher


@pytest.fixture(params=["audio", "face", "both"])
def student_place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    settings = {
        "name": "before",
        "data": {"unlabelled": "clips", "labelled": "labelled"},
        "teachers": {"speech": {"kind": "mock"}},
        "student": {"kind": "cnn", "width": 8, "input": request.param},
        "emotions": ["sad", "happy", "calm"],
    }
    spec = DistillSpec.model_validate(settings)
    torch.manual_seed(0)
    student = Student(spec.student, len(spec.emotions), spec.clip.sample_rate_hz)
    weights = dict(student.state_dict())
    place = str(tmp_path / "step-1")
    write_checkpoint(
        place,
        pack_checkpoint(
            Checkpoint(
                spec=spec,
                students={},
                best={"distilled": weights},
                optimizer={},
                state={},
                ledger=Ledger(),
            )
        ),
    )
    return place


def test_a_student_teaches_the_emotions_it_shares_with_the_job(student_place: str) -> None:
    spec = StudentTeacher(model=student_place)
    facts = describe_teacher(spec, EMOTIONS, CLIP)
    assert facts.known == (False, True, True, False, False, False)
    assert facts.names == ("sad", "happy", "calm")
    assert facts.embedding_dim == 0
    teacher = load_teacher(spec, EMOTIONS, CLIP)
    [targets, silent] = teacher.teach([make_clip(), make_clip(reason=Reason.SILENT)])
    assert 0 < targets.mass < 1
    assert targets.embedding.size == 0
    assert not silent.given
    [unseen] = teacher.teach([make_clip(seen=(False, False))])
    assert unseen.given == (facts.modality == "audio")


def test_a_student_that_does_not_fit_is_refused(student_place: str, tmp_path: Path) -> None:
    refused(
        StudentTeacher(model=str(tmp_path / "none")),
        "of `kind: student` cannot be loaded",
        "give a folder",
    )
    with pytest.raises(TeacherError, match=r"16000 Hz.*8000: set it to 16000"):
        describe_teacher(
            StudentTeacher(model=student_place), EMOTIONS, ClipSpec(sample_rate_hz=8000)
        )


# ---------------------------------------------------------------- mock


def test_a_mock_says_what_follows_from_the_key_alone() -> None:
    spec = MockTeacher(embedding=3)
    teacher, other = (load_teacher(spec, EMOTIONS, CLIP) for _ in range(2))
    clips = [make_clip("a"), make_clip("b"), make_clip("c", reason=Reason.SILENT)]
    [a, b, c] = teacher.teach(clips)
    [again] = other.teach([make_clip("a", samples=400)])
    assert a.logits.tolist() == again.logits.tolist() != b.logits.tolist()
    assert a.embedding.tolist() == again.embedding.tolist()
    assert a.mass == pytest.approx(1)
    assert np.exp(a.logits.astype(float)).sum() == pytest.approx(1, abs=1e-2)
    assert not c.given
    assert describe_teacher(spec, EMOTIONS, CLIP).known == (True,) * 6
