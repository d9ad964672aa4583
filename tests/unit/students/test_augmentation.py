"""Speed and reverberation change a waveform as expected physically."""

import numpy as np
import pytest

from liser_dist.students.augmentation import change_speed, reverberate


def test_faster_is_shorter_and_higher() -> None:
    rate = 16000
    tone = np.sin(2 * np.pi * 400 * np.arange(rate) / rate).astype(np.float32)
    faster = change_speed(tone, 1.25)
    assert len(faster) == rate * 4 // 5
    assert np.abs(np.fft.rfft(faster)).argmax() * rate / len(faster) == pytest.approx(500, abs=2)


def test_a_room_goes_on_sounding_as_loud_and_as_long() -> None:
    rate, click = 16000, np.zeros(16000, np.float32)
    click[100] = 1.0
    heard = reverberate(click, 0.4, rate, np.random.default_rng(0))
    assert heard.shape == click.shape
    assert np.sum(heard**2) == pytest.approx(1.0, rel=1e-3)
    after_s = np.array([0.01, 0.2, 0.38])
    levels = [np.abs(heard[100 + int(s * rate) :][:300]).mean() for s in after_s]
    assert 20 * np.log10(levels[0] / levels[1]) == pytest.approx(60 * 0.19 / 0.4, abs=3)
    assert np.abs(heard[100 + int(0.41 * rate) :]).max() < 1e-6
