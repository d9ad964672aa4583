"""What two teachers say of the same clips: counted once each, the greatest quarrels kept."""

import numpy as np
import pytest

from liser_dist.opinions import KEPT, Opinions, divergence, said_of
from liser_dist.records import Example

KNOWN = [[True, True, True], [True, True, False]]  # the face teacher does not know the third


def clip(index: int, speech: list[float], face: list[float], kept: float = 1.0) -> Example:
    def logits(shares: list[float]) -> np.ndarray:
        return np.log(np.array(shares, np.float32).clip(1e-9)).astype(np.float16)

    return Example(
        key=f"clip-{index}", shard="a.tar", index=index, epoch=index % 2,
        speech_logits=logits(speech), face_logits=logits(face), speech_kept=1.0, face_kept=kept,
    )  # fmt: skip


def entered(*rows: Example) -> Opinions:
    opinions = Opinions(3)
    opinions.enter(rows, said_of(rows, KNOWN))
    return opinions


def test_clips_of_which_both_spoke_are_counted_by_what_each_held_likeliest() -> None:
    silent = clip(9, [1, 0, 0], [])
    found = entered(
        clip(0, [0.9, 0.1, 0], [0.8, 0.2, 0]), clip(1, [0.9, 0.1, 0], [0.1, 0.9, 0]), silent
    )
    assert found.counts.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert [one.key for one in found.disputes][:1] == ["clip-1"]
    assert "clip-9" not in {one.key for one in found.disputes}


def test_an_emotion_that_one_does_not_know_is_no_difference() -> None:
    (said,) = said_of([clip(0, [0.1, 0.1, 0.8], [0.5, 0.5, 0])], KNOWN)
    np.testing.assert_allclose(said, [[0.5, 0.5, 0], [0.5, 0.5, 0]], atol=1e-3)
    assert divergence(said[None])[0] == pytest.approx(0, abs=1e-4)


def test_opposite_certainties_differ_by_one_and_less_where_little_is_known_of_the_job() -> None:
    rows = [clip(0, [1, 0, 0], [0, 1, 0]), clip(1, [1, 0, 0], [0, 1, 0], kept=0.1)]
    differ = divergence(said_of(rows, KNOWN))
    np.testing.assert_allclose(differ, [1, 0.1], atol=0.01)


def test_the_greatest_are_kept_once_each_however_they_come() -> None:
    rows = [clip(n, [1 - n / 200, n / 200, 0], [0.05, 0.95, 0]) for n in range(100)]
    together = entered(*rows, rows[3])
    in_steps = Opinions(3)
    for row in [*reversed(rows), rows[3]]:
        in_steps.enter([row], said_of([row], KNOWN))
    assert together.disputes == in_steps.disputes
    assert [one.index for one in together.disputes] == list(range(KEPT))
    again = Opinions.from_json(together.to_json())
    assert (again.disputes, again.counts.tolist()) == (
        together.disputes, together.counts.tolist(),
    )  # fmt: skip
