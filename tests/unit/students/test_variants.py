"""Variants learn only from the sources in their names, and the loss names its sources."""

import pytest

from liser_dist.config.student import LossSpec
from liser_dist.students.variants import DISTILLED, loss_for, teachers_of, variants_of

LOSS = LossSpec(speech_kl=1.0, face_kl=0.7, embedding=0.5, relations=0.3, label_ce=0.9)
KINDS = ["labels_only", "speech_only", "face_only", "swapped_faces", "shuffled_targets"]


def weights(loss: LossSpec) -> dict[str, float]:
    return {name: value for name, value in loss if name in LossSpec.term_sources() and value}


def test_every_weight_of_the_loss_names_its_source() -> None:
    assert LossSpec.term_sources() == {
        "speech_kl": "speech",
        "face_kl": "face",
        "embedding": "embeddings",
        "relations": "embeddings",
        "label_ce": "labels",
    }
    assert LOSS.teacher_weights == {"speech": 1.0, "face": 0.7}


@pytest.mark.parametrize(
    ("teachers", "left"),
    [
        ((), {"label_ce": 0.9}),
        (("face",), {"face_kl": 0.7, "embedding": 0.5, "relations": 0.3, "label_ce": 0.9}),
    ],
)
def test_a_loss_has_the_terms_that_its_teachers_serve(
    teachers: tuple[str, ...], left: dict[str, float]
) -> None:
    assert weights(loss_for(teachers, LOSS)) == left
    assert loss_for(("speech", "face"), LOSS) == LOSS
    assert not LOSS.limited_to(["labels"]).learns_from(["speech", "face", "embeddings"])


def test_each_kind_is_trained_with_each_rate_and_controls_alone_change_targets() -> None:
    variants = variants_of(LOSS, KINDS, [0.1, 0.2])
    pairs = [(variant.kind, variant.learning_rate) for variant in variants]
    assert pairs == [(kind, rate) for kind in (DISTILLED, *KINDS) for rate in (0.1, 0.2)]
    controls = {variant.kind for variant in variants if variant.change_targets}
    assert controls == {"swapped_faces", "shuffled_targets"}
    assert [tuple(teachers_of(kind)) for kind in (DISTILLED, "labels_only", "swapped_faces")] == [
        ("speech", "face"),
        (),
        ("face",),
    ]
