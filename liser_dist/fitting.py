"""Labelled clips + a backbone -> a teacher's folder, in this process: for the synthetic corpus.

The backbone stays as it is but for its last layers, which become the head. The net is saved with
its feature extractor or image processor, as transformers would.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from liser_dist.errors import TeacherError
from liser_dist.records import Clip

if TYPE_CHECKING:
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
    import torch

    from liser_dist.heads import fit_head
    from liser_dist.huggingface_backbone import HuggingFaceBackbone, save_teacher

    net = HuggingFaceBackbone(str(backbone), sample_rate_hz)
    shown = [clip for clip in clips if clip.emotion in emotions and clip.shows(net.modality)]
    if missing := sorted(set(emotions) - {clip.emotion for clip in shown}):
        raise TeacherError(
            f"no labelled clip shows {', '.join(missing)} to the {net.modality} backbone: add "
            "clips of it, or leave it out of `emotions`"
        )
    # One at a time: no clip's embedding may depend on its company.
    embeddings, labels = embed(net, ([clip] for clip in shown), emotions)
    head = fit_head(net.by_layer(embeddings), torch.from_numpy(labels), len(emotions))
    save_teacher(net.put_in(head, emotions), str(backbone), folder)
    logger.info("head of %s fitted on %d looks at %d clips", folder.name, len(labels), len(shown))


def embed(
    net: HuggingFaceBackbone, batches: Iterable[Sequence[Clip]], emotions: Sequence[str]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """What a head is fitted on, [looks, layers * dim], and the number of the emotion, [looks]."""
    given = [np.empty((0, net.embedding_dim), np.float32)]
    numbers: list[int] = []
    for batch in batches:
        for clip, (_, looks) in zip(batch, net.answer(batch), strict=True):
            given.append(looks)
            numbers += [emotions.index(clip.emotion)] * len(looks)
    return np.concatenate(given), np.array(numbers, np.int64)
