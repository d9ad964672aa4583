"""The gradient equals that of the complete batch, however it is split over workers."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed as dist

from liser_dist.config.distill import DistillSpec, TrainSpec
from liser_dist.config.student import AugmentSpec, LossSpec
from liser_dist.records import Example, Targets
from liser_dist.runs.checkpoints import Checkpoint
from liser_dist.runs.ledger import Ledger
from liser_dist.students.batches import Batcher, StudentBatch
from liser_dist.students.features import AudioInput
from liser_dist.students.learner import Learner
from liser_dist.students.losses import (
    ClassBalance,
    Target,
    count_unsure,
    kl_divergence,
    label_losses,
    masked_softmax,
    mean_target,
    relation_loss,
)
from liser_dist.students.models import StudentOutput
from liser_dist.students.variants import Variant, apply_variant, variants_of
from tests.workers import run_workers

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
    targets = {
        name: Targets(
            logits=random.standard_normal(3).astype(np.float16),
            mass=float(random.uniform(0.3, 1)),
            embedding=random.standard_normal(DIMS[name]).astype(np.float16),
        )
        for name, given in (("speech", speech), ("face", face))
        if given
    }
    return Example(
        key=f"clip-{number}",
        shard="shard",
        index=number,
        epoch=0,
        waveform=(random.standard_normal(int(random.integers(4000, 8000))) * 3000).astype(np.int16),
        emotion=emotion,
        targets=targets,
    )


def with_targets(clip: Example, name: str, **changed: object) -> Example:
    targets = replace(clip.targets_from(name), **changed)
    return replace(clip, targets={**clip.targets, name: targets})


def logits_of(*values: float) -> np.ndarray:
    return np.array(values, np.float16)


def batch(unlabelled: list[Example], labelled: list[Example]) -> StudentBatch:
    augment = AugmentSpec(gain_db=3.0)
    batcher = Batcher(AudioInput(16000, 40, 0.5), EMOTIONS, DIMS, augment, 0)
    return batcher.batch(unlabelled, labelled)


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
    "confident": {"min_confidence": 0.5},
    "mean": {"fusion": "mean"},
    "unbalanced": {"fusion": "mean", "balance": "none", "relations": 0.5},
}


def worker(rank: int, workers: int, port: int, results: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers
    )
    outcome = {
        f"{name}, {way}": learned((UNLABELLED[clips[rank]], LABELLED[labels[rank]]), way)
        for name, (clips, labels) in SPLITS[workers].items()
        for way in WAYS
    }
    if rank == 0:
        torch.save(outcome, results)
    dist.barrier()  # nobody leaves while another still waits for an answer
    dist.destroy_process_group()


@pytest.mark.parametrize("workers", SPLITS)
def test_any_split_over_workers_gives_the_gradient_of_one_process(
    workers: int, tmp_path: Path, unused_tcp_port: int
) -> None:
    file = tmp_path / "gradients.pt"
    run_workers(worker, workers, unused_tcp_port, str(file), workers=workers)
    complete = {way: learned((UNLABELLED, LABELLED), way) for way in WAYS}
    for split, shared in torch.load(file, weights_only=True).items():
        expected = complete[split.rpartition(", ")[2]]
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
    complete = batch([example(n, face=n < 5) for n in range(8)], [example(9, emotion="sad")])
    (variant,) = variants_of(LossSpec(), [kind], [1.0])[1:]
    varied = apply_variant(variant, complete, torch.Generator().manual_seed(0))
    assert torch.equal(varied.label, complete.label)
    assert torch.equal(varied.mel, complete.mel)
    face = complete.teachers["face"]
    assert torch.equal(varied.teachers["face"].given, face.given) or kind == "shuffled_targets"
    assert not varied.teachers["face"].given[8]
    moving = "face" if kind == "swapped_faces" else "speech"
    taught = complete.teachers[moving].given
    logits_of = lambda b: b.teachers[moving].logits  # noqa: E731
    moved = (logits_of(varied) != logits_of(complete)).any(dim=1)
    assert torch.equal(moved, taught)
    assert torch.equal(logits_of(varied).sort(dim=0).values, logits_of(complete).sort(dim=0).values)


@pytest.mark.parametrize("kind", ["shuffled_targets", "swapped_faces"])
def test_a_control_never_keeps_the_target_of_the_only_taught_clip_of_a_worker(kind: str) -> None:
    complete = batch([example(0), *(example(n, face=False, speech=False) for n in (1, 2))], [])
    (variant,) = variants_of(LossSpec(), [kind], [1.0])[1:]
    varied = apply_variant(variant, complete, torch.Generator().manual_seed(0))
    assert not any(targets.given.any() for targets in varied.teachers.values())


def test_a_student_that_is_resumed_in_its_second_loss_keeps_the_state_of_its_optimizer() -> None:
    first, second = LossSpec().limited_to(["embeddings"]), LossSpec().limited_to(["labels"])
    variant = Variant("embeddings_first", 0.01, first, second_loss=second)
    part = batch(UNLABELLED, LABELLED)

    def learner() -> Learner:
        known = torch.ones(2, 3, dtype=torch.bool)
        return Learner(spec(), known, DIMS, torch.device("cpu"), [variant])

    trained, resumed = learner(), learner()
    for progress in (0.4, 0.6, 0.7):
        trained.learn(part, progress)
    state = copy.deepcopy(trained.optimizer.state_dict())
    resumed.restore(
        Checkpoint(
            spec=spec(), students=trained.tensors(), best={}, optimizer=state,
            state=trained.state(), ledger=Ledger(),
        )
    )  # fmt: skip
    for both in (trained, resumed):
        both.learn(part, 0.8)
    for name, weight in trained.module.state_dict().items():
        assert torch.equal(weight, resumed.module.state_dict()[name])


NO_NUMBER = with_targets(example(0), "speech", logits=logits_of(*[float("nan")] * 3))


def test_a_step_without_a_finite_gradient_changes_nothing() -> None:
    averaged = spec().model_copy(update={"train": TrainSpec(average=0.9)})
    known = torch.ones(2, 3, dtype=torch.bool)
    learner = Learner(averaged, known, DIMS, torch.device("cpu"))
    learner.learn(batch(UNLABELLED, LABELLED), 0.2)
    before = copy.deepcopy((learner.tensors(), learner.optimizer.state_dict()["state"]))
    assert learner.learn(batch([NO_NUMBER, example(1)], []), 0.3).skipped
    weights, moments = learner.tensors(), learner.optimizer.state_dict()["state"]
    assert all(torch.equal(weights[name], weight) for name, weight in before[0].items())
    for number, of_weight in before[1].items():
        assert all(torch.equal(moments[number][name], of_weight[name]) for name in of_weight)
    assert learner.balance.running.isfinite().all()
    assert learner.skipped == 1
    assert not learner.learn(batch(UNLABELLED, LABELLED), 0.3).skipped
    assert all(weight.isfinite().all() for weight in learner.tensors().values())


def _skip_with_one_worker(rank: int, place: str) -> None:
    """Take a step in which the clips of the second worker give no finite gradient."""
    dist.init_process_group("gloo", init_method=f"file://{place}/group", rank=rank, world_size=2)
    learner = Learner(spec(), torch.ones(2, 3, dtype=torch.bool), DIMS, torch.device("cpu"))
    before = learner.tensors()
    skipped = learner.learn(batch([NO_NUMBER if rank else example(1)], LABELLED), 0.3).skipped
    same = all(torch.equal(weight, before[name]) for name, weight in learner.tensors().items())
    Path(place, f"{rank}.txt").write_text(f"{skipped} {same}")
    dist.barrier()
    dist.destroy_process_group()


def test_all_workers_skip_a_step_that_one_of_them_cannot_take(tmp_path: Path) -> None:
    run_workers(_skip_with_one_worker, str(tmp_path))
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["True True"] * 2


def test_divergence_is_zero_where_student_and_teacher_agree_and_ignores_unknown_emotions() -> None:
    teacher = torch.tensor([[2.0, 0.0, 0.0]])
    known = torch.tensor([True, True, False])
    assert kl_divergence(torch.tensor([[2.0, 0.0, 9.0]]), teacher, known, 2.0).item() < 1e-6
    assert kl_divergence(torch.tensor([[0.0, 2.0, 0.0]]), teacher, known, 2.0).item() > 0.5


def test_a_clip_of_which_little_is_known_weighs_little() -> None:
    full = example(1)
    slight = with_targets(full, "speech", mass=0.05)
    terms = {"face_kl": 0.0, "embedding": 0.0, "label_ce": 0.0, "agreement": 0.0, "balance": "none"}
    known = torch.ones(2, 3, dtype=torch.bool)
    losses = []
    for clip in (full, slight):
        learner = Learner(spec(**terms), known, {}, torch.device("cpu"))
        loss = float(learner.learn(batch([clip], []), 0.5).loss[0])
        losses.append(loss / clip.targets["speech"].mass)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_alignment_divides_by_what_a_teacher_has_said_so_far() -> None:
    known = torch.ones(2, 3, dtype=torch.bool)
    balance = ClassBalance("distribution_alignment", known, momentum=0.0)
    mostly_neutral = torch.tensor([[0.8, 0.1, 0.1], [1 / 3, 1 / 3, 1 / 3]])
    balance.update(mostly_neutral * 10, torch.tensor([10.0, 10.0]))
    targets = batch([example(1)], []).teachers["speech"]
    aligned = balance.balanced(0, targets)
    before, after = targets.logits.softmax(1)[0], aligned.softmax(1)[0]
    expected = before / mostly_neutral[0]
    assert torch.allclose(after, expected / expected.sum(), atol=1e-5)


def target(shares: list[list[float]], known: list[bool], mass: list[float]) -> Target:
    logits = torch.tensor(shares).clamp(min=1e-6).log()
    return Target(torch.tensor(2.0), 1.0, logits, torch.tensor(known), torch.tensor(mass))


def test_fusion_makes_one_target_of_two() -> None:
    known = [True, True, True]
    speech = target([[0.8, 0.1, 0.1], [0.8, 0.1, 0.1]], known, [1, 0])
    face = target([[0.2, 0.7, 0.1], [0.2, 0.7, 0.1]], known, [1, 1])
    mean = mean_target([speech, face], torch.tensor(2.0))
    shares = masked_softmax(mean.logits, mean.known)
    torch.testing.assert_close(shares[0], torch.tensor([0.5, 0.4, 0.1]))
    torch.testing.assert_close(shares[1], torch.tensor([0.2, 0.7, 0.1]))  # the only target
    assert mean.weight == 2.0


def test_what_one_teacher_does_not_know_the_other_says() -> None:
    speech = target([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]], [True, True, False], [1, 1])
    face = target([[0.2, 0.2, 0.6], [0.2, 0.2, 0.6]], [True, True, True], [1, 0])
    mean = mean_target([speech, face], torch.tensor(2.0))
    shares = masked_softmax(mean.logits, mean.known)
    expected = torch.tensor([0.35, 0.35, 0.6])
    torch.testing.assert_close(shares[0], expected / expected.sum())
    torch.testing.assert_close(shares[1], torch.tensor([0.5, 0.5, 0.0]))
    assert mean.known.tolist() == [[True, True, True], [True, True, False]]


def test_clips_that_nobody_is_sure_of_are_left_out_and_counted() -> None:
    known = torch.ones(2, 3, dtype=torch.bool)
    sure = with_targets(example(1), "speech", logits=logits_of(9, 0, 0), mass=1.0)
    even = with_targets(example(2), "speech", logits=logits_of(0, 0, 0))
    even = with_targets(even, "face", logits=logits_of(0, 0.1, 0))
    clips = [sure, even]
    settings = spec(min_confidence=0.9, agreement=0.0, embedding=0.0, label_ce=0.0, balance="none")
    one = Learner(settings, known, {}, torch.device("cpu"))
    one.learn(batch(clips, []), 0.5)
    without = with_targets(even, "speech", logits=logits_of())
    without = with_targets(without, "face", logits=logits_of())
    other = Learner(settings, known, {}, torch.device("cpu"))
    other.learn(batch([clips[0], without], []), 0.5)
    # Counted among the clips, and nothing else: the mean is over what was taught.
    assert gradient(one).norm() < gradient(other).norm()
    assert torch.nn.functional.cosine_similarity(gradient(one), gradient(other), dim=0) > 0.999
    assert count_unsure(batch(clips, []), known, settings.loss).tolist()[0] == 1
    assert one.unsure.tolist()[0] == 1


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
