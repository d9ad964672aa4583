"""The card of an exported student, in the form that the Hugging Face hub reads."""

from __future__ import annotations

from collections.abc import Mapping

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from liser_dist.batches import TEACHERS
from liser_dist.errors import TeacherError
from liser_dist.export_result import Export
from liser_dist.learning import HEARD
from liser_dist.model_folder import read_model_folder
from liser_dist.results import DistillResult
from liser_dist.spec import DistillSpec
from liser_dist.teacher_spec import AnyTeacher

TASK = "audio-classification"
TAGS = ["speech-emotion-recognition", "knowledge-distillation"]


def write_card(
    export: Export, job: DistillSpec, result: DistillResult | None, sets: Mapping[str, int]
) -> str:
    """Markdown. `result`: of the run, where it is finished. `sets`: clips of its labelled sets."""
    pages = Environment(
        loader=PackageLoader("liser_dist"), undefined=StrictUndefined, trim_blocks=True
    )
    heard = HEARD.get(export.student, TEACHERS)
    said = {name: getattr(job.teachers, name) for name in heard}
    return pages.get_template("model_card.md").render(
        metadata=_metadata(export, job),
        export=export,
        job=job,
        learned=_learned(export.student),
        counts=result and result.clips,
        sets=sets,
        labels_only=result.label_only.uar if heard and result and result.label_only else None,
        teacher_scores={
            name: uar for name, uar in _teacher_scores(result).items() if name in heard
        },
        teachers={name: _told(teacher) for name, teacher in said.items() if teacher},
        percent=lambda share: f"{100 * share:.1f} %",
        seconds=lambda length: f"{length:g} s",
    )


def _learned(student: str) -> str:
    """How a student of this kind came to be."""
    if student == "labels_only":
        return "It learned from labels alone, to be compared with."
    if student in ("swapped_faces", "shuffled_targets"):
        return "A control, which learned from what teachers said of other clips: not to be used."
    return (
        "It was distilled from teachers on unlabelled video, in the manner of LiSER "
        "(Pendyala, Morgado, Sethares, Interspeech 2025)."
    )


def _metadata(export: Export, job: DistillSpec) -> str:
    said = [getattr(job.teachers, name) for name in HEARD.get(export.student, TEACHERS)]
    of_hub = [one.model for one in said if one is not None and _of_hub(one)]
    scores = [
        EvalResult(
            task_type=TASK,
            dataset_type=job.name,
            dataset_name="labelled clips of speakers held out",
            metric_type="recall",
            metric_name="UAR",
            metric_value=round(export.scores.uar, 4),
        )
    ] if export.scores else None  # fmt: skip
    data = ModelCardData(
        library_name="onnx",
        pipeline_tag=TASK,
        tags=TAGS if said else TAGS[:1],
        base_model=of_hub or None,
        model_name=export.name,
        eval_results=scores,
    )
    return str(data)


def _teacher_scores(result: DistillResult | None) -> dict[str, float]:
    scored = {"speech": result.speech_teacher, "face": result.face_teacher} if result else {}
    return {name: scores.uar for name, scores in scored.items() if scores is not None}


def _of_hub(teacher: AnyTeacher) -> bool:
    model = getattr(teacher, "model", "")
    return teacher.kind == "huggingface" and model.count("/") == 1 and model[0] not in "./~"


def _told(teacher: AnyTeacher) -> str:
    """What it is, without the folders that it lies in."""
    model = getattr(teacher, "model", "")
    if not model or _of_hub(teacher):
        return f"{teacher.kind} {model}".strip()
    name = model.rstrip("/").rpartition("/")[2]
    try:
        folder = read_model_folder(model) if teacher.kind == "huggingface" else None
        of_type = folder.config["model_type"] if folder is not None else ""
    except (TeacherError, KeyError):  # it is not there any more
        of_type = ""
    return f"{teacher.kind} {name}" + (f", of the type {of_type}" if of_type else "")
