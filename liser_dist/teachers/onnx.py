"""Runs an ONNX file on clips with ONNX Runtime: logits and embeddings.

The spec says how the input is prepared (sample rate, crop, scaling), because an ONNX file does not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from liser_dist.config.stream import ClipSpec
from liser_dist.config.teachers import (
    ImageInput,
    MelPowerInput,
    OnnxTeacher,
    TeacherIdentity,
)
from liser_dist.errors import StorageError, TeacherError, one_line
from liser_dist.records import Clip, to_floats
from liser_dist.storage import list_files, read_bytes
from liser_dist.teachers.identity import require_same_weights
from liser_dist.teachers.model_files import Modality
from liser_dist.teachers.model_teacher import (
    ModelOutput,
    ModelTeacher,
    TeacherFacts,
    known_emotions,
    map_names,
)

if TYPE_CHECKING:
    from torch import Tensor

_Floats = NDArray[np.float32]
_INPUT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in OpenCV and PIL


class OnnxKind:
    """The kind `onnx`."""

    def __init__(self, spec: OnnxTeacher) -> None:
        self._spec = spec

    def identify(self) -> TeacherIdentity:
        """Return the SHA-256 of the file."""
        model = self._spec.model
        digest = hashlib.sha256(_read_file(model)).hexdigest()
        return TeacherIdentity(kind=self._spec.kind, model=model, digest=digest)

    def describe(
        self, emotions: Sequence[str], clip: ClipSpec, identity: TeacherIdentity | None = None
    ) -> TeacherFacts:
        """Load the file and run it once, to check it against the spec."""
        model = OnnxModel(self._spec, clip)
        mapping = map_names(self._spec.model, model.names, self._spec.labels, emotions)
        known = tuple(known_emotions(mapping).tolist())
        return TeacherFacts(known, model.embedding_dim, model.names, model.modality)

    def load(
        self, emotions: Sequence[str], clip: ClipSpec, identity: TeacherIdentity | None = None
    ) -> ModelTeacher:
        """Load the file. What is compared with the identity are the bytes that are loaded."""
        model = OnnxModel(self._spec, clip, identity)
        mapping = map_names(self._spec.model, model.names, self._spec.labels, emotions)
        return ModelTeacher(model, mapping, self._spec.temperature)

    def weights_bytes(self) -> int:
        """Return the size of the file."""
        return sum(file.size_bytes for file in list_files(self._spec.model))


class OnnxModel:
    """A frozen model with one input, on the GPU if ONNX Runtime has one.

    Args:
        spec: where the file is, and what its input is.
        clip: how clips are decoded.
        identity: what the file must be; None: it is not checked.

    Attributes:
        modality: "audio" or "image".
        names: the classes in the order of the logits; empty without logits.
        embedding_dim: width of the embedding; 0 without one.

    Raises:
        TeacherError: the file does not exist or is not ONNX, or the spec does not fit it, which a
            run on a blank clip shows.
    """

    def __init__(
        self, spec: OnnxTeacher, clip: ClipSpec, identity: TeacherIdentity | None = None
    ) -> None:
        self.spec = spec
        self.modality: Modality = "image" if isinstance(spec.input, ImageInput) else "audio"
        self.names = spec.names if spec.logits is not None else ()
        self._clip = clip
        content = _read_file(spec.model)
        if identity is not None:
            require_same_weights(spec.model, hashlib.sha256(content).hexdigest(), identity)
        self._session = _open_session(spec.model, content)
        self._input = self._only_input()
        self._require_outputs()
        self.embedding_dim = self._probe()

    def predict(self, clips: Sequence[Clip]) -> list[ModelOutput]:
        """Run the model on clips, each of which must have its modality.

        Audio of different lengths is never batched, as it is unknown how the model treats padding.

        Returns:
            Logits [inputs, names] and embeddings [inputs, dim] of each clip. A face model has one
            input for each frame with a face, a speech model one for the clip.
        """
        if self.modality == "image":
            faces = [clip.faces[clip.has_face] for clip in clips]
            cuts = np.cumsum([len(crops) for crops in faces])[:-1]
            logits, embedding = self._run(self._pixels(np.concatenate(faces)))
            return list(zip(np.split(logits, cuts), np.split(embedding, cuts), strict=True))
        lengths: dict[int, list[int]] = {}
        for index, clip in enumerate(clips):
            lengths.setdefault(clip.waveform.size, []).append(index)
        outputs: dict[int, ModelOutput] = {}
        for members in lengths.values():
            waveforms = np.stack([clips[member].waveform for member in members])
            logits, embedding = self._run(self._audio(to_floats(waveforms)))
            for row, member in enumerate(members):
                outputs[member] = logits[row : row + 1], embedding[row : row + 1]
        return [outputs[index] for index in range(len(clips))]

    # ------------------------------------------------------------ input

    def _pixels(self, faces: NDArray[np.uint8]) -> _Floats:
        """Turn RGB crops [n, px, px, 3] into the model's input [n, channels, size, size]."""
        import torch
        from torch.nn.functional import interpolate

        wanted = self.spec.input
        assert isinstance(wanted, ImageInput)
        pixels = torch.from_numpy(np.ascontiguousarray(faces)).permute(0, 3, 1, 2).float()
        if wanted.channels == "bgr":
            pixels = pixels.flip(1)
        elif wanted.channels == "grey":
            pixels = (pixels * torch.tensor(_GREY).reshape(1, 3, 1, 1)).sum(1, keepdim=True)
        size = (wanted.size_px, wanted.size_px)
        if pixels.shape[2:] != size:
            pixels = interpolate(pixels, size, mode="bilinear", antialias=True)
        mean = torch.tensor(wanted.mean).reshape(1, -1, 1, 1)
        scale = torch.tensor(wanted.scale).reshape(1, -1, 1, 1)
        normalised: _Floats = ((pixels - mean) * scale).numpy()
        return normalised

    def _audio(self, waveforms: _Floats) -> _Floats:
        """Turn waveforms [n, samples] into the model's input [n, samples] or [n, frames, mels]."""
        import torch

        if isinstance(self.spec.input, MelPowerInput):
            mel: _Floats = self._mel(torch.from_numpy(waveforms)).transpose(1, 2).numpy()
            waveforms = mel
        length = self._input.shape[1] if len(self._input.shape) > 1 else None
        return _fit(waveforms, length) if isinstance(length, int) else waveforms

    @cached_property
    def _mel(self) -> Callable[[Tensor], Tensor]:
        """Mel power, as librosa's `melspectrogram` computes it."""
        from torchaudio.transforms import MelSpectrogram

        wanted = self.spec.input
        assert isinstance(wanted, MelPowerInput)
        rate = self._clip.sample_rate_hz
        transform: Callable[[Tensor], Tensor] = MelSpectrogram(
            rate,
            n_fft=round(rate * wanted.window_ms / 1000),
            hop_length=round(rate * wanted.hop_ms / 1000),
            n_mels=wanted.mels,
            norm="slaney",
            mel_scale="slaney",
            pad_mode="constant",
        )
        return transform

    # ------------------------------------------------------------ the model

    def _run(self, given: _Floats) -> tuple[_Floats, _Floats]:
        """Return logits [n, names] and embeddings [n, dim]; either may have width 0."""
        dtype = _INPUT_TYPES[self._input.type]
        wanted = [name for name in (self.spec.logits, self.spec.embedding) if name is not None]
        # A file that was exported for a batch of one is run one by one.
        step = 1 if self._input.shape[0] == 1 else max(1, len(given))
        parts = [
            self._session.run(wanted, {self._input.name: given[start : start + step].astype(dtype)})
            for start in range(0, len(given), step)
        ]
        outputs: dict[str | None, _Floats] = {
            name: np.concatenate([_as_rows(part[index]) for part in parts])
            for index, name in enumerate(wanted)
        }
        none = np.empty((len(given), 0), np.float32)
        return outputs.get(self.spec.logits, none), outputs.get(self.spec.embedding, none)

    def _only_input(self) -> Any:
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in _INPUT_TYPES:
            types = ", ".join(f"{value.name}: {value.type}" for value in inputs)
            raise TeacherError(
                f"teacher model {self.spec.model!r} has the inputs ({types}): export it with a "
                "single float input"
            )
        return inputs[0]

    def _require_outputs(self) -> None:
        outputs = [output.name for output in self._session.get_outputs()]
        fields = {"logits": self.spec.logits, "embedding": self.spec.embedding}
        for field, name in fields.items():
            if name is not None and name not in outputs:
                raise TeacherError(
                    f"teacher model {self.spec.model!r}: `{field}: {name}` is not one of its "
                    f"outputs: give one of {', '.join(outputs)}"
                )

    def _probe(self) -> int:
        """Run a blank clip to check the spec against the file, and return the embedding width."""
        samples = round(self._clip.window_s * self._clip.sample_rate_hz)
        size = self._clip.face_px
        try:
            if self.modality == "image":
                given = self._pixels(np.zeros((1, size, size, 3), np.uint8))
            else:
                given = self._audio(np.zeros((1, samples), np.float32))
            logits, embedding = self._run(given)
        except Exception as error:  # those of ONNX Runtime and torch have many types
            raise TeacherError(
                f"teacher model {self.spec.model!r} cannot run with the `input` of the spec "
                f"({self.spec.input!r}): {one_line(error)}; the input of the file is "
                f"{self._input.name!r} of shape {self._input.shape}: correct `input`"
            ) from error
        if logits.shape[1] != len(self.names):
            raise TeacherError(
                f"teacher model {self.spec.model!r}: `names` has {len(self.names)} classes "
                f"({', '.join(self.names)}), but its output {self.spec.logits!r} has "
                f"{logits.shape[1]} logits: give one name for each"
            )
        return int(embedding.shape[1])


def _read_file(place: str) -> bytes:
    try:
        return read_bytes(place)
    except StorageError as error:
        raise TeacherError(
            f"teacher model {place!r} cannot be read ({error}): give the path of an .onnx file"
        ) from error


def _open_session(place: str, content: bytes) -> Any:
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads() or 1
    options.log_severity_level = 3
    available = onnxruntime.get_available_providers()
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    try:
        return onnxruntime.InferenceSession(
            content, options, providers=[name for name in wanted if name in available]
        )
    except Exception as error:  # ONNX Runtime's have many types
        raise TeacherError(
            f"teacher model {place!r} is not an ONNX file that ONNX Runtime can run "
            f"({one_line(error)}): export it again, with its weights inside the file"
        ) from error


def _fit(audio: _Floats, length: int) -> _Floats:
    """Pad [n, steps, ...] with zeros, or cut it, to the fixed length of a model's input."""
    missing = length - audio.shape[1]
    if missing <= 0:
        return audio[:, :length]
    return np.pad(audio, [(0, 0), (0, missing)] + [(0, 0)] * (audio.ndim - 2))


def _as_rows(output: NDArray[Any]) -> _Floats:
    """Average [n, steps, dim] or [n, dim, h, w] to [n, dim]; leave [n, dim] as it is."""
    output = output.astype(np.float32)
    if output.ndim == 4:
        return np.asarray(output.mean((2, 3)))
    return np.asarray(output.mean(1)) if output.ndim == 3 else output.reshape(len(output), -1)
