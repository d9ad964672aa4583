"""Small versions of real architectures work as backbones, take a head and are saved as teachers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed as dist

from liser_dist.config.base import EMOTIONS
from liser_dist.config.stream import ClipSpec
from liser_dist.config.teachers import BackboneTeacher, HuggingFaceTeacher
from liser_dist.config.train_teacher import TrainTeacherSpec
from liser_dist.errors import TeacherError
from liser_dist.records import Clip
from liser_dist.teachers.backbone import HuggingFaceBackbone, backbone_shape, save_teacher
from liser_dist.teachers.heads import Head
from liser_dist.teachers.identity import identify_model
from liser_dist.teachers.teachers import describe_teacher, load_teacher
from liser_dist.training.teacher_loop import TeacherLoop
from tests.hub_models import save
from tests.workers import run_workers

CLIP = ClipSpec()
# Those that are named last weigh their layers; a plain encoder of each family, as the hub has them.
FAMILIES = {
    "vit-encoder": 1, "clip": 1, "dinov2-encoder": 1, "videomae-encoder": 1, "ast": 1,
    "wavlm-encoder": 3, "hubert-encoder": 3, "wav2vec2-encoder": 3, "whisper": 2,
}  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(request.param, tmp_path_factory.mktemp("backbones") / request.param)


def shown(emotion: str, speaker: str, seed: int, samples: int = 16000) -> Clip:
    """The louder, and the brighter, the further down the list its emotion is."""
    random = np.random.default_rng(seed)
    level = 1 + EMOTIONS.index(emotion)
    faces = np.clip(random.normal(30 * level, 8, (3, 112, 112, 3)), 0, 255).astype(np.uint8)
    tone = np.sin(np.arange(samples) * 0.02 * level + random.uniform(0, 6))
    return Clip(
        key=f"{speaker}-{seed}",
        shard="s",
        index=seed,
        epoch=0,
        waveform=(1200 * level * tone + random.normal(0, 50, samples)).astype(np.int16),
        faces=faces,
        has_face=np.array([True, False, True]),
        emotion=emotion,
        speaker=speaker,
    )


def people(*names: str, seed: int = 0) -> list[Clip]:
    return [
        shown(emotion, name, 100 * seed + 10 * n + number)
        for n, name in enumerate(names)
        for number, emotion in enumerate(EMOTIONS)
    ]


def test_a_head_that_is_put_in_and_saved_says_what_it_said_of_the_embeddings(
    family: Path, tmp_path: Path
) -> None:
    backbone = HuggingFaceBackbone(str(family))
    assert backbone.layers == FAMILIES[family.name]
    assert backbone_shape(str(family)) == (backbone.layers, backbone.dim)
    clips = [shown("happy", "a", 1, 16000), shown("sad", "a", 2, 12000)]
    embeddings = [torch.from_numpy(looks) for _, looks in backbone.predict(clips)]
    head = Head(
        torch.rand(backbone.layers).softmax(0),
        torch.randn(len(EMOTIONS), backbone.dim) / backbone.dim,
        torch.randn(len(EMOTIONS)),
    )
    expected = [
        head.logits(embedding.unflatten(1, (backbone.layers, -1))) for embedding in embeddings
    ]
    save_teacher(backbone.insert_head(head, EMOTIONS), str(family), tmp_path)
    teacher = load_teacher(HuggingFaceTeacher(model=str(tmp_path)), EMOTIONS, CLIP)
    assert teacher.known.all()
    predictions = teacher.model.predict(clips)  # type: ignore[attr-defined]
    for expected_logits, (logits, _) in zip(expected, predictions, strict=True):
        np.testing.assert_allclose(logits, expected_logits.numpy(), atol=1e-5)


def test_a_backbone_is_a_teacher_without_emotions(family: Path) -> None:
    spec = BackboneTeacher(model=str(family))
    facts = describe_teacher(spec, EMOTIONS, CLIP)
    teacher = load_teacher(spec, EMOTIONS, CLIP)
    assert not any(facts.known)
    assert facts.embedding_dim == teacher.embedding_dim
    (targets,) = teacher.teach([shown("sad", "a", 0)])
    assert targets.embedding.shape == (facts.embedding_dim,)
    assert not targets.logits.size


def _load_on_a_node(rank: int, folder: str, backbone: str) -> None:
    """Load a teacher's backbone on one of two workers; the second finds other weights."""
    group = f"file://{folder}/group"
    dist.init_process_group("gloo", init_method=group, rank=rank, world_size=2)
    identity = identify_model("huggingface", backbone)
    if rank == 1:
        identity = identity.model_copy(update={"digest": "0" * 64})
    spec = TrainTeacherSpec.model_validate({"backbone": backbone, "data": {"labelled": "nowhere"}})
    try:
        TeacherLoop(spec, {"labelled": people("a"), "validation": []}, identity)
    except TeacherError as error:
        Path(folder, str(rank)).write_text(str(error))
    dist.destroy_process_group()


def test_a_worker_that_finds_other_weights_ends_all_of_them(tmp_path: Path) -> None:
    backbone = save("vit-encoder", tmp_path / "vit")
    run_workers(_load_on_a_node, str(tmp_path), str(backbone))
    first, second = ((tmp_path / str(rank)).read_text() for rank in range(2))
    assert first == second
    assert "`backbone`" in first
    assert "has been replaced" in first


@pytest.mark.slow
@pytest.mark.parametrize("layers", ["none", 1, "all"])
def test_a_teacher_learns_and_is_as_sure_as_it_is_right(
    layers: str | int, family: Path, tmp_path: Path
) -> None:
    spec = TrainTeacherSpec.model_validate(
        {
            "backbone": str(family),
            "data": {"labelled": "nowhere"},
            "tune": {"layers": layers, "epochs": 1, "learning_rate": 1e-3},
        }
    )
    calm = replace(people("a")[0], emotion="calm")
    loop = TeacherLoop(spec, {"labelled": [calm, *people("a", "b", "c", "d")], "validation": []})
    trained = loop.run()
    assert trained.speakers == {"labelled": 3, "validation": 1}
    assert (
        trained.warnings[0]
        == "data.labelled: 1 clip with an emotion that is not in `emotions` left out: calm 1"
    )
    # A temperature that makes the teacher's certainty worse is not used.
    errors = [trained.calibration.error_before, trained.calibration.error_fitted]
    assert trained.validation.calibration_error() == pytest.approx(min(errors), abs=1e-6)
    save_teacher(loop.backbone.module, str(family), tmp_path)
    again = load_teacher(HuggingFaceTeacher(model=str(tmp_path)), EMOTIONS, CLIP)
    clips = sorted(loop.clips["validation"], key=lambda clip: clip.key)
    predictions = again.model.predict(clips)  # type: ignore[attr-defined]
    np.testing.assert_allclose(
        np.concatenate([logits for logits, _ in predictions]), trained.validation.logits, atol=1e-5
    )


def test_batch_statistics_stay_as_they_were(tmp_path: Path) -> None:
    spec = TrainTeacherSpec.model_validate(
        {
            "backbone": str(save("resnet", tmp_path / "resnet")),
            "data": {"labelled": "nowhere"},
            "tune": {"layers": "all", "epochs": 1, "learning_rate": 1e-3},
        }
    )
    loop = TeacherLoop(spec, {"labelled": people("a", "b", "c"), "validation": []})
    before = {name: value.clone() for name, value in loop.backbone.module.named_buffers()}
    loop.run()
    for name, value in loop.backbone.module.named_buffers():
        assert torch.equal(value, before[name]), name


def test_weights_that_a_body_lacks_are_missed(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save("vit-encoder", tmp_path / "vit")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "layer" in name and name.endswith("weight"))
    del weights[name]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(TeacherError, match="lacks weights"):
        HuggingFaceBackbone(str(folder))
