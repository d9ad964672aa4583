"""Prepares audio and face crops as the processors of Hugging Face models do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


def to_pixels(faces: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """Resize and normalise face crops.

    Args:
        faces: [n, px, px, 3] bytes.
        settings: the JSON of the model's image processor.

    Returns:
        [n, 3, h, w] on the same device.
    """
    import torch

    pixels = faces.permute(0, 3, 1, 2).float()
    if settings.get("do_resize", True):
        pixels = _resize(pixels, settings)
    if settings.get("do_rescale", True):
        pixels = pixels * float(settings.get("rescale_factor", 1 / 255))
    if settings.get("do_normalize", True):
        shape = (1, -1, 1, 1)
        mean = torch.tensor(settings.get("image_mean", 0.5), device=faces.device)
        std = torch.tensor(settings.get("image_std", 0.5), device=faces.device)
        pixels = (pixels - mean.reshape(shape)) / std.reshape(shape)
    return pixels


def spread(given: int, wanted: int) -> NDArray[np.intp]:
    """Return `wanted` indices spread evenly over `given` frames, repeated if there are too few."""
    return np.linspace(0, given - 1, wanted).round().astype(np.intp)


def resample(waveform: NDArray[np.float32], from_hz: int, to_hz: int) -> NDArray[np.float32]:
    """Change the sample rate of a waveform [samples]."""
    import torch
    from torchaudio import functional

    resampled: NDArray[np.float32] = functional.resample(
        torch.from_numpy(waveform), from_hz, to_hz
    ).numpy()
    return resampled


def _resize(pixels: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """Resize square crops [n, 3, px, px] to [n, 3, h, w], as the image processor would."""
    from torch.nn.functional import interpolate

    size = settings.get("size", 224)
    height, width = _height_width(size)
    if "crop_pct" in settings and "shortest_edge" in size and height < 384:
        crop = (height, width)  # ConvNeXt resizes to a larger size, then crops
        height = width = int(height / (settings["crop_pct"] or 1))
    elif settings.get("do_center_crop"):
        crop = _height_width(settings.get("crop_size", size))
    else:
        crop = (height, width)
    mode = {0: "nearest", 3: "bicubic"}.get(settings.get("resample", 2), "bilinear")
    if pixels.shape[2:] != (height, width):
        pixels = interpolate(pixels, (height, width), mode=mode, antialias=mode != "nearest")
        pixels = pixels.round().clamp(0, 255)  # whole numbers, as in an image that PIL resized
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    return pixels[:, :, top : top + crop[0], left : left + crop[1]]


def _height_width(size: int | dict[str, int]) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    edge = size.get("shortest_edge") or size.get("longest_edge") or 224
    return size.get("height") or edge, size.get("width") or edge
