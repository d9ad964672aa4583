"""The card of an exported student, in the form that the Hugging Face hub reads."""

from __future__ import annotations

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from liser_dist.export_result import Export
from liser_dist.results import DistillResult
from liser_dist.spec import DistillSpec
from liser_dist.teacher_spec import AnyTeacher

TASK = "audio-classification"
TAGS = ["speech-emotion-recognition", "knowledge-distillation", "onnx"]


def write_card(export: Export, job: DistillSpec, result: DistillResult | None) -> str:
    """Markdown. `result`: of the run, where it is finished."""
    pages = Environment(
        loader=PackageLoader("liser_dist"), undefined=StrictUndefined, trim_blocks=True
    )
    said = {"speech": job.teachers.speech, "face": job.teachers.face}
    return pages.get_template("model_card.md").render(
        metadata=_metadata(export, job),
        export=export,
        job=job,
        counts=result and result.clips,
        labels_only=result.label_only.uar if result and result.label_only else None,
        teacher_scores=_teacher_scores(result),
        teachers={name: _told(teacher) for name, teacher in said.items() if teacher},
        percent=lambda share: f"{100 * share:.1f} %",
        seconds=lambda length: f"{length:g} s",
    )


def _metadata(export: Export, job: DistillSpec) -> str:
    of_hub = [
        model
        for teacher in (job.teachers.speech, job.teachers.face)
        if (model := getattr(teacher, "model", "")).count("/") == 1 and model[0] not in "./~"
    ]
    scores = [
        EvalResult(
            task_type=TASK,
            dataset_type=job.name,
            dataset_name=f"labelled clips of {job.name}",
            metric_type="recall",
            metric_name="UAR",
            metric_value=round(export.scores.uar, 4),
        )
    ] if export.scores else None  # fmt: skip
    data = ModelCardData(
        library_name="onnx",
        pipeline_tag=TASK,
        tags=TAGS,
        base_model=of_hub or None,
        model_name=export.name,
        eval_results=scores,
    )
    return str(data)


def _teacher_scores(result: DistillResult | None) -> dict[str, float]:
    scored = {"speech": result.speech_teacher, "face": result.face_teacher} if result else {}
    return {name: scores.uar for name, scores in scored.items() if scores is not None}


def _told(teacher: AnyTeacher) -> str:
    """Its kind and its name, without the folders that it lies in."""
    model = getattr(teacher, "model", "")
    return f"{teacher.kind}, {model.rstrip('/').rpartition('/')[2]}" if model else teacher.kind
