"""Fits the head of a teacher on labelled clips, in this process, for the synthetic corpus.

The backbone is frozen; the fitted head replaces its last layers. The model is saved with its
feature extractor or image processor in the format of transformers.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from liser_dist.errors import TeacherError
from liser_dist.records import Clip
from liser_dist.teachers.backbone import embed

logger = logging.getLogger(__name__)


def fit_teacher(
    backbone: str | Path,
    clips: Sequence[Clip],
    emotions: Sequence[str],
    folder: Path,
    sample_rate_hz: int = 16000,
) -> None:
    """Fit a head on labelled clips, and save backbone and head as a teacher.

    An image model is fitted on every frame with a face, a video model on every clip with a face.

    Args:
        backbone: a folder or hub name; a plain encoder gets a classifier first.
        clips: labelled clips; those without input for the model are left out.
        emotions: the classes, in the order of the new logits.
        folder: where the teacher is saved, as safetensors and JSON.
        sample_rate_hz: sample rate of the clips' audio.

    Raises:
        TeacherError: the backbone cannot be loaded, it does not end with a linear layer, or an
            emotion has no usable clip.
    """
    import torch

    from liser_dist.teachers.backbone import HuggingFaceBackbone, save_teacher
    from liser_dist.teachers.heads import fit_head

    net = HuggingFaceBackbone(str(backbone), sample_rate_hz)
    usable = [clip for clip in clips if clip.emotion in emotions and clip.shows(net.modality)]
    if missing := sorted(set(emotions) - {clip.emotion for clip in usable}):
        raise TeacherError(
            f"no clip labelled {', '.join(missing)} can be used with the {net.modality} backbone, "
            "which needs sound or a visible face: add such clips, or remove the emotion from "
            "`emotions`"
        )
    # One clip per batch, so that no embedding depends on the other clips.
    embeddings, labels = embed(net, ([clip] for clip in usable), emotions)
    head = fit_head(net.by_layer(embeddings), torch.from_numpy(labels), len(emotions))
    save_teacher(net.insert_head(head, emotions), str(backbone), folder)
    logger.info(
        "synthetic corpus: fitted the head of the %s teacher to %d clips", folder.name, len(usable)
    )
