"""A head is fitted on a frozen backbone and saved; clips that lack input are reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from liser_dist.errors import TeacherError
from liser_dist.records import Clip
from liser_dist.synthetic.teachers import fit_teacher
from liser_dist.teachers.backbone import find_head
from liser_dist.teachers.heads import fit_head
from liser_dist.teachers.huggingface import HuggingFaceModel

EMOTIONS = ("neutral", "happy", "sad")
PX = 32


def tone(emotion: str, rng: np.random.Generator) -> Clip:
    """A second of a tone, the higher the further down the list, and a face as bright."""
    number = EMOTIONS.index(emotion)
    phase = np.arange(16_000) / 16_000 * 2 * np.pi * 300 * 3**number
    sound = np.sin(phase + rng.uniform(0, 6)) + 0.1 * rng.standard_normal(16_000)
    faces = np.clip(rng.normal(50 + 70 * number, 10, (3, PX, PX, 3)), 0, 255)
    return Clip(
        key=f"{emotion}-{rng.integers(10**9)}",
        shard="",
        index=0,
        epoch=0,
        waveform=np.asarray(8000 * sound, np.int16),
        faces=faces.astype(np.uint8),
        has_face=np.array([True, False, True]),
        emotion=emotion,
    )


@pytest.fixture
def clips() -> list[Clip]:
    rng = np.random.default_rng(0)
    return [tone(emotion, rng) for emotion in EMOTIONS * 4]


@pytest.fixture(scope="module", params=["audio", "audio-encoder", "image"])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained nets, whose features tell the toy clips apart all the same."""
    from transformers import (
        ASTConfig,
        ASTFeatureExtractor,
        ASTForAudioClassification,
        ASTModel,
        ResNetConfig,
        ResNetForImageClassification,
        ViTImageProcessorPil,
    )

    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    net: Any
    processor: Any
    if request.param == "image":
        config: Any = ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5
        )
        net = ResNetForImageClassification(config)
        processor = ViTImageProcessorPil(size={"height": PX, "width": PX})
    else:
        config = ASTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            num_mel_bins=32,
            max_length=96,
            num_labels=5,
        )
        net = (ASTModel if request.param == "audio-encoder" else ASTForAudioClassification)(config)
        processor = ASTFeatureExtractor(num_mel_bins=32, max_length=96)
    net.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_a_head_fitted_on_few_clips_knows_new_ones(
    backbone: Path, clips: list[Clip], tmp_path: Path
) -> None:
    fit_teacher(backbone, clips, EMOTIONS, tmp_path / "teacher")
    rng = np.random.default_rng(1)
    new = [tone(emotion, rng) for emotion in EMOTIONS * 5]
    answers = HuggingFaceModel(str(tmp_path / "teacher")).predict(new)
    found = [EMOTIONS[int(logits.mean(0).argmax())] for logits, _ in answers]
    right = np.mean([name == clip.emotion for name, clip in zip(found, new, strict=True)])
    assert right > 0.8


def test_a_saved_teacher_names_the_emotions_and_gives_the_regressions_logits(
    backbone: Path, clips: list[Clip], tmp_path: Path
) -> None:
    fit_teacher(backbone, clips, EMOTIONS, tmp_path / "teacher")
    teacher = HuggingFaceModel(str(tmp_path / "teacher"))
    assert teacher.names == EMOTIONS
    given: list[torch.Tensor] = []
    hook = find_head(teacher.module).register_forward_pre_hook(
        lambda _, inputs: given.append(inputs[0].clone())
    )
    answers = [teacher.predict([clip])[0][0] for clip in clips]
    hook.remove()
    labels = torch.tensor(
        [
            EMOTIONS.index(clip.emotion)
            for clip, logits in zip(clips, answers, strict=True)
            for _ in logits
        ]
    )
    embeddings = torch.cat(given)
    expected = fit_head(embeddings[:, None], labels, len(EMOTIONS)).logits(embeddings[:, None])
    np.testing.assert_allclose(np.concatenate(answers), expected.numpy(), atol=1e-5)


def test_fitting_again_writes_the_same_bytes(
    backbone: Path, clips: list[Clip], tmp_path: Path
) -> None:
    for name in ("one", "two"):
        fit_teacher(backbone, clips, EMOTIONS, tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= set(files)
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_an_emotion_without_clips_is_refused_by_name(
    backbone: Path, clips: list[Clip], tmp_path: Path
) -> None:
    with pytest.raises(TeacherError, match="no clip labelled angry can be used"):
        fit_teacher(backbone, clips, (*EMOTIONS, "angry"), tmp_path / "teacher")


def test_a_rare_emotion_weighs_as_much_as_a_common_one() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 180 + [1] * 20)
    embeddings = torch.randn(200, 3, generator=generator) + labels[:, None]
    embeddings = embeddings[:, None]
    found = fit_head(embeddings, labels, 2).logits(embeddings).argmax(1)
    assert (found[labels == 1] == 1).float().mean() > 0.7


def test_few_examples_do_not_make_a_head_certain() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(6).repeat(2)
    embeddings = torch.randn(12, 64, generator=generator)
    head = fit_head(embeddings[:, None], labels, 6)
    new = torch.randn(100, 1, 64, generator=generator)
    sure = head.logits(new).softmax(1).amax(1).mean()
    assert sure < 0.6


def test_a_dimension_that_never_moves_does_no_harm() -> None:
    embeddings = torch.tensor([[0.0, 3.0], [1.0, 3.0], [0.1, 3.0], [0.9, 3.0]])
    head = fit_head(embeddings[:, None], torch.tensor([0, 1, 0, 1]), 2)
    assert torch.isfinite(head.weight).all()
    assert head.weight[:, 1].abs().max() < 1e-6
    assert head.logits(embeddings[:, None]).argmax(1).tolist() == [0, 1, 0, 1]
