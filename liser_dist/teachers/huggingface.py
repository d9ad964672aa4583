"""Runs a frozen Hugging Face model on clips: logits and embeddings from audio, images or video.

torch and transformers are imported only when a model is loaded, so that checking a job, which reads
nothing but JSON files, stays cheap.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from liser_dist.config.stream import ClipSpec
from liser_dist.config.teachers import HuggingFaceTeacher, TeacherIdentity
from liser_dist.errors import TeacherError, one_line
from liser_dist.records import Clip, to_floats
from liser_dist.teachers.identity import identify_model, revision_to_read, verified
from liser_dist.teachers.model_files import (
    WEIGHTS_FILES,
    Modality,
    ModelFolder,
    count_weights_bytes,
    find_folder,
    read_model_folder,
)
from liser_dist.teachers.model_teacher import (
    ModelOutput,
    ModelTeacher,
    TeacherFacts,
    known_emotions,
    map_names,
)
from liser_dist.teachers.preprocess import resample, spread, to_pixels

if TYPE_CHECKING:
    from torch import Tensor, nn

_Floats = NDArray[np.float32]

# Parameters that a frozen model in eval mode never reads: old checkpoints lack them.
_UNUSED_WEIGHTS = re.compile(r"masked_spec_embed|mask_token|position_ids|num_batches")
UNUSED_IN_ENCODERS = re.compile(rf"{_UNUSED_WEIGHTS.pattern}|pooler\.")


class HuggingFaceKind:
    """The kind `huggingface`."""

    def __init__(self, spec: HuggingFaceTeacher) -> None:
        self._spec = spec

    def identify(self) -> TeacherIdentity:
        """Return the digest of the folder's files, or the hub repository's commit."""
        return identify_model(self._spec.kind, self._spec.model, self._spec.revision)

    def describe(
        self, emotions: Sequence[str], clip: ClipSpec, identity: TeacherIdentity | None = None
    ) -> TeacherFacts:
        """Read the model's JSON files."""
        folder = read_model_folder(self._spec.model, revision_to_read(self._spec, identity))
        mapping = map_names(self._spec.model, folder.names, self._spec.labels, emotions)
        known = tuple(known_emotions(mapping).tolist())
        return TeacherFacts(known, folder.embedding_dim, folder.names, folder.modality)

    def load(
        self, emotions: Sequence[str], clip: ClipSpec, identity: TeacherIdentity | None = None
    ) -> ModelTeacher:
        """Load the model; `verified` says what is certain of its weights."""
        revision = revision_to_read(self._spec, identity)
        with verified(self._spec.model, identity):
            model = HuggingFaceModel(self._spec.model, clip.sample_rate_hz, revision)
        mapping = map_names(self._spec.model, model.names, self._spec.labels, emotions)
        return ModelTeacher(model, mapping, self._spec.temperature)

    def weights_bytes(self) -> int:
        """Return the size of the folder's safetensors."""
        return count_weights_bytes(self._spec.model, self._spec.revision)


class HuggingFaceModel:
    """A frozen audio, image or video model in eval mode, on the GPU if there is one.

    Args:
        place: a folder or hub name.
        sample_rate_hz: sample rate of the clips' audio.
        revision: branch, tag or commit of a hub repository.

    Attributes:
        folder: the model as its JSON files describe it.
        module: the transformers module (classifier, or plain encoder).
        modality: "audio", "image" or "video".
        body: the part of the module below its head.
        names: the classes in the order of the logits; empty for an encoder.
        embedding_dim: width of the embedding.
        device: where the module is.

    Raises:
        TeacherError: as `read_model_folder`, or the weights do not fit the architecture.
    """

    def __init__(
        self, place: str, sample_rate_hz: int = 16000, revision: str | None = None
    ) -> None:
        import torch

        self.folder = read_model_folder(place, revision)
        self.modality: Modality = self.folder.modality
        self.names = self.folder.names
        self.embedding_dim = self.folder.embedding_dim
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        path = str(find_folder(place, WEIGHTS_FILES, revision))
        with _loading(place):
            module = self._load(path)
            self._extractor: Any = _load_extractor(path) if self.modality == "audio" else None
        if self.device.type == "cpu":
            _copy_weights(module)
        self.module = module.to(self.device).eval().requires_grad_(False)
        self.body = body_of(self.module)
        self._accepts = _argument_names(self.module)
        self._sample_rate_hz = sample_rate_hz

    def _load(self, path: str) -> nn.Module:
        return _load_module(self.folder, path)

    def predict(self, clips: Sequence[Clip]) -> list[ModelOutput]:
        """Run the model on clips, each of which must have its modality.

        Returns:
            Logits [inputs, names] and embeddings [inputs, dim] of each clip. An image model has
            one input for each frame with a face, other models one for the clip. They do not depend
            on the other clips.
        """
        outputs: dict[int, ModelOutput] = {}
        for members in self.groups(clips):
            group = [clips[member] for member in members]
            logits, embedding = self.forward(self.inputs(group))
            if logits is None:
                logits = embedding[:, :0]
            cuts = np.cumsum([self.count_inputs(clip) for clip in group])[:-1]
            parts = (np.split(values.cpu().numpy(), cuts) for values in (logits, embedding))
            outputs.update(zip(members, zip(*parts, strict=True), strict=True))
        return [outputs[index] for index in range(len(clips))]

    def count_inputs(self, clip: Clip) -> int:
        """Return the number of inputs that a clip gives: its faces for an image model, else 1."""
        return int(clip.has_face.sum()) if self.modality == "image" else 1

    def inputs(self, clips: Sequence[Clip]) -> dict[str, Tensor]:
        """Return the keyword arguments of `forward`, on the device.

        Audio: the feature extractor's output for the waveforms in -1..1 [clips, ...], with an
        attention mask if the model uses one. Image: `pixel_values` [frames with a face of all
        clips, 3, h, w]. Video: [clips, frames, 3, h, w] of each clip's frames with a face, sampled
        or repeated to the model's number of frames.
        """
        import torch

        if self.modality == "audio":
            return self._audio_inputs(clips)
        crops = [clip.faces[clip.has_face] for clip in clips]
        if self.modality == "video":
            config = self.folder.config
            frames = int(config.get("num_frames") or config["frames_per_clip"])
            crops = [faces[spread(len(faces), frames)] for faces in crops]
        faces = np.ascontiguousarray(np.concatenate(crops))
        pixels = to_pixels(torch.from_numpy(faces).to(self.device), self.folder.processor)
        if self.modality == "video":
            pixels = pixels.reshape(len(clips), -1, *pixels.shape[1:])
        return {str(getattr(self.module, "main_input_name", "pixel_values")): pixels}

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor | None, Tensor]:
        """Return logits [n, names] (None for an encoder) and embeddings [n, dim], float32.

        The embedding is the mean of the last hidden state over the time steps that are not padding,
        or over patches; for a convolutional net, its own pooled output if it has one.

        Raises:
            TeacherError: the embedding is not as wide as config.json says.
        """
        import torch

        cuda = self.device.type == "cuda"
        half = torch.float16 if cuda and not torch.cuda.is_bf16_supported() else torch.bfloat16
        with torch.inference_mode(), torch.autocast(self.device.type, half, enabled=cuda):
            logits, embedding = self._run(inputs)
        if embedding.shape[1] != self.embedding_dim:
            raise TeacherError(
                f"teacher model {self.folder.place!r} gives embeddings of width "
                f"{embedding.shape[1]}, but `hidden_size` in its config.json is "
                f"{self.embedding_dim}: use another model, or export this one to ONNX"
            )
        return (None if logits is None else logits.float()), embedding.float()

    def _run(self, inputs: dict[str, Tensor]) -> tuple[Tensor | None, Tensor]:
        bodies: list[Any] = []
        hook = self.body.register_forward_hook(lambda _m, _i, output: bodies.append(output))
        try:
            output = self.module(**self._accepted(inputs))
        finally:
            hook.remove()
        hidden: Tensor = bodies[-1].last_hidden_state
        if hidden.ndim == 4:  # [n, dim, h, w] of a convolutional net
            pooled: Tensor | None = getattr(bodies[-1], "pooler_output", None)
            embedding = hidden.mean((2, 3)) if pooled is None else pooled.flatten(1)
        else:
            embedding = pool(self.body, hidden, inputs.get("attention_mask"))
        return (output.logits if self.names else None), embedding

    def _accepted(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value for name, value in inputs.items() if name in self._accepts}

    def groups(self, clips: Sequence[Clip]) -> list[list[int]]:
        """Return the clips, by number, that may share a batch.

        A model without an attention mask takes padding for audio, and so does a group norm over
        time even with a mask: a clip's output would depend on the other clips of its batch. Clips
        of equal length are batched for such models.
        """
        if self.modality != "audio" or self._ignores_padding():
            return [list(range(len(clips)))] if clips else []
        groups: dict[int, list[int]] = {}
        for index, clip in enumerate(clips):
            groups.setdefault(clip.waveform.size, []).append(index)
        return list(groups.values())

    def _ignores_padding(self) -> bool:
        # AST, Whisper and CLAP give every clip the same length, whatever the other clips are.
        extractor = self._extractor
        if (
            hasattr(extractor, "max_length")
            or hasattr(extractor, "n_samples")
            or hasattr(extractor, "nb_max_samples")
        ):
            return True
        masked = bool(getattr(self._extractor, "return_attention_mask", False))
        return masked and getattr(self.module.config, "feat_extract_norm", "") != "group"

    def _audio_inputs(self, clips: Sequence[Clip]) -> dict[str, Tensor]:
        rate = int(self._extractor.sampling_rate)
        waveforms = [to_floats(clip.waveform) for clip in clips]
        if rate != self._sample_rate_hz:
            waveforms = [resample(waveform, self._sample_rate_hz, rate) for waveform in waveforms]
        options: dict[str, Any] = {}
        if hasattr(self._extractor, "n_samples"):  # Whisper: marks the audio in its frame of 30 s
            options["return_attention_mask"] = True
        elif not hasattr(self._extractor, "max_length"):
            options["padding"] = True
        features = self._extractor(waveforms, sampling_rate=rate, return_tensors="pt", **options)
        return {name: value.to(self.device) for name, value in features.items()}


# ---------------------------------------------------------------- loading


def _load_module(folder: ModelFolder, path: str) -> nn.Module:
    import torch
    import transformers

    settings = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
    loader, config = _loader_of(folder, settings)
    module, info = loader.from_pretrained(
        path,
        config=config,
        use_safetensors=True,
        trust_remote_code=False,
        dtype=torch.float32,
        output_loading_info=True,
    )
    unused = _UNUSED_WEIGHTS if folder.names else UNUSED_IN_ENCODERS
    require_none(folder, (name for name in info["missing_keys"] if not unused.search(name)))
    # Only the encoder of a speech recogniser has audio as its input.
    if settings.is_encoder_decoder and not folder.names:
        module = module.get_encoder()
    return module


def _copy_weights(module: nn.Module) -> None:
    """Copy the weights, which safetensors maps from the file, into memory.

    Otherwise overwriting the file would change a teacher that runs on the CPU.
    """
    for values in (*module.parameters(), *module.buffers()):
        values.data = values.data.clone()


def require_none(folder: ModelFolder, missing: Iterable[str]) -> None:
    """Raise TeacherError if weights are missing."""
    if names := sorted(missing):
        raise TeacherError(
            f"teacher model {folder.place!r} lacks weights that its architecture needs "
            f"({', '.join(names[:5])}), so its output would be random: save it again with them, or "
            "correct the architecture in config.json"
        )


@contextmanager
def _loading(place: str) -> Iterator[None]:
    """Turn an error in loading into a TeacherError, and silence transformers meanwhile.

    Its report on loading fills a screen for each actor; what matters in it is checked here.
    """
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except (TeacherError, ImportError, MemoryError):
        raise
    except Exception as error:  # those of transformers and safetensors have many types
        raise TeacherError(
            f"teacher model {place!r} cannot be loaded ({type(error).__name__}: "
            f"{one_line(error)}): check that its files are complete; if another version of "
            "transformers saved it, install that version"
        ) from error
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _loader_of(folder: ModelFolder, config: Any) -> tuple[Any, Any]:
    """Return the transformers class that loads the model, and its config."""
    import transformers

    if folder.names:
        return classifier_loader(folder.modality), config
    if folder.modality == "audio":
        tower = getattr(config, "audio_config", None)
    else:
        tower = getattr(config, "vision_config", None)
    return transformers.AutoModel, tower or config


def classifier_loader(modality: Modality) -> Any:
    """Return the transformers class that loads classifiers of a modality."""
    import transformers

    match modality:
        case "audio":
            return transformers.AutoModelForAudioClassification
        case "image":
            return transformers.AutoModelForImageClassification
        case "video":
            return transformers.AutoModelForVideoClassification


def _load_extractor(path: str) -> Any:
    import transformers

    loader: Any = transformers.AutoFeatureExtractor
    return loader.from_pretrained(path, trust_remote_code=False)


def body_of(module: Any) -> nn.Module:
    """Return the part of a classifier below its head. An encoder is its own body."""
    body = module.base_model
    if body is module and hasattr(module, "classifier"):
        encoder = getattr(module, "encoder", None)  # Whisper
        tower = getattr(module, "vision_model", None)  # CLIP
        body = next((part for part in (encoder, tower) if part is not None), module)
    return body


def _argument_names(module: nn.Module) -> set[str]:
    return set(inspect.signature(module.forward).parameters)


def pool(body: Any, hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean of a hidden state [n, steps, dim] over the steps that are not padding."""
    if mask is None:
        return hidden.float().mean(1)
    steps = hidden.shape[1]
    if hasattr(body, "_get_feature_vector_attention_mask"):
        mask = body._get_feature_vector_attention_mask(steps, mask)
    elif mask.shape[1] != steps:
        mask = mask[:, :: mask.shape[1] // steps][:, :steps]
    weights = mask.to(hidden.device).float().unsqueeze(2)
    return (hidden.float() * weights).sum(1) / weights.sum(1).clamp_min(1)
