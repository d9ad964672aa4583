"""What a student learns from how a teacher's embeddings of a batch's clips lie to each other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from liser_dist.together import gather_rows, workers


def relation_loss(student: Tensor, teacher: Tensor, there: Tensor) -> Tensor:
    """How far the distances between clips are from the teacher's, each over its mean.

    Distance-wise relational knowledge distillation (Park et al., 2019, equations 4 to 6), with the
    mean over pairs. The widths may differ, so that nothing is projected.

    Args:
        student: [clips, dim]. teacher: [clips, other dim]. there: [clips] bool: of which the
            teacher has an embedding.
    """
    student, teacher = student[there], teacher[there]
    if len(student) < 2:
        return student.sum() * 0
    return functional.smooth_l1_loss(_distances(student), _distances(teacher))


def _distances(rows: Tensor) -> Tensor:
    """[pairs] of rows, over their mean."""
    found = functional.pdist(rows.float())
    return found / found.mean().clamp(min=1e-6)


def shared_relation_loss(student: Tensor, teacher: Tensor, there: Tensor) -> Tensor:
    """This worker's part of the loss over the clips of all of them."""
    of_all = gather_rows(torch.cat([teacher, there[:, None].to(teacher.dtype)], dim=1))
    return relation_loss(gather_rows(student), of_all[:, :-1], of_all[:, -1] > 0) / workers()
