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

from liser_dist.batches import Batcher, StudentBatch
from liser_dist.features import LogMel
from liser_dist.learning import Learner, treated
from liser_dist.losses import ClassBalance, divergence
from liser_dist.records import Example
from liser_dist.spec import AugmentSpec, DistillSpec, TrainSpec

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


def learned(part: Part, balance: str) -> torch.Tensor:
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    known = torch.tensor([[True, True, True], [True, True, False]])
    learner = Learner(spec(balance=balance), known, DIMS, torch.device("cpu"))
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
BALANCES = ("distribution_alignment", "resample")


def worker(rank: int, workers: int, port: int, results: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers
    )
    found = {
        f"{name}, {balance}": learned((UNLABELLED[clips[rank]], LABELLED[labels[rank]]), balance)
        for name, (clips, labels) in SPLITS[workers].items()
        for balance in BALANCES
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
    whole = {balance: learned((UNLABELLED, LABELLED), balance) for balance in BALANCES}
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
    seen = treated(kind, whole, torch.Generator().manual_seed(0))
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
