"""What two teachers say of the same clips: counted once each, the greatest quarrels kept."""

import numpy as np
import pytest

from liser_dist.opinions import KEPT, Opinions, divergence, said_of
from liser_dist.records import Example, Provenance

KNOWN = [[True, True, True], [True, True, False]]  # the face teacher does not know the third
BOTH = [True, True, False]


def clip(index: int, speech: list[float], face: list[float]) -> Example:
    """`fold` gives 0 in place of a logarithm where the teacher does not know the emotion."""

    def logits(shares: list[float]) -> np.ndarray:
        return np.log(np.array(shares, np.float32).clip(1e-9)).astype(np.float16)

    return Example(
        key=f"clip-{index}", shard="a.tar", index=index, epoch=index % 2,
        speech_logits=logits(speech), face_logits=logits(face), speech_kept=1.0, face_kept=1.0,
    )  # fmt: skip


def middle(_: Provenance) -> float:
    return 0.5


def entered(*rows: Example) -> Opinions:
    opinions = Opinions(BOTH)
    opinions.enter(rows, said_of(rows, KNOWN), middle)
    return opinions


def test_clips_of_which_both_spoke_are_counted_by_what_each_held_likeliest() -> None:
    silent = clip(9, [1, 0, 0], [])
    found = entered(
        clip(0, [0.9, 0.1, 0], [0.8, 0.2, 1]), clip(1, [0.9, 0.1, 0], [0.1, 0.9, 1]), silent
    )
    assert found.counts.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert [one.key for one in found.disputes][:1] == ["clip-1"]
    assert "clip-9" not in {one.key for one in found.disputes}


def test_who_means_an_emotion_that_the_other_does_not_know_does_not_differ() -> None:
    found = entered(clip(0, [0.0007, 0.0003, 0.999], [0, 1, 1]), clip(1, [1, 0, 0], [0, 1, 1]))
    other, quarrel = sorted(found.disputes, key=lambda one: one.index)
    assert other.differ < 0.01
    assert quarrel.differ == pytest.approx(1, abs=0.01)
    assert found.counts.tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert other.speech[2] == pytest.approx(0.999, abs=1e-3)  # and is shown as it was said
    assert other.face == pytest.approx([0, 1, 0], abs=1e-3)


def test_what_fell_on_no_emotion_of_the_job_makes_a_difference_small() -> None:
    differ = divergence(said_of([clip(0, [1, 0, 0], [0, 0.1, 1])], KNOWN) * BOTH)
    np.testing.assert_allclose(differ, [0.1], atol=0.01)


def test_the_greatest_are_kept_once_each_however_they_come() -> None:
    rows = [clip(n, [1 - n / 200, n / 200, 0], [0.05, 0.95, 1]) for n in range(100)]
    together = entered(*rows, rows[3])
    in_steps = Opinions(BOTH)
    for row in [*reversed(rows), rows[3]]:
        in_steps.enter([row], said_of([row], KNOWN), middle)
    assert together.disputes == in_steps.disputes
    assert [one.index for one in together.disputes] == list(range(KEPT))
    again = Opinions.from_json(together.to_json())
    assert (again.disputes, again.counts.tolist()) == (
        together.disputes, together.counts.tolist(),
    )  # fmt: skip
