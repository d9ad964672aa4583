"""What the JSON files of a Hugging Face folder or hub repository say of its model.

This is the check before a job starts: no weights are read, and neither torch nor transformers is
imported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
    """What the JSON files of a model say of it."""

    place: str
    config: dict[str, Any]
    processor: dict[str, Any]
    modality: Modality
    names: tuple[str, ...]  # the classes, in the order of the logits; empty for an encoder
    embedding_dim: int


def read_model_folder(place: str) -> ModelFolder:
    """Read a folder's (or hub repository's) JSON files; the weights are only looked for.

    Raises:
        TeacherError: it cannot be reached, holds no safetensors, asks for its own code, or is
            neither an audio nor an image nor a video model.
    """
    path = find_folder(place, SETTINGS_FILES)
    if not (path / "config.json").is_file():
        raise TeacherError(f"teacher model {place!r} has no config.json: {_what_would_do(place)}")
    config = _read_json(place, path / "config.json")
    processor = _read_processor(place, path)
    for name, content in (("config.json", config), ("its processor", processor)):
        if "auto_map" in content:
            raise TeacherError(
                f"teacher model {place!r} asks to run code of its own (`auto_map` in {name}), "
                "which is never done: use a model whose architecture transformers itself has"
            )
    modality = _modality_of(place, config, processor)
    _require_safetensors(place, path)
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


def find_folder(place: str, files: Sequence[str]) -> Path:
    """The folder itself; of a hub name the cache's folder, with these files fetched into it.

    Raises:
        TeacherError: there is no such folder, or the hub does not give it.
    """
    folder = Path(place).expanduser()
    if folder.is_dir():
        return folder
    if "://" in place or place.startswith((".", "/", "~")) or place.count("/") > 1:
        raise TeacherError(f"teacher model {place!r} is not a folder here: {_what_would_do(place)}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(place, allow_patterns=list(files)))
    except Exception as error:  # the hub's client raises those of its HTTP library too
        raise TeacherError(
            f"teacher model {place!r} is neither a folder here nor to be had from the hub "
            f"({type(error).__name__}): {_what_would_do(place)}"
        ) from error


def _what_would_do(place: str) -> str:
    if "://" in place:
        return "copy it to a folder that every node sees, and give that folder"
    return (
        "give a folder with config.json, preprocessor_config.json and model.safetensors that every "
        "node sees, or a hub name that is in the cache or can be reached from here"
    )


def _read_processor(place: str, path: Path) -> dict[str, Any]:
    """The feature extractor's or image processor's settings; empty when there are none."""
    for name in _PROCESSOR_FILES:
        if (path / name).is_file():
            content = _read_json(place, path / name)
            parts = [content[part] for part in _PROCESSOR_PARTS if part in content]
            return parts[0] if parts else content
    return {}


def _modality_of(place: str, config: dict[str, Any], processor: dict[str, Any]) -> Modality:
    """Sound has a sampling rate, images a size; a net over several frames is a video net."""
    architecture = _architecture(config)
    if "sampling_rate" in processor:
        return "audio"
    if {"image_mean", "size", "crop_size"} & set(processor):
        frames = "num_frames" in config or "frames_per_clip" in config
        return "video" if frames or "ForVideo" in architecture else "image"
    raise TeacherError(
        f"teacher model {place!r} ({config.get('model_type')}, {architecture or 'no architecture'})"
        " is neither an audio nor an image model: its preprocessor_config.json has neither "
        "`sampling_rate` nor `size`; give one that has, or save the feature extractor beside it"
    )


def _architecture(config: dict[str, Any]) -> str:
    return str((config.get("architectures") or [""])[0])


def _names_of(config: dict[str, Any], modality: Modality) -> tuple[str, ...]:
    match = _CLASSIFIER.search(_architecture(config))
    fits = {"audio": ("Audio", "Sequence"), "image": ("Image",), "video": ("Video",)}[modality]
    if match is None or match.group(1) not in fits:
        return ()
    # transformers does not write out the names where they are its default
    names = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    return tuple(str(names[index]) for index in sorted(names, key=int))


def _tower(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a two-tower model (CLIP, CLAP) that sees or hears; else the model itself."""
    return config.get("vision_config") or config.get("audio_config") or config


def _width_of(place: str, config: dict[str, Any]) -> int:
    """Width of the last hidden state."""
    config = _tower(config)
    keys = ("output_hidden_size", *_WIDTH_KEYS) if config.get("add_adapter") else _WIDTH_KEYS
    for key in keys:
        value = config.get(key)
        if value:
            return int(value[-1] if isinstance(value, list) else value)
    raise TeacherError(
        f"teacher model {place!r}: its config.json does not say how wide its hidden state is: "
        "write `hidden_size` into it"
    )


def _require_safetensors(place: str, path: Path) -> None:
    names = {file.name for file in path.iterdir()}
    if not names & _WEIGHTS and not Path(place).expanduser().is_dir():
        names |= _hub_files(place)
    if names & _WEIGHTS:
        return
    pickled = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
    if pickled:
        raise TeacherError(
            f"teacher model {place!r} has only pickled weights ({', '.join(pickled)}), which can "
            "run code when they are read: convert to safetensors, where you trust the file: "
            "`model = AutoModel….from_pretrained(folder); model.save_pretrained(folder)`"
        )
    raise TeacherError(
        f"teacher model {place!r} has no weights: put its model.safetensors beside config.json"
    )


def _hub_files(place: str) -> set[str]:
    from huggingface_hub import list_repo_files

    try:
        return set(list_repo_files(place))
    except Exception:  # not reachable: what the cache holds must do
        return set()
