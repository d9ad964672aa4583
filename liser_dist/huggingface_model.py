"""A Hugging Face folder or hub name as a frozen net: clips -> logits and embeddings.

torch and transformers are imported when a model is loaded, so that the check of a job, which
needs `model_folder` alone, stays cheap.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from liser_dist.errors import TeacherError
from liser_dist.model_folder import (
    WEIGHTS_FILES,
    Modality,
    ModelFolder,
    find_folder,
    read_model_folder,
)
from liser_dist.records import Clip, to_floats

if TYPE_CHECKING:
    from torch import Tensor, nn

Floats = NDArray[np.float32]
Answer = tuple[Floats, Floats]  # logits [looks, names], embeddings [looks, dim]

# Parameters that a frozen net in eval mode never reads: old checkpoints lack them.
_UNUSED_WEIGHTS = re.compile(r"masked_spec_embed|mask_token|position_ids|num_batches")
UNUSED_IN_ENCODERS = re.compile(rf"{_UNUSED_WEIGHTS.pattern}|pooler\.")


class HuggingFaceModel:
    """A frozen audio, image or video net in eval mode, on the GPU when there is one.

    Args:
        place: a folder or hub name.
        sample_rate_hz: of the clips' sound.

    Attributes:
        module: the transformers module (classifier, or plain encoder).
        modality: "audio", "image" or "video".
        body: the part of it below its head.
        names: the classes in the order of the logits; empty for an encoder.
        embedding_dim: width of the embedding.

    Raises:
        TeacherError: see `read_model_folder`; or the weights do not fit the architecture.
    """

    def __init__(self, place: str, sample_rate_hz: int = 16000) -> None:
        import torch

        self.folder = read_model_folder(place)
        self.modality: Modality = self.folder.modality
        self.names = self.folder.names
        self.embedding_dim = self.folder.embedding_dim
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        path = str(find_folder(place, WEIGHTS_FILES))
        with _loading(place):
            module = self._load(path)
            self._extractor: Any = _load_extractor(path) if self.modality == "audio" else None
        self.module = module.to(self.device).eval().requires_grad_(False)
        self.body = body_of(self.module)
        self._accepts = _argument_names(self.module)
        self._sample_rate_hz = sample_rate_hz

    def _load(self, path: str) -> nn.Module:
        return _load_module(self.folder, path)

    def answer(self, clips: Sequence[Clip]) -> list[Answer]:
        """What the net says of each clip, which must have what the net looks at.

        Returns:
            For each clip logits [looks, names] and embeddings [looks, dim]: an image net looks
            once at each frame with a face, the others once. Does not depend on the other clips.
        """
        answers: dict[int, Answer] = {}
        for members in self.groups(clips):
            group = [clips[member] for member in members]
            logits, embedding = self.forward(self.inputs(group))
            if logits is None:
                logits = embedding[:, :0]
            looks = [int(clip.has_face.sum()) if self.modality == "image" else 1 for clip in group]
            cuts = np.cumsum(looks)[:-1]
            parts = (np.split(values.cpu().numpy(), cuts) for values in (logits, embedding))
            answers.update(zip(members, zip(*parts, strict=True), strict=True))
        return [answers[index] for index in range(len(clips))]

    def inputs(self, clips: Sequence[Clip]) -> dict[str, Tensor]:
        """What `forward` takes, on the device.

        Audio: what the feature extractor makes of the waveforms in -1..1 [clips, ...], with an
        attention mask where the net uses one. Image: `pixel_values` [frames with a face of all
        clips, 3, h, w]. Video: [clips, frames, 3, h, w] of each clip's frames with a face,
        sampled or repeated up to the net's number.
        """
        if self.modality == "audio":
            return self._audio_inputs(clips)
        seen = [clip.faces[clip.has_face] for clip in clips]
        if self.modality == "video":
            config = self.folder.config
            frames = int(config.get("num_frames") or config["frames_per_clip"])
            seen = [faces[_spread(len(faces), frames)] for faces in seen]
        pixels = self._pixels(np.concatenate(seen))
        if self.modality == "video":
            pixels = pixels.reshape(len(clips), -1, *pixels.shape[1:])
        return {str(getattr(self.module, "main_input_name", "pixel_values")): pixels}

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor | None, Tensor]:
        """Logits [n, names] (None for an encoder) and embedding [n, dim], float32.

        The embedding is the mean of the last hidden state over the time steps that are not
        padding, or over patches; a convolutional net's own pooled output where it has one.
        """
        import torch

        cuda = self.device.type == "cuda"
        half = torch.float16 if cuda and not torch.cuda.is_bf16_supported() else torch.bfloat16
        with torch.inference_mode(), torch.autocast(self.device.type, half, enabled=cuda):
            logits, embedding = self._run(inputs)
        if embedding.shape[1] != self.embedding_dim:
            raise TeacherError(
                f"teacher model {self.folder.place!r} gives embeddings of {embedding.shape[1]}, "
                f"where its config.json says {self.embedding_dim}: mend `hidden_size` in it"
            )
        return (None if logits is None else logits.float()), embedding.float()

    def _run(self, inputs: dict[str, Tensor]) -> tuple[Tensor | None, Tensor]:
        given = self._accepted(inputs)
        bodies: list[Any] = []
        hook = self.body.register_forward_hook(lambda _m, _i, output: bodies.append(output))
        try:
            output = self.module(**given)
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
        """Clips that may share a batch.

        Without a mask padding is heard, and a group norm over time hears it even with one, so
        that a clip's answer would depend on its company: such nets get equal lengths together.
        """
        if self.modality != "audio" or self._hears_no_padding():
            return [list(range(len(clips)))] if clips else []
        groups: dict[int, list[int]] = {}
        for index, clip in enumerate(clips):
            groups.setdefault(clip.waveform.size, []).append(index)
        return list(groups.values())

    def _hears_no_padding(self) -> bool:
        # AST, Whisper and CLAP give every clip the same length, whatever its company
        fixed = ("max_length", "n_samples", "nb_max_samples")
        if any(hasattr(self._extractor, name) for name in fixed):
            return True
        masked = bool(getattr(self._extractor, "return_attention_mask", False))
        return masked and getattr(self.module.config, "feat_extract_norm", "") != "group"

    def _audio_inputs(self, clips: Sequence[Clip]) -> dict[str, Tensor]:
        rate = int(self._extractor.sampling_rate)
        waveforms = [to_floats(clip.waveform) for clip in clips]
        if rate != self._sample_rate_hz:
            waveforms = [_resample(waveform, self._sample_rate_hz, rate) for waveform in waveforms]
        options: dict[str, Any] = {}
        if hasattr(self._extractor, "n_samples"):  # Whisper: tells 3 s of sound from 30 s of frame
            options["return_attention_mask"] = True
        elif not hasattr(self._extractor, "max_length"):
            options["padding"] = True
        features = self._extractor(waveforms, sampling_rate=rate, return_tensors="pt", **options)
        return {name: value.to(self.device) for name, value in features.items()}

    def _pixels(self, faces: NDArray[np.uint8]) -> Tensor:
        """Crops [n, px, px, 3] -> resized and normalised [n, 3, h, w] by the processor's JSON."""
        import torch

        settings = self.folder.processor
        pixels = torch.from_numpy(np.ascontiguousarray(faces)).to(self.device)
        pixels = pixels.permute(0, 3, 1, 2).float()
        if settings.get("do_resize", True):
            pixels = _resize(pixels, settings)
        if settings.get("do_rescale", True):
            pixels = pixels * float(settings.get("rescale_factor", 1 / 255))
        if settings.get("do_normalize", True):
            shape = (1, -1, 1, 1)
            mean = torch.tensor(settings.get("image_mean", 0.5), device=self.device)
            std = torch.tensor(settings.get("image_std", 0.5), device=self.device)
            pixels = (pixels - mean.reshape(shape)) / std.reshape(shape)
        return pixels


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
    # Of a speech recogniser only the encoder hears
    if settings.is_encoder_decoder and not folder.names:
        module = module.get_encoder()
    return module


def require_none(folder: ModelFolder, missing: Iterable[str]) -> None:
    """Raise TeacherError where weights are missing."""
    if names := sorted(missing):
        raise TeacherError(
            f"teacher model {folder.place!r} lacks weights that its architecture has, and would "
            f"answer at random: {', '.join(names[:5])}: save it again with them, or name the "
            "architecture that it really has in config.json"
        )


@contextmanager
def _loading(place: str) -> Iterator[None]:
    """What keeps a model from loading becomes a TeacherError; transformers keeps quiet meanwhile.

    Its report on loading is a screen for each actor, and what matters of it is an error of ours.
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
    except Exception as error:  # transformers' and safetensors' own, of many types
        raise TeacherError(
            f"teacher model {place!r} cannot be loaded ({type(error).__name__}: "
            f"{str(error)[:300]}): save it again with the transformers installed here"
        ) from error
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _loader_of(folder: ModelFolder, config: Any) -> tuple[Any, Any]:
    """The transformers class that loads the model, and with which config."""
    import transformers

    if folder.names:
        name = f"AutoModelFor{folder.modality.capitalize()}Classification"
        return getattr(transformers, name), config
    towers = {"audio": "audio_config", "image": "vision_config", "video": "vision_config"}
    return transformers.AutoModel, getattr(config, towers[folder.modality], None) or config


def _load_extractor(path: str) -> Any:
    import transformers

    loader: Any = transformers.AutoFeatureExtractor
    return loader.from_pretrained(path, trust_remote_code=False)


def body_of(module: Any) -> nn.Module:
    """The part of a classifier below its head; an encoder is its own body."""
    body = module.base_model
    if body is module and hasattr(module, "classifier"):
        parts = (getattr(module, name, None) for name in ("encoder", "vision_model"))
        body = next((part for part in parts if part is not None), module)  # Whisper's, CLIP's
    return body


def _argument_names(module: nn.Module) -> set[str]:
    return set(inspect.signature(module.forward).parameters)


# ---------------------------------------------------------------- arithmetic


def _spread(given: int, wanted: int) -> NDArray[np.intp]:
    """`wanted` indices spread evenly over `given` frames, each repeated where there are few."""
    return np.linspace(0, given - 1, wanted).round().astype(np.intp)


def _resample(waveform: Floats, from_hz: int, to_hz: int) -> Floats:
    import torch
    from torchaudio.functional import resample

    resampled: Floats = resample(torch.from_numpy(waveform), from_hz, to_hz).numpy()
    return resampled


def _resize(pixels: Tensor, settings: dict[str, Any]) -> Tensor:
    """Square crops [n, 3, px, px] -> [n, 3, h, w], as the image processor would."""
    from torch.nn.functional import interpolate

    size = settings.get("size", 224)
    height, width = _height_width(size)
    if "crop_pct" in settings and "shortest_edge" in size and height < 384:
        crop = (height, width)  # ConvNeXt resizes to more, then crops to what is asked
        height = width = int(height / (settings["crop_pct"] or 1))
    elif settings.get("do_center_crop"):
        crop = _height_width(settings.get("crop_size", size))
    else:
        crop = (height, width)
    mode = {0: "nearest", 3: "bicubic"}.get(settings.get("resample", 2), "bilinear")
    if pixels.shape[2:] != (height, width):
        pixels = interpolate(pixels, (height, width), mode=mode, antialias=mode != "nearest")
        pixels = pixels.round().clamp(0, 255)  # an image of bytes again, as PIL's would be
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    return pixels[:, :, top : top + crop[0], left : left + crop[1]]


def _height_width(size: int | dict[str, int]) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    edge = size.get("shortest_edge") or size.get("longest_edge") or 224
    return size.get("height") or edge, size.get("width") or edge


def pool(body: Any, hidden: Tensor, mask: Tensor | None) -> Tensor:
    """A body's hidden state [n, steps, dim] -> [n, dim], over the steps that are not padding."""
    if mask is None:
        return hidden.float().mean(1)
    steps = hidden.shape[1]
    if hasattr(body, "_get_feature_vector_attention_mask"):
        mask = body._get_feature_vector_attention_mask(steps, mask)
    elif mask.shape[1] != steps:
        mask = mask[:, :: mask.shape[1] // steps][:, :steps]
    weights = mask.to(hidden.device).float().unsqueeze(2)
    return (hidden.float() * weights).sum(1) / weights.sum(1).clamp_min(1)
