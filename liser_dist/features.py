"""Waveform -> log-mel: the same code in training and in what is deployed.

No statistic of the whole utterance enters, for a stream cannot know it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchaudio.transforms import MelSpectrogram

WINDOW_S = 0.025
HOP_S = 0.010
# Centre and spread of log-mel of speech at usual levels, so that a student sees about -2..2.
_LOG_MEAN, _LOG_SPREAD, _FLOOR = -4.0, 4.0, 1e-6


class LogMel(nn.Module):
    """[batch, samples] in -1..1 -> [batch, frames, mels], one frame every 10 ms."""

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
        mel = self.spectrogram(waveform.float()).transpose(1, 2)
        scaled: Tensor = (torch.log(mel + _FLOOR) - _LOG_MEAN) / _LOG_SPREAD
        return scaled

    def frames(self, samples: Tensor) -> Tensor:
        """How many frames hold sound, of clips of so many samples."""
        return torch.div(samples, self.hop, rounding_mode="floor") + 1
