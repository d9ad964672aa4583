"""Writes the model card of an exported student, in the format of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from liser_dist.config.distill import DistillSpec
from liser_dist.config.teachers import TeacherSpec
from liser_dist.errors import TeacherError
from liser_dist.export.result import Export
from liser_dist.runs.results import DistillResult
from liser_dist.teachers.model_files import read_model_folder

TASK = "audio-classification"
TAGS = ["speech-emotion-recognition", "knowledge-distillation"]


def write_card(
    export: Export,
    run_spec: DistillSpec,
    teachers: Mapping[str, TeacherSpec],
    result: DistillResult | None,
    sets: Mapping[str, int],
) -> str:
    """Return the card as Markdown.

    Args:
        export: Measurements of the exported student.
        run_spec: Spec of the run.
        teachers: The teachers that the student learned from, by modality.
        result: Result of the run, if it is finished.
        sets: Number of clips in the shards of each set of the run. What was used of them is known
            from the result only.
    """
    pages = Environment(
        loader=PackageLoader("liser_dist", "export/templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return pages.get_template("model_card.md").render(
        metadata=_metadata(export, teachers),
        export=export,
        job=run_spec,
        training=_describe_training(export.student),
        counts=result and result.clips,
        labelled=result.clips.labelled_by_set if result else {},
        left_out=result.clips.labelled_left_out if result else {},
        warnings=result.warnings if result else [],
        sets=sets,
        labels_only=result.label_only.uar if teachers and result and result.label_only else None,
        teacher_scores={
            name: uar for name, uar in _teacher_scores(result).items() if name in teachers
        },
        teachers={name: _describe_teacher(teacher) for name, teacher in teachers.items()},
        percent=lambda share: f"{100 * share:.1f} %",
        seconds=lambda length: f"{length:g} s",
    )


def _describe_training(student: str) -> str:
    """Return a sentence on how a student of this kind was trained."""
    if student == "labels_only":
        return "It was trained on labels alone, as a baseline."
    if student in ("swapped_faces", "shuffled_targets"):
        return (
            "It is a negative control, trained on teacher targets of other clips: do not use its "
            "predictions."
        )
    return (
        "It was distilled from teachers on unlabelled video, following LiSER "
        "(Pendyala, Morgado, Sethares, Interspeech 2025)."
    )


def _metadata(export: Export, teachers: Mapping[str, TeacherSpec]) -> str:
    """Return the YAML block at the head of the card."""
    base_models = [
        teacher.model
        for teacher in teachers.values()
        if teacher.kind == "huggingface" and _is_on_hub(teacher.model)
    ]
    scores = [
        EvalResult(
            task_type=TASK,
            dataset_type=export.name,
            dataset_name="labelled clips of held-out speakers",
            metric_type="recall",
            metric_name="UAR",
            metric_value=round(export.scores.uar, 4),
        )
    ] if export.scores else None  # fmt: skip
    data = ModelCardData(
        library_name="onnx",
        pipeline_tag=TASK,
        tags=TAGS if teachers else TAGS[:1],
        base_model=base_models or None,
        model_name=export.name,
        eval_results=scores,
    )
    return str(data)


def _teacher_scores(result: DistillResult | None) -> dict[str, float]:
    scores = {"speech": result.speech_teacher, "face": result.face_teacher} if result else {}
    return {name: of_teacher.uar for name, of_teacher in scores.items() if of_teacher is not None}


def _is_on_hub(model: str) -> bool:
    return model.count("/") == 1 and model[0] not in "./~"


def _describe_teacher(teacher: TeacherSpec) -> str:
    """Return the teacher's kind and name, without the folders that it is stored in."""
    if teacher.kind == "mock":
        return teacher.kind
    if teacher.kind == "huggingface" and _is_on_hub(teacher.model):
        return f"{teacher.kind} {teacher.model}"
    name = teacher.model.rstrip("/").rpartition("/")[2]
    model_type = ""
    if teacher.kind == "huggingface":
        with suppress(TeacherError, KeyError):  # the folder may be gone
            model_type = read_model_folder(teacher.model, teacher.revision).config["model_type"]
    return f"{teacher.kind} {name}" + (f", model type {model_type}" if model_type else "")
