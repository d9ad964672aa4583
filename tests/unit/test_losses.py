"""The gradient is right: whatever the split of a batch over workers, it is that of the whole."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing

from liser_dist.batches import TEACHERS, Batcher, StudentBatch
from liser_dist.features import LogMel
from liser_dist.learning import HEARD, Arm, Learner, treated
from liser_dist.losses import (
    ClassBalance,
    Target,
    divergence,
    doubts,
    fused,
    label_losses,
    masked_softmax,
)
from liser_dist.records import Example
from liser_dist.relations import relation_loss
from liser_dist.spec import AugmentSpec, DistillSpec, LossSpec, TrainSpec
from liser_dist.students import StudentOutput

EMOTIONS = ("neutral", "happy", "sad")
DIMS = {"speech": 5, "face": 4}


def spec(**loss: object) -> DistillSpec:
    terms = {"speech_kl": 1.0, "face_kl": 0.7, "embedding": 0.5, "label_ce": 1.0, "agreement": 1.0}
    return DistillSpec.model_validate(
        {
            "name": "test",
            "emotions": EMOTIONS,
            "data": {"unlabelled": "nowhere", "labelled": "nowhere"},
            "clip": {"window_s": 0.5},
            "teachers": {"speech": {"kind": "mock"}, "face": {"kind": "mock"}},
            "student": {"kind": "cnn", "width": 8, "dropout": 0.0},
            "loss": terms | loss,
            "train": {"gradient_norm": 1e6},
            "compare": ["labels_only"],
        }
    )


def example(number: int, *, face: bool = True, speech: bool = True, emotion: str = "") -> Example:
    random = np.random.default_rng(number)
    said = {}
    for name, given in (("speech", speech), ("face", face)):
        if given:
            said[f"{name}_logits"] = random.standard_normal(3).astype(np.float16)
            said[f"{name}_kept"] = float(random.uniform(0.3, 1))
            said[f"{name}_embedding"] = random.standard_normal(DIMS[name]).astype(np.float16)
    return Example(
        key=f"clip-{number}",
        shard="shard",
        index=number,
        epoch=0,
        waveform=(random.standard_normal(int(random.integers(4000, 8000))) * 3000).astype(np.int16),
        emotion=emotion,
        **said,
    )


def batch(unlabelled: list[Example], labelled: list[Example]) -> StudentBatch:
    augment = AugmentSpec(gain_db=3.0)
    return Batcher(LogMel(16000, 40), EMOTIONS, DIMS, augment, 0, 8000).batch(unlabelled, labelled)


def gradient(learner: Learner) -> torch.Tensor:
    return torch.cat([weight.grad.flatten() for weight in learner.module.parameters()])


def learned(part: Part, way: str) -> torch.Tensor:
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    known = torch.tensor([[True, True, True], [True, True, False]])
    learner = Learner(spec(**WAYS[way]), known, DIMS, torch.device("cpu"))
    learner.learn(batch(*part), 0.5)
    return gradient(learner)


Part = tuple[list[Example], list[Example]]
UNLABELLED = [example(n, face=n < 4, speech=n != 2) for n in range(8)]
LABELLED = [example(10 + n, emotion=EMOTIONS[n]) for n in range(3)]
SPLITS = {  # of the unlabelled and the labelled clips, by number of workers
    2: {
        "5 + 3": ([slice(0, 5), slice(5, 8)], [slice(0, 1), slice(1, 3)]),
        "8 + 0": ([slice(0, 8), slice(8, 8)], [slice(0, 3), slice(3, 3)]),
        "faces, labels on one side": ([slice(0, 4), slice(4, 8)], [slice(0, 3), slice(3, 3)]),
    },
    3: {
        "one without clips": (
            [slice(0, 3), slice(3, 3), slice(3, 8)],
            [slice(0, 0), slice(0, 3), slice(3, 3)],
        ),
    },
}
WAYS: dict[str, dict[str, object]] = {
    "aligned": {"balance": "distribution_alignment"},
    "resampled": {"balance": "resample", "min_confidence": 0.5},
    "mean": {"fusion": "mean"},
    "product": {"fusion": "product", "balance": "none"},
    "confidence": {"fusion": "confidence", "relations": 0.5},
}


def worker(rank: int, workers: int, port: int, results: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers
    )
    found = {
        f"{name}, {way}": learned((UNLABELLED[clips[rank]], LABELLED[labels[rank]]), way)
        for name, (clips, labels) in SPLITS[workers].items()
        for way in WAYS
    }
    if rank == 0:
        torch.save(found, results)
    dist.barrier()  # nobody leaves while another still waits for an answer
    dist.destroy_process_group()
    os._exit(0)  # torch's threads abort a process, now and then, that ends in Python's own way


@pytest.mark.parametrize("workers", SPLITS)
def test_any_split_over_workers_gives_the_gradient_of_one_process(
    workers: int, tmp_path: Path, unused_tcp_port: int
) -> None:
    file = tmp_path / "gradients.pt"
    multiprocessing.spawn(worker, (workers, unused_tcp_port, str(file)), nprocs=workers)
    whole = {way: learned((UNLABELLED, LABELLED), way) for way in WAYS}
    for split, shared in torch.load(file, weights_only=True).items():
        expected = whole[split.rpartition(", ")[2]]
        assert expected.abs().max() > 1e-3
        assert (expected - shared).abs().max() < 1e-6, split


@pytest.mark.parametrize("train", [{"precision": "bf16"}, {"average": 0.5}])
def test_students_learn_what_they_are_taught(train: dict[str, object]) -> None:
    clips = [example(n) for n in range(8)]
    settings = spec(balance="none").model_copy(
        update={"train": TrainSpec(learning_rates=(0.01,), **train)}
    )
    known = torch.ones(2, 3, dtype=torch.bool)
    learner = Learner(settings, known, DIMS, torch.device("cpu"))
    losses = [float(learner.learn(batch(clips, []), 0.1).loss[0]) for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]
    weights = list(learner.students()[0].parameters())
    assert all(weight.isfinite().all() for weight in weights)


@pytest.mark.parametrize("kind", ["shuffled_targets", "swapped_faces"])
def test_a_control_moves_targets_between_taught_clips_and_nothing_else(kind: str) -> None:
    whole = batch([example(n, face=n < 5) for n in range(8)], [example(9, emotion="sad")])
    seen = treated(
        Arm(kind, 1.0, LossSpec(), HEARD.get(kind, TEACHERS)),
        whole,
        torch.Generator().manual_seed(0),
    )
    assert torch.equal(seen.label, whole.label)
    assert torch.equal(seen.mel, whole.mel)
    assert torch.equal(seen.face.given, whole.face.given) or kind == "shuffled_targets"
    assert not seen.face.given[8]
    taught = whole.face.given if kind == "swapped_faces" else whole.speech.given
    said = (lambda b: b.face.logits) if kind == "swapped_faces" else (lambda b: b.speech.logits)
    moved = (said(seen) != said(whole)).any(dim=1)
    assert torch.equal(moved, taught)
    assert torch.equal(said(seen).sort(dim=0).values, said(whole).sort(dim=0).values)


def test_divergence_is_zero_where_student_and_teacher_agree_and_ignores_unknown_emotions() -> None:
    teacher = torch.tensor([[2.0, 0.0, 0.0]])
    known = torch.tensor([True, True, False])
    assert divergence(torch.tensor([[2.0, 0.0, 9.0]]), teacher, known, 2.0).item() < 1e-6
    assert divergence(torch.tensor([[0.0, 2.0, 0.0]]), teacher, known, 2.0).item() > 0.5


def test_a_clip_of_which_little_is_known_weighs_little() -> None:
    full = example(1)
    slight = replace(full, speech_kept=0.05)
    terms = {"face_kl": 0.0, "embedding": 0.0, "label_ce": 0.0, "agreement": 0.0, "balance": "none"}
    known = torch.ones(2, 3, dtype=torch.bool)
    losses = []
    for clip in (full, slight):
        learner = Learner(spec(**terms), known, {}, torch.device("cpu"))
        losses.append(float(learner.learn(batch([clip], []), 0.5).loss[0]) / clip.speech_kept)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_alignment_divides_by_what_a_teacher_has_said_so_far() -> None:
    known = torch.ones(2, 3, dtype=torch.bool)
    balance = ClassBalance("distribution_alignment", known, momentum=0.0)
    mostly_neutral = torch.tensor([[0.8, 0.1, 0.1], [1 / 3, 1 / 3, 1 / 3]])
    balance.update(mostly_neutral * 10, torch.tensor([10.0, 10.0]))
    said = batch([example(1)], []).speech
    aligned, _ = balance.balanced(0, said)
    before, after = said.logits.softmax(1)[0], aligned.softmax(1)[0]
    expected = before / mostly_neutral[0]
    assert torch.allclose(after, expected / expected.sum(), atol=1e-5)


def target(shares: list[list[float]], known: list[bool], spoke: list[float]) -> Target:
    logits = torch.tensor(shares).clamp(min=1e-6).log()
    return Target("speech", 1.0, logits, torch.tensor(known), torch.tensor(spoke))


def test_fusion_makes_one_target_of_two() -> None:
    known = [True, True, True]
    speech = target([[0.8, 0.1, 0.1], [0.8, 0.1, 0.1], [0.8, 0.1, 0.1]], known, [1, 0, 1])
    face = target([[0.2, 0.7, 0.1], [0.2, 0.7, 0.1], [1 / 3, 1 / 3, 1 / 3]], known, [1, 1, 1])
    rows = {how: fused([speech, face], how) for how in ("mean", "product", "confidence")}
    said = {how: masked_softmax(one.logits, one.known) for how, one in rows.items()}
    torch.testing.assert_close(said["mean"][0], torch.tensor([0.5, 0.4, 0.1]))
    root = torch.tensor([0.16, 0.07, 0.01]).sqrt()
    torch.testing.assert_close(said["product"][0], root / root.sum())
    for shares in said.values():  # where one alone spoke, its own
        torch.testing.assert_close(shares[1], torch.tensor([0.2, 0.7, 0.1]))
    torch.testing.assert_close(  # who is even says nothing
        said["confidence"][2], torch.tensor([0.8, 0.1, 0.1]), atol=1e-3, rtol=0
    )
    assert rows["mean"].weight == 2.0


def test_what_one_teacher_does_not_know_the_other_says() -> None:
    speech = target([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]], [True, True, False], [1, 1])
    face = target([[0.2, 0.2, 0.6], [0.2, 0.2, 0.6]], [True, True, True], [1, 0])
    one = fused([speech, face], "mean")
    said = masked_softmax(one.logits, one.known)
    expected = torch.tensor([0.35, 0.35, 0.6])
    torch.testing.assert_close(said[0], expected / expected.sum())
    torch.testing.assert_close(said[1], torch.tensor([0.5, 0.5, 0.0]))
    assert one.known.tolist() == [[True, True, True], [True, True, False]]


def test_clips_that_nobody_is_sure_of_are_left_out_and_counted() -> None:
    known = torch.ones(2, 3, dtype=torch.bool)
    sure = {"speech_logits": np.array([9, 0, 0], np.float16), "speech_kept": 1.0}
    even = {"speech_logits": np.zeros(3, np.float16), "face_logits": np.array([0, 0.1, 0])}
    even["face_logits"] = even["face_logits"].astype(np.float16)
    clips = [replace(example(1), **sure), replace(example(2), **even)]
    settings = spec(min_confidence=0.9, agreement=0.0, embedding=0.0, label_ce=0.0, balance="none")
    one = Learner(settings, known, {}, torch.device("cpu"))
    one.learn(batch(clips, []), 0.5)
    without = replace(clips[1], speech_logits=clips[1].speech_logits[:0])
    without = replace(without, face_logits=without.face_logits[:0])
    other = Learner(settings, known, {}, torch.device("cpu"))
    other.learn(batch([clips[0], without], []), 0.5)
    # Counted among the clips, and nothing else: the mean is over what was taught.
    assert gradient(one).norm() < gradient(other).norm()
    assert torch.nn.functional.cosine_similarity(gradient(one), gradient(other), dim=0) > 0.999
    assert doubts(batch(clips, []), known, settings.loss).tolist()[0] == 1
    assert one.doubts.tolist()[0] == 1


def test_relations_are_those_of_the_teachers_clips_whatever_the_scale() -> None:
    teacher = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    there = torch.tensor([True] * 5 + [False])
    turned = torch.cat([-3 * teacher, torch.zeros(6, 2)], dim=1)
    assert relation_loss(turned, teacher, there) < 1e-6
    other = turned.clone()
    other[0] += 9
    assert relation_loss(other, teacher, there) > 0.01
    same = torch.zeros(6, 3, requires_grad=True)
    relation_loss(same, teacher, there).backward()
    assert same.grad.isfinite().all()


def test_what_is_weakly_felt_is_a_softer_label() -> None:
    clips = [replace(example(1), emotion="sad", intensity=text) for text in ("1.0", "0.5", "0")]
    logits = torch.tensor([[0.0, 1.0, 3.0]] * 3)
    output = StudentOutput(logits, torch.zeros(3, 1))
    losses = label_losses(output, batch([], clips), spec(intensity=1.0).loss)
    log_shares = logits[0].log_softmax(0)
    hard, even = -log_shares[2], -log_shares.mean()
    torch.testing.assert_close(losses, torch.stack([hard, (hard + even) / 2, even]))
    firm = label_losses(output, batch([], clips), spec().loss)
    torch.testing.assert_close(firm, hard.expand(3))


def test_clips_on_which_teachers_differ_are_counted_where_both_are_heeded() -> None:
    known = torch.ones(2, 3, dtype=torch.bool)
    said = {"speech_logits": np.array([3, 0, 0], np.float16)}
    clips = [
        replace(example(1), **said, face_logits=np.array(face, np.float16))
        for face in ([2, 0, 0], [0, 2, 0], [0, 0, 2])
    ]
    whole = batch([*clips, replace(example(2, face=False), **said)], [])
    assert doubts(whole, known, spec().loss).tolist() == [0, 2]
    assert doubts(whole, known, spec(face_kl=0.0).loss).tolist() == [0, 0]
