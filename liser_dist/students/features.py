"""Computes the log-mel spectrograms that students take, identically in training and exports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchaudio.transforms import MelSpectrogram

from liser_dist.records import Example, to_floats

WINDOW_S = 0.025
HOP_S = 0.010
# Mean and spread of the log-mel of speech at usual levels: a student's input is about -2..2.
_LOG_MEAN, _LOG_SPREAD, _FLOOR = -4.0, 4.0, 1e-6


class LogMel(nn.Module):
    """Log-mel spectrogram: [batch, samples] in -1..1 -> [batch, frames, mels], a frame per 10 ms.

    It uses no statistic of the complete utterance, because a streaming student does not have one.
    """

    def __init__(self, sample_rate_hz: int, mels: int) -> None:
        super().__init__()
        self.hop = round(HOP_S * sample_rate_hz)
        window = round(WINDOW_S * sample_rate_hz)
        self.spectrogram = MelSpectrogram(
            sample_rate=sample_rate_hz,
            n_fft=1 << (window - 1).bit_length(),
            win_length=window,
            hop_length=self.hop,
            f_min=50.0,
            n_mels=mels,
        )

    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def forward(self, waveform: Tensor) -> Tensor:
        """Return the spectrogram in float32, also under autocast."""
        mel = self.spectrogram(waveform.float()).transpose(1, 2)
        scaled: Tensor = (torch.log(mel + _FLOOR) - _LOG_MEAN) / _LOG_SPREAD
        return scaled

    def frames(self, samples: Tensor) -> Tensor:
        """Return the number of frames that hold audio, of clips with so many samples."""
        return torch.div(samples, self.hop, rounding_mode="floor") + 1


class AudioInput:
    """Log-mel input of clips, padded to the length of the window.

    The method names say where the spectrogram comes from: it is computed from the waveform, or it
    was computed earlier and stored with the example (`targets.input: log_mel`).
    """

    def __init__(self, sample_rate_hz: int, mels: int, window_s: float) -> None:
        """`mels`: mel bands; `window_s`: length of the window in seconds."""
        self.features = LogMel(sample_rate_hz, mels)
        self.sample_rate_hz = sample_rate_hz
        self.window_samples = round(window_s * sample_rate_hz)

    def from_waveforms(self, waveforms: Sequence[NDArray[np.float32]]) -> tuple[Tensor, Tensor]:
        """Return mel [batch, frames, mels] and [batch] frames of audio; a silent row for no clip.

        `waveforms`: [samples] each, in -1..1, no longer than the window.
        """
        padded = torch.zeros(max(1, len(waveforms)), self.window_samples)
        lengths = torch.zeros(len(padded), dtype=torch.long)
        for row, waveform in enumerate(waveforms):
            lengths[row] = len(waveform)
            padded[row, : len(waveform)] = torch.from_numpy(waveform)
        with torch.no_grad():
            return self.features(padded), self.features.frames(lengths)

    def from_stored(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Return the same as `from_waveforms`, for examples that hold their spectrogram."""
        silent, _ = self.from_waveforms([])
        mel = silent.repeat(len(examples), 1, 1)
        frames = torch.zeros(len(examples), dtype=torch.long)
        for row, example in enumerate(examples):
            audio = torch.from_numpy(example.mel.astype(np.float32)).reshape(-1, mel.shape[2])
            mel[row, : len(audio)], frames[row] = audio, len(audio)
        return mel, frames

    def replace_waveform(self, example: Example) -> Example:
        """Return the example with its spectrogram in place of the waveform, unless rejected."""
        if example.rejected:
            return example
        mel, frames = self.from_waveforms([to_floats(example.waveform)])
        stored = mel[0, : int(frames[0])].numpy().astype(np.float16).ravel()
        return replace(example, waveform=example.waveform[:0], mel=stored)
