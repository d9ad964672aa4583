"""Reads the JSON files of a Hugging Face folder or hub repository, and locates its weights.

Used to check a job before it starts, so it loads no weights and imports neither torch nor
transformers.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from liser_dist import storage
from liser_dist.errors import TeacherError

Modality = Literal["audio", "image", "video"]

_CLASSIFIER = re.compile(r"For(Audio|Sequence|Image|Video)Classification")
_PROCESSOR_FILES = (
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
)
SETTINGS_FILES = ("config.json", "model.safetensors.index.json", *_PROCESSOR_FILES)
WEIGHTS_FILES = (*SETTINGS_FILES, "model*.safetensors")
TRAINED = "teacher"  # the model's folder in that of a run of jobs/train_teacher.py
_WEIGHTS = {"model.safetensors", "model.safetensors.index.json"}
_PROCESSOR_PARTS = ("feature_extractor", "image_processor", "video_processor")
_WIDTH_KEYS = (
    "neck_hidden_sizes",
    "hidden_sizes",
    "hidden_size",
    "d_model",
    "hidden_dim",
    "num_features",
    "embed_dim",
)


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model as its JSON files describe it."""

    place: str
    config: dict[str, Any]
    processor: dict[str, Any]
    modality: Modality
    names: tuple[str, ...]  # the classes, in the order of the logits; empty for an encoder
    embedding_dim: int


def read_model_folder(place: str, revision: str | None = None) -> ModelFolder:
    """Read the JSON files of a folder or hub repository, and check that it has weights.

    Args:
        place: a folder or hub name.
        revision: branch, tag or commit of a hub repository.

    Raises:
        TeacherError: it cannot be reached, has no safetensors, requires code of its own, or is not
            an audio, image or video model.
    """
    path = find_folder(place, SETTINGS_FILES, revision)
    if not (path / "config.json").is_file():
        raise TeacherError(f"teacher model {place!r} has no config.json: {_remedy(place)}")
    config = _read_json(place, path / "config.json")
    processor = _read_processor(place, path)
    for name, content in (("config.json", config), ("its processor", processor)):
        if "auto_map" in content:
            raise TeacherError(
                f"teacher model {place!r} requires code of its own (`auto_map` in {name}), which "
                "is never run: use a model whose architecture is part of transformers"
            )
    modality = _modality_of(place, config, processor)
    _require_safetensors(place, path, revision)
    return ModelFolder(
        place, config, processor, modality, _names_of(config, modality), _width_of(place, config)
    )


def _read_json(place: str, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise TeacherError(
            f"teacher model {place!r}: {path.name} is not JSON ({error}): save the model again"
        ) from error
    if not isinstance(content, dict):
        raise TeacherError(
            f"teacher model {place!r}: {path.name} is not a JSON object: save the model again"
        )
    return content


def local_folder(place: str) -> Path | None:
    """Return the folder of a model on this machine; None if there is none.

    The folder of a run of jobs/train_teacher.py stands for the model that the run saved.
    """
    folder = Path(place).expanduser()
    if not folder.is_dir():
        return None
    trained = folder / TRAINED
    is_run = not (folder / "config.json").is_file() and (trained / "config.json").is_file()
    return trained if is_run else folder


def find_folder(place: str, files: Sequence[str], revision: str | None = None) -> Path:
    """Return the folder of a model. For a hub name, download these files into the hub's cache.

    Args:
        place: a folder or hub name.
        files: names or patterns of the files to download.
        revision: branch, tag or commit of a hub repository.

    Raises:
        TeacherError: there is no such folder, the hub cannot provide it, or a folder is given with
            a revision.
    """
    if (folder := local_folder(place)) is not None:
        if revision is not None:
            raise TeacherError(
                f"teacher model {place!r} is a folder on this machine, which has no revision "
                f"{revision!r}: leave `revision` out, or give a hub name as `model`"
            )
        return folder
    if "://" in place or place.startswith((".", "/", "~")) or place.count("/") > 1:
        raise TeacherError(
            f"teacher model {place!r} is not a folder on this machine: {_remedy(place)}"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(place, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # the hub's client also raises the errors of its HTTP library
        wanted = "" if revision is None else f" at revision {revision!r}"
        raise TeacherError(
            f"teacher model {place!r} is neither a folder on this machine nor available "
            f"from the hub{wanted} ({type(error).__name__}): {_remedy(place)}"
        ) from error


def _remedy(place: str) -> str:
    if "://" in place:
        return "copy it to a folder that every node can read, and give that folder"
    return (
        "give a folder with config.json, preprocessor_config.json and model.safetensors that every "
        "node can read, or a Hugging Face hub model that this machine has cached or can download"
    )


def _read_processor(place: str, path: Path) -> dict[str, Any]:
    """Return the settings of the feature extractor or image processor; empty if there are none."""
    for name in _PROCESSOR_FILES:
        if (path / name).is_file():
            content = _read_json(place, path / name)
            parts = [content[part] for part in _PROCESSOR_PARTS if part in content]
            return parts[0] if parts else content
    return {}


def _modality_of(place: str, config: dict[str, Any], processor: dict[str, Any]) -> Modality:
    """Tell audio by a sampling rate, images by a size, and video by a number of frames."""
    architecture = _architecture(config)
    if "sampling_rate" in processor:
        return "audio"
    if {"image_mean", "size", "crop_size"} & set(processor):
        frames = "num_frames" in config or "frames_per_clip" in config
        return "video" if frames or "ForVideo" in architecture else "image"
    raise TeacherError(
        f"cannot tell whether teacher model {place!r} ({config.get('model_type')}, "
        f"{architecture or 'no architecture'}) takes audio, images or video, because its "
        "preprocessor_config.json has neither `sampling_rate` nor `size`: save the model's feature "
        "extractor or image processor beside its weights, or use another model"
    )


def _architecture(config: dict[str, Any]) -> str:
    return str((config.get("architectures") or [""])[0])


def _names_of(config: dict[str, Any], modality: Modality) -> tuple[str, ...]:
    match = _CLASSIFIER.search(_architecture(config))
    fits = {"audio": ("Audio", "Sequence"), "image": ("Image",), "video": ("Video",)}[modality]
    if match is None or match.group(1) not in fits:
        return ()
    # transformers does not save the names if they are its defaults.
    names = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    return tuple(str(names[index]) for index in sorted(names, key=int))


def _tower(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config of the image or audio tower of CLIP or CLAP, or the config itself."""
    return config.get("vision_config") or config.get("audio_config") or config


def _width_of(place: str, config: dict[str, Any]) -> int:
    """Return the width of the last hidden state."""
    config = _tower(config)
    keys = ("output_hidden_size", *_WIDTH_KEYS) if config.get("add_adapter") else _WIDTH_KEYS
    for key in keys:
        value = config.get(key)
        if value:
            return int(value[-1] if isinstance(value, list) else value)
    raise TeacherError(
        f"teacher model {place!r}: its config.json does not give the width of its hidden state: "
        "add `hidden_size` to it"
    )


def _require_safetensors(place: str, path: Path, revision: str | None) -> None:
    names = {file.name for file in path.iterdir()}
    if not names & _WEIGHTS and local_folder(place) is None:
        names |= _hub_files(place, revision)
    if names & _WEIGHTS:
        return
    pickled = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
    if pickled:
        raise TeacherError(
            f"teacher model {place!r} has only pickled weights ({', '.join(pickled)}), which can "
            "run code when they are loaded: if you trust the file, convert it to safetensors by "
            "loading it with its class in transformers and calling its `save_pretrained`"
        )
    raise TeacherError(
        f"teacher model {place!r} has no weights: put its model.safetensors beside config.json"
    )


def _hub_files(place: str, revision: str | None) -> set[str]:
    from huggingface_hub import list_repo_files

    try:
        return set(list_repo_files(place, revision=revision))
    except Exception:  # not reachable: rely on what the cache has
        return set()


# ---------------------------------------------------------------- weights


def digest_file(file: Path) -> str:
    """Return the SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def count_weights_bytes(place: str, revision: str | None = None) -> int:
    """Return the size of a model's safetensors, downloaded first if need be.

    Raises:
        TeacherError: as `find_folder`.
    """
    folder = find_folder(place, WEIGHTS_FILES, revision)
    return sum(file.size_bytes for file in storage.list_files(str(folder), ".safetensors"))
