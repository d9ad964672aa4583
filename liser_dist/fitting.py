"""Labelled clips + a backbone -> a teacher's folder.

The backbone is any Hugging Face audio, image or video net. It stays as it is but for its last
linear layer, which becomes a multinomial logistic regression on what that layer is given:

1. the clips go through the product's own input path, one at a time;
2. the regression is fitted on standardised embeddings, and the standardisation folded into it;
3. the net is saved with its feature extractor or image processor, as transformers would.
"""

from __future__ import annotations

import inspect
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liser_dist.errors import TeacherError
from liser_dist.model_folder import SETTINGS_FILES, find_folder
from liser_dist.records import Clip

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = logging.getLogger(__name__)

# Weight of half the squared coefficients beside the mean log loss. With a dozen labelled clips the
# embeddings have more dimensions than there are examples: a small weight separates them all and is
# sure of everything. At 1 a head errs towards doubt (synthetic corpus, unseen speakers: right on
# 70 to 85 %, mean confidence 55 to 62 %), at 0.01 the other way, and is no more often right.
_L2 = 1.0


def fit_head(
    backbone: str | Path,
    clips: Sequence[Clip],
    emotions: Sequence[str],
    folder: Path,
    sample_rate_hz: int = 16000,
) -> None:
    """Fit a new last layer on labelled clips and save the whole net as a teacher.

    An image net takes every frame with a face for an example, a video net every clip with one.

    Args:
        backbone: a folder or hub name; a plain encoder is given a classifier first.
        clips: labelled; those that show the net nothing are left out.
        emotions: the classes, in the order of the new logits.
        folder: where the teacher is saved, safetensors and JSON.
        sample_rate_hz: of the clips' sound.

    Raises:
        TeacherError: the backbone cannot be loaded or has no linear layer at its end, or there
            is an emotion that no usable clip shows.
    """
    from liser_dist.huggingface_model import HuggingFaceModel

    model = HuggingFaceModel(str(backbone), sample_rate_hz)
    net = model.module if model.names else _classifier_on(model)
    layer = find_head(net)
    embeddings, labels = _embed(model, net, layer, clips, emotions)
    weight, bias = fit_regression(embeddings, labels, len(emotions))
    _replace(net, layer, weight, bias, emotions)
    save_net(net, folder)
    _copy_processor(str(backbone), folder)
    logger.info(
        "head of %s fitted on %d examples of %d clips", folder.name, len(labels), len(clips)
    )


def save_net(net: Any, folder: Path) -> None:
    """As transformers saves it, in safetensors, without its progress bar."""
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        net.save_pretrained(folder)
    finally:
        if bars:
            transformers_logging.enable_progress_bar()


def find_head(net: nn.Module) -> nn.Linear:
    """The linear layer that gives the logits: the last one of a classifier."""
    import torch

    linear = [module for module in net.modules() if isinstance(module, torch.nn.Linear)]
    classes = getattr(net, "num_labels", None)
    if not linear or linear[-1].out_features != classes:
        raise TeacherError(
            f"backbone {type(net).__name__} does not end in a linear layer of {classes} outputs, "
            "so no head can be fitted on it: use another architecture"
        )
    return linear[-1]


def fit_regression(embeddings: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression with an L2 penalty on its weights, not on its bias.

    Args:
        embeddings: [n, dim], as they come.
        labels: [n] of 0..classes - 1; each class weighs the same, however often it occurs.
        classes: their number.

    Returns:
        weight [classes, dim] and bias [classes] for embeddings as they come.
    """
    import torch

    centre = embeddings.double().mean(0)
    # A dimension that never moves must not be blown up.
    spread = embeddings.double().std(0, correction=0).clamp_min(1e-4)
    inputs = (embeddings.double() - centre) / spread
    share = len(labels) / (classes * torch.bincount(labels, minlength=classes).clamp_min(1))
    weight = torch.zeros(classes, inputs.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        logits = inputs @ weight.T + bias
        losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        loss = (losses * share[labels]).mean() + 0.5 * _L2 * (weight**2).sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    folded = weight.detach() / spread
    return folded.float(), (bias.detach() - folded @ centre).float()


def _classifier_on(model: Any) -> nn.Module:
    """A plain encoder with a classifier of its architecture's own kind, untrained as yet."""
    import torch
    import transformers

    loader = getattr(transformers, f"AutoModelFor{model.modality.capitalize()}Classification")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            net: nn.Module = loader.from_pretrained(
                str(find_folder(model.folder.place, ("*.json", "model*.safetensors"))),
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
            )
        except ValueError as error:
            raise TeacherError(
                f"backbone {model.folder.place!r} has no classifier in transformers "
                f"({str(error)[:200]}): use another architecture"
            ) from error
    return net.to(model.device).eval().requires_grad_(False)


def _embed(
    model: Any, net: nn.Module, layer: nn.Linear, clips: Sequence[Clip], emotions: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """What the last layer is given, [n, dim], and the number of the emotion, [n]."""
    import torch

    given: list[Tensor] = []
    numbers: list[int] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].cpu().float()))
    try:
        for clip in clips:
            usable = clip.waveform.size if model.modality == "audio" else clip.has_face.any()
            if clip.emotion in emotions and usable:
                # One at a time: no clip's embedding may depend on its company.
                with torch.inference_mode():
                    net(**_accepted(net, model.inputs([clip])))
                numbers += [emotions.index(clip.emotion)] * len(given[-1])
    finally:
        hook.remove()
    missing = sorted(set(emotions) - {emotions[number] for number in numbers})
    if missing:
        raise TeacherError(
            f"no labelled clip shows {', '.join(missing)} to the {model.modality} backbone: add "
            "clips of it, or leave it out of `emotions`"
        )
    # Out of inference mode, for the regression takes gradients.
    return torch.cat(given).clone(), torch.tensor(numbers)


def _accepted(net: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    names = inspect.signature(net.forward).parameters
    return {name: value for name, value in inputs.items() if name in names}


def _replace(
    net: Any, layer: nn.Linear, weight: Tensor, bias: Tensor, emotions: Sequence[str]
) -> None:
    """Put the regression where the last layer was, and its names into the config."""
    import torch

    layer.weight = torch.nn.Parameter(weight.to(layer.weight.device))
    layer.bias = torch.nn.Parameter(bias.to(layer.weight.device))
    layer.out_features = len(emotions)
    net.num_labels = len(emotions)
    net.config.id2label = dict(enumerate(emotions))
    net.config.label2id = {name: number for number, name in enumerate(emotions)}
    net.config.architectures = [type(net).__name__]


def _copy_processor(backbone: str, folder: Path) -> None:
    """How the net wants its input goes with it, to the letter."""
    source = find_folder(backbone, SETTINGS_FILES)
    for name in SETTINGS_FILES:
        if "processor" in name and (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
