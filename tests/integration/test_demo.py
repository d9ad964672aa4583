"""The demo at small size, from scratch: corpus, teachers, distillation, scores."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

from liser_dist.config.base import EMOTIONS
from tests.integration.conftest import ROOT, Finished


def test_the_embedded_default_makes_its_corpus_and_compares_students(
    ray_cluster: dict[str, str], tmp_path: Path
) -> None:
    small = {
        "synthetic.place": tmp_path / "synthetic", "synthetic.unlabelled_clips": 40,
        "synthetic.validation_clips": 12, "synthetic.test_clips": 12,
        "synthetic.backbone_clips": 96, "train.epochs": 2, "output": tmp_path / "runs", "seed": 5,
    }  # fmt: skip
    options = [str(part) for name, value in small.items() for part in (f"--{name}", value)]
    command = [sys.executable, ROOT / "jobs" / "distill.py", *options]
    ended = subprocess.run(
        command, env=ray_cluster, capture_output=True, text=True, timeout=400, check=False
    )
    done = Finished(ended)
    assert done.code == 0, done.err
    result = done.result
    assert (result["clips"]["total"], result["clips"]["rejected"]) == (40, 0)
    for model in ("student", "label_only", "speech_teacher", "face_teacher"):
        assert 0 <= result[model]["uar"] <= 1
    assert result["student"]["params"] == result["label_only"]["params"]
    assert result["spec_hash"]
    assert "labels only" in done.out
    assert "Synthetic corpus" in done.out
    texts = _all_that_is_said_of(next(tmp_path.glob("synthetic/corpus-*/unlabelled")))
    assert not any(emotion in texts for emotion in EMOTIONS)
    assert not any(word in texts for word in ("emotion", "speaker", "intensity", "person"))


def _all_that_is_said_of(place: Path) -> str:
    """Every path, key and field of a shard set, but for what is in the videos."""
    texts = [str(path.relative_to(place)) for path in place.rglob("*")]
    texts.append((place / "index.json").read_text())
    for shard in place.glob("*.tar"):
        with tarfile.open(shard) as archive:
            for member in archive:
                texts.append(member.name)
                content = archive.extractfile(member)
                if member.name.endswith(".json") and content is not None:
                    texts.append(json.dumps(json.load(content)))
    return " ".join(texts).lower()
