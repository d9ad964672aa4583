"""An ONNX file as a frozen net: clips -> logits and embeddings, run by onnxruntime.

The spec says how the net wants its input, for an ONNX file does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from liser_dist.errors import StorageError, TeacherError
from liser_dist.huggingface_model import Answer, Floats
from liser_dist.model_folder import Modality
from liser_dist.records import Clip, to_floats
from liser_dist.spec import ClipSpec
from liser_dist.storage import read_bytes
from liser_dist.teacher_spec import ImageInput, MelPowerInput, OnnxTeacher

if TYPE_CHECKING:
    from torch import Tensor

_INPUT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as OpenCV's and PIL's


class OnnxModel:
    """A frozen net with one input, on the GPU where onnxruntime has one.

    Attributes:
        modality: "audio" or "image".
        names: the classes in the order of the logits; empty without logits.
        embedding_dim: width of the embedding; 0 without one.

    Raises:
        TeacherError: the file is not there or not ONNX, or the spec does not fit it (found by
            running a blank clip).
    """

    def __init__(self, spec: OnnxTeacher, clip: ClipSpec) -> None:
        self.spec = spec
        self.modality: Modality = "image" if isinstance(spec.input, ImageInput) else "audio"
        self.names = spec.names if spec.logits is not None else ()
        self._clip = clip
        self._session = _open_session(spec.model)
        self._input = self._only_input()
        self._require_outputs()
        self.embedding_dim = self._probe()

    def answer(self, clips: Sequence[Clip]) -> list[Answer]:
        """What the net says of each clip, which must have what the net looks at.

        Returns:
            For each clip logits [looks, names] and embeddings [looks, dim]: an image net looks
            once at each frame with a face, a speech net once. Sounds of different lengths do not
            share a batch, for there is no telling how the net takes padding.
        """
        if self.modality == "image":
            faces = [clip.faces[clip.has_face] for clip in clips]
            cuts = np.cumsum([len(some) for some in faces])[:-1]
            logits, embedding = self._run(self._pixels(np.concatenate(faces)))
            return list(zip(np.split(logits, cuts), np.split(embedding, cuts), strict=True))
        lengths: dict[int, list[int]] = {}
        for index, clip in enumerate(clips):
            lengths.setdefault(clip.waveform.size, []).append(index)
        answers: dict[int, Answer] = {}
        for members in lengths.values():
            waveforms = np.stack([clips[member].waveform for member in members])
            logits, embedding = self._run(self._sound(to_floats(waveforms)))
            for row, member in enumerate(members):
                answers[member] = logits[row : row + 1], embedding[row : row + 1]
        return [answers[index] for index in range(len(clips))]

    # ------------------------------------------------------------ input

    def _pixels(self, faces: NDArray[np.uint8]) -> Floats:
        """Crops [n, px, px, 3] RGB -> [n, channels, size, size]."""
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
        normalised: Floats = ((pixels - mean) * scale).numpy()
        return normalised

    def _sound(self, waveforms: Floats) -> Floats:
        """[n, samples] in -1..1 -> what the net takes, [n, samples] or [n, frames, mels]."""
        import torch

        if isinstance(self.spec.input, MelPowerInput):
            mel: Floats = self._mel(torch.from_numpy(waveforms)).transpose(1, 2).numpy()
            waveforms = mel
        length = self._input.shape[1] if len(self._input.shape) > 1 else None
        return _fit(waveforms, length) if isinstance(length, int) else waveforms

    @cached_property
    def _mel(self) -> Callable[[Tensor], Tensor]:
        """Mel power as librosa's `melspectrogram` computes it."""
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

    # ------------------------------------------------------------ the net

    def _run(self, given: Floats) -> tuple[Floats, Floats]:
        """Logits [n, names] and embeddings [n, dim]; either may be zero wide."""
        dtype = _INPUT_TYPES[self._input.type]
        wanted = [name for name in (self.spec.logits, self.spec.embedding) if name is not None]
        # A file exported for a batch of one is run one by one
        step = 1 if self._input.shape[0] == 1 else max(1, len(given))
        parts = [
            self._session.run(wanted, {self._input.name: given[start : start + step].astype(dtype)})
            for start in range(0, len(given), step)
        ]
        outputs: dict[str | None, Floats] = {
            name: np.concatenate([_as_rows(part[index]) for part in parts])
            for index, name in enumerate(wanted)
        }
        none = np.empty((len(given), 0), np.float32)
        return outputs.get(self.spec.logits, none), outputs.get(self.spec.embedding, none)

    def _only_input(self) -> Any:
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in _INPUT_TYPES:
            has = ", ".join(f"{one.name}: {one.type}" for one in inputs)
            raise TeacherError(
                f"teacher model {self.spec.model!r} takes ({has}), where one input of floats is "
                "needed: export it so"
            )
        return inputs[0]

    def _require_outputs(self) -> None:
        outputs = [output.name for output in self._session.get_outputs()]
        for field in ("logits", "embedding"):
            name = getattr(self.spec, field)
            if name is not None and name not in outputs:
                raise TeacherError(
                    f"teacher model {self.spec.model!r}: `{field}: {name}` is none of its outputs: "
                    f"give one of {', '.join(outputs)}"
                )

    def _probe(self) -> int:
        """Run a blank clip, to learn what no ONNX file need declare; the embedding's width."""
        samples = round(self._clip.window_s * self._clip.sample_rate_hz)
        size = self._clip.face_px
        try:
            if self.modality == "image":
                given = self._pixels(np.zeros((1, size, size, 3), np.uint8))
            else:
                given = self._sound(np.zeros((1, samples), np.float32))
            logits, embedding = self._run(given)
        except Exception as error:  # onnxruntime's and torch's own, of many types
            raise TeacherError(
                f"teacher model {self.spec.model!r} does not take the `input` that the spec gives "
                f"it ({self.spec.input!r}); it declares {self._input.name}: {self._input.shape}: "
                f"{str(error)[:300]}"
            ) from error
        if logits.shape[1] != len(self.names):
            raise TeacherError(
                f"teacher model {self.spec.model!r}: `names` has {len(self.names)} classes "
                f"({', '.join(self.names)}), its logits {self.spec.logits!r} have "
                f"{logits.shape[1]}: give one name for each"
            )
        return int(embedding.shape[1])


def _open_session(place: str) -> Any:
    import onnxruntime
    import torch

    try:
        content = read_bytes(place)
    except StorageError as error:
        raise TeacherError(
            f"teacher model {place!r} cannot be read ({error}): give the place of an .onnx file"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads() or 1
    options.log_severity_level = 3
    available = onnxruntime.get_available_providers()
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    try:
        return onnxruntime.InferenceSession(
            content, options, providers=[name for name in wanted if name in available]
        )
    except Exception as error:  # onnxruntime's own, of many types
        raise TeacherError(
            f"teacher model {place!r} is not an ONNX file that onnxruntime can run "
            f"({str(error)[:200]}): export it again, with its weights inside the file"
        ) from error


def _fit(sound: Floats, length: int) -> Floats:
    """[n, steps, ...] padded with zeros, or cut, to what a file of fixed length takes."""
    missing = length - sound.shape[1]
    if missing <= 0:
        return sound[:, :length]
    return np.pad(sound, [(0, 0), (0, missing)] + [(0, 0)] * (sound.ndim - 2))


def _as_rows(output: NDArray[Any]) -> Floats:
    """[n, dim], [n, steps, dim] or [n, dim, h, w] -> [n, dim]."""
    output = output.astype(np.float32)
    if output.ndim == 4:
        return np.asarray(output.mean((2, 3)))
    return np.asarray(output.mean(1)) if output.ndim == 3 else output.reshape(len(output), -1)
