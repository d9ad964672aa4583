"""A Hugging Face net below its head: clips -> what a head is fitted on; and the head put in.

Nets whose classifier can weigh its layers (wav2vec 2.0, HuBERT, WavLM, Whisper and their like) give
each layer's mean over time, others what their last linear layer is given. Either way the classifier
with a head in it is one that transformers itself has, and `from_pretrained` reads.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liser_dist.errors import TeacherError
from liser_dist.huggingface_model import (
    UNUSED_IN_ENCODERS,
    Floats,
    HuggingFaceModel,
    body_of,
    pool,
    require_none,
)
from liser_dist.model_folder import SETTINGS_FILES, ModelFolder, find_folder, read_model_folder

if TYPE_CHECKING:
    from torch import Tensor, nn

    from liser_dist.heads import Head
    from liser_dist.records import Clip


class HuggingFaceBackbone(HuggingFaceModel):
    """A frozen net whose answers are embeddings alone.

    Args: as `HuggingFaceModel`; a plain encoder is given a classifier of its architecture.

    Attributes:
        layers, dim: of what `answer` gives of each look, [layers * dim].

    Raises:
        TeacherError: the backbone cannot be loaded or has no linear layer at its end.
    """

    def __init__(self, place: str, sample_rate_hz: int = 16000) -> None:
        super().__init__(place, sample_rate_hz)
        self.names = ()
        self.layers, self.dim = _shape_of(self.module)
        self.embedding_dim = self.layers * self.dim

    def _load(self, path: str) -> nn.Module:
        return _load_classifier(self.folder, path)

    def _run(self, inputs: dict[str, Tensor]) -> tuple[None, Tensor]:
        import torch

        given = self._accepted(inputs)
        if self.layers > 1:
            states = self.body(**given, output_hidden_states=True).hidden_states
            mask = given.get("attention_mask")
            return None, torch.stack([pool(self.body, s, mask) for s in states], 1).flatten(1)
        seen: list[Tensor] = []
        head = find_head(self.module)
        hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            self.module(**given)
        finally:
            hook.remove()
        return None, seen[-1]

    def by_layer(self, embeddings: Floats) -> Tensor:
        """[n, layers * dim] as `answer` gives them -> [n, layers, dim], as a head takes them."""
        import torch

        return torch.from_numpy(embeddings).unflatten(1, (self.layers, self.dim))

    def classify(self, clips: Sequence[Clip]) -> tuple[Tensor, list[int]]:
        """Logits [looks, classes] with the head that was put in, and the clip of each look.

        With gradients, where they are on. Clips must have what the net looks at.
        """
        import torch

        logits: list[Tensor] = []
        of_clip: list[int] = []
        for members in self.groups(clips):
            group = [clips[member] for member in members]
            logits.append(self.module(**self._accepted(self.inputs(group))).logits)
            for member in members:
                looks = int(clips[member].has_face.sum()) if self.modality == "image" else 1
                of_clip += [member] * looks
        return torch.cat(logits), of_clip

    def put_in(self, head: Head, emotions: Sequence[str]) -> Any:
        """The classifier with this head, and the emotions for its names."""
        import torch

        net: Any = self.module
        if self.layers > 1:
            net.layer_weights.copy_(head.mix.clamp_min(1e-8).log())
            net.projector.weight.copy_(torch.eye(self.dim))
            net.projector.bias.zero_()
        layer = find_head(net)
        layer.weight = torch.nn.Parameter(head.weight.to(self.device))
        layer.bias = torch.nn.Parameter(head.bias.to(self.device))
        layer.out_features = len(emotions)
        net.config.id2label = dict(enumerate(emotions))
        net.config.label2id = {name: number for number, name in enumerate(emotions)}
        net.config.architectures = [type(net).__name__]
        return net


def backbone_shape(place: str) -> tuple[int, int]:
    """Layers, and the width of each, of a backbone's answers; its weights are not read.

    Raises TeacherError.
    """
    import torch

    folder = read_model_folder(place)
    with torch.device("meta"):
        config = _config_of(str(find_folder(place, SETTINGS_FILES)))
        try:
            net = _loader_of(folder).from_config(config)
        except ValueError as error:
            raise _no_classifier(folder, error) from error
    return _shape_of(net)


def find_head(net: Any) -> nn.Linear:
    """The linear layer that gives the logits: the last one of a classifier."""
    import torch

    linear = [module for module in net.modules() if isinstance(module, torch.nn.Linear)]
    classes = net.config.num_labels
    if not linear or linear[-1].out_features != classes:
        raise TeacherError(
            f"backbone {type(net).__name__} does not end in a linear layer of {classes} outputs, "
            "so no head can be fitted on it: use another architecture"
        )
    return linear[-1]


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


def save_teacher(net: Any, backbone: str, folder: Path) -> None:
    """The net, and beside it how it wants its input, to the letter."""
    save_net(net, folder)
    source = find_folder(backbone, SETTINGS_FILES)
    for name in SETTINGS_FILES:
        if "processor" in name and (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


# ---------------------------------------------------------------- loading


def _load_classifier(folder: ModelFolder, path: str) -> nn.Module:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # what the head begins as
        try:
            net, info = _loader_of(folder).from_pretrained(
                path,
                config=_config_of(path),
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # another head is put in its place
                output_loading_info=True,
            )
        except ValueError as error:
            raise _no_classifier(folder, error) from error
    body = {f"{name}." for name, part in net.named_children() if part is body_of(net)}
    lacking = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    require_none(
        folder,
        (
            name
            for name in lacking
            if name.startswith(tuple(body)) and not UNUSED_IN_ENCODERS.search(name)
        ),
    )
    return net


def _config_of(path: str) -> Any:
    """The net's, with all its layers weighed where its classifier can do that."""
    import transformers

    config: Any = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
    if hasattr(config, "use_weighted_layer_sum"):
        config.use_weighted_layer_sum = True
        config.classifier_proj_size = config.hidden_size
    if hasattr(config, "layerdrop"):
        config.layerdrop = 0.0  # workers that tune it together must drop the same ones
    return config


def _loader_of(folder: ModelFolder) -> Any:
    import transformers

    return getattr(transformers, f"AutoModelFor{folder.modality.capitalize()}Classification")


def _no_classifier(folder: ModelFolder, error: ValueError) -> TeacherError:
    return TeacherError(
        f"backbone {folder.place!r} has no classifier in transformers ({str(error)[:200]}): use "
        "another architecture"
    )


def _shape_of(net: Any) -> tuple[int, int]:
    """Layers that a head sees, and the width of each."""
    if hasattr(net, "layer_weights"):
        return net.layer_weights.numel(), net.projector.in_features
    return 1, find_head(net).in_features
