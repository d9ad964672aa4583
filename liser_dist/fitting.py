"""Labelled clips + a backbone -> a teacher's folder, in this process: for the synthetic corpus.

The backbone stays as it is but for its last layers, which become the head. The net is saved with
its feature extractor or image processor, as transformers would.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from liser_dist.errors import TeacherError
from liser_dist.records import Clip

if TYPE_CHECKING:
    from torch import Tensor

    from liser_dist.huggingface_backbone import HuggingFaceBackbone

logger = logging.getLogger(__name__)


def fit_teacher(
    backbone: str | Path,
    clips: Sequence[Clip],
    emotions: Sequence[str],
    folder: Path,
    sample_rate_hz: int = 16000,
) -> None:
    """Fit a head on labelled clips and save the whole net as a teacher.

    An image net takes every frame with a face for an example, a video net every clip with one.

    Args:
        backbone: a folder or hub name; a plain encoder is given a classifier first.
        clips: labelled; those that show the net nothing are left out.
        emotions: the classes, in the order of the new logits.
        folder: where the teacher is saved, safetensors and JSON.
        sample_rate_hz: of the clips' sound.

    Raises:
        TeacherError: the backbone cannot be loaded or has no linear layer at its end, or there
            is an emotion that no usable clip shows.
    """
    from liser_dist.heads import fit_head
    from liser_dist.huggingface_backbone import HuggingFaceBackbone, save_teacher

    net = HuggingFaceBackbone(str(backbone), sample_rate_hz)
    embeddings, labels = _embed(net, clips, emotions)
    head = fit_head(embeddings, labels, len(emotions))
    save_teacher(net.put_in(head, emotions), str(backbone), folder)
    logger.info(
        "head of %s fitted on %d examples of %d clips", folder.name, len(labels), len(clips)
    )


def _embed(
    net: HuggingFaceBackbone, clips: Sequence[Clip], emotions: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """What the head is given, [n, layers, dim], and the number of the emotion, [n]."""
    import torch

    given: list[np.ndarray] = []
    numbers: list[int] = []
    for clip in clips:
        if clip.emotion in emotions and clip.shows(net.modality):
            # One at a time: no clip's embedding may depend on its company.
            ((_, looks),) = net.answer([clip])
            given.append(looks)
            numbers += [emotions.index(clip.emotion)] * len(looks)
    require_all_shown(emotions, numbers, net.modality)
    embeddings = torch.from_numpy(np.concatenate(given)).unflatten(1, (net.layers, net.dim))
    return embeddings, torch.tensor(numbers)


def require_all_shown(emotions: Sequence[str], numbers: Sequence[int], modality: str) -> None:
    """Raise TeacherError where an emotion has no example."""
    if missing := sorted(set(emotions) - {emotions[number] for number in numbers}):
        raise TeacherError(
            f"no labelled clip shows {', '.join(missing)} to the {modality} backbone: add "
            "clips of it, or leave it out of `emotions`"
        )
