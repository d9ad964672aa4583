"""Computes the embeddings that heads are fitted on, and inserts a fitted head into the model.

For models that support a weighted sum of layers (wav2vec 2.0, HuBERT, WavLM, Whisper and similar
ones), the embedding is each layer's output, averaged over time. For all others, it is the input of
the last linear layer. In both cases the model with a head is a standard classification model of
transformers, which `from_pretrained` loads.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from liser_dist.config.stream import ClipSpec
from liser_dist.config.teachers import BackboneTeacher, TeacherIdentity
from liser_dist.errors import TeacherError, one_line
from liser_dist.records import Clip
from liser_dist.teachers.huggingface import (
    UNUSED_IN_ENCODERS,
    HuggingFaceModel,
    body_of,
    classifier_loader,
    pool,
    require_none,
)
from liser_dist.teachers.identity import identify_model, revision_to_read, verified
from liser_dist.teachers.model_files import (
    SETTINGS_FILES,
    ModelFolder,
    count_weights_bytes,
    find_folder,
    read_model_folder,
)
from liser_dist.teachers.model_teacher import ModelTeacher, TeacherFacts, map_names

if TYPE_CHECKING:
    from torch import Tensor, nn

    from liser_dist.teachers.heads import Head


class BackboneKind:
    """The kind `backbone`."""

    def __init__(self, spec: BackboneTeacher) -> None:
        self._spec = spec

    def identify(self) -> TeacherIdentity:
        """Return the digest of the folder's files, or the hub repository's commit."""
        return identify_model(self._spec.kind, self._spec.model, self._spec.revision)

    def describe(
        self, emotions: Sequence[str], clip: ClipSpec, identity: TeacherIdentity | None = None
    ) -> TeacherFacts:
        """Read the model's JSON files, and build its architecture without weights."""
        revision = revision_to_read(self._spec, identity)
        layers, dim = backbone_shape(self._spec.model, revision)
        modality = read_model_folder(self._spec.model, revision).modality
        return TeacherFacts((False,) * len(emotions), layers * dim, (), modality, layers)

    def load(
        self, emotions: Sequence[str], clip: ClipSpec, identity: TeacherIdentity | None = None
    ) -> ModelTeacher:
        """Load the backbone; `verified` says what is certain of its weights."""
        revision = revision_to_read(self._spec, identity)
        with verified(self._spec.model, identity):
            model = HuggingFaceBackbone(self._spec.model, clip.sample_rate_hz, revision)
        return ModelTeacher(model, map_names(self._spec.model, (), None, emotions), temperature=1.0)

    def weights_bytes(self) -> int:
        """Return the size of the folder's safetensors."""
        return count_weights_bytes(self._spec.model, self._spec.revision)


class HuggingFaceBackbone(HuggingFaceModel):
    """A frozen model whose outputs are embeddings alone.

    Args:
        place: a folder or hub name. A plain encoder gets a classifier of its architecture.
        sample_rate_hz: sample rate of the clips' audio.
        revision: branch, tag or commit of a hub repository.

    Attributes:
        layers: number of layers whose embeddings it gives.
        dim: width of each. `predict` gives embeddings [inputs, layers * dim].

    Raises:
        TeacherError: the backbone cannot be loaded, or does not end in a linear layer.
    """

    def __init__(
        self, place: str, sample_rate_hz: int = 16000, revision: str | None = None
    ) -> None:
        super().__init__(place, sample_rate_hz, revision)
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
        head_inputs: list[Tensor] = []
        head = find_head(self.module)
        hook = head.register_forward_pre_hook(lambda _, inputs: head_inputs.append(inputs[0]))
        try:
            self.module(**given)
        finally:
            hook.remove()
        return None, head_inputs[-1]

    def by_layer(self, embeddings: NDArray[np.float32]) -> Tensor:
        """Return the embeddings of `predict`, [n, layers * dim], as [n, layers, dim] for a head."""
        import torch

        return torch.from_numpy(embeddings).unflatten(1, (self.layers, self.dim))

    def classify(self, clips: Sequence[Clip]) -> tuple[Tensor, list[int]]:
        """Compute logits with the inserted head, with gradients if they are enabled.

        Args:
            clips: must have the model's modality.

        Returns:
            Logits [inputs, classes], and the number of the clip that each input belongs to.
        """
        import torch

        logits: list[Tensor] = []
        of_clip: list[int] = []
        for members in self.groups(clips):
            group = [clips[member] for member in members]
            logits.append(self.module(**self._accepted(self.inputs(group))).logits)
            for member in members:
                of_clip += [member] * self.count_inputs(clips[member])
        return torch.cat(logits), of_clip

    def insert_head(self, head: Head, emotions: Sequence[str]) -> Any:
        """Insert a head into the classifier, with the emotions as its classes, and return it."""
        import torch

        module: Any = self.module
        if self.layers > 1:
            module.layer_weights.copy_(head.mix.clamp_min(1e-8).log())
            module.projector.weight.copy_(torch.eye(self.dim))
            module.projector.bias.zero_()
        layer = find_head(module)
        layer.weight = torch.nn.Parameter(head.weight.to(self.device))
        layer.bias = torch.nn.Parameter(head.bias.to(self.device))
        layer.out_features = len(emotions)
        module.config.id2label = dict(enumerate(emotions))
        module.config.label2id = {name: number for number, name in enumerate(emotions)}
        module.config.architectures = [type(module).__name__]
        return module


def backbone_shape(place: str, revision: str | None = None) -> tuple[int, int]:
    """Return a backbone's number of layers and the width of each, without reading its weights.

    Raises:
        TeacherError: it cannot be reached, has no classifier, or does not end in a linear layer.
    """
    import torch

    folder = read_model_folder(place, revision)
    with torch.device("meta"):
        config = _config_of(str(find_folder(place, SETTINGS_FILES, revision)))
        try:
            module = classifier_loader(folder.modality).from_config(config)
        except ValueError as error:
            raise _no_classifier(folder, error) from error
    return _shape_of(module)


def find_head(classifier: Any) -> nn.Linear:
    """Return the linear layer that gives the logits: the last one of a classifier.

    Raises:
        TeacherError: the classifier does not end in such a layer.
    """
    import torch

    linear = [part for part in classifier.modules() if isinstance(part, torch.nn.Linear)]
    classes = classifier.config.num_labels
    if not linear or linear[-1].out_features != classes:
        raise TeacherError(
            f"backbone {type(classifier).__name__} does not end in a linear layer with {classes} "
            "outputs, so no head can be fitted on it: use a backbone of another "
            "architecture"
        )
    return linear[-1]


def save_classifier(classifier: Any, folder: Path) -> None:
    """Save a classifier as transformers does, in safetensors, without its progress bar."""
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        classifier.save_pretrained(folder)
    finally:
        if bars:
            transformers_logging.enable_progress_bar()


def save_teacher(classifier: Any, backbone: str, folder: Path, revision: str | None = None) -> None:
    """Save a classifier together with the unchanged processor files of its backbone."""
    save_classifier(classifier, folder)
    source = find_folder(backbone, SETTINGS_FILES, revision)
    for name in SETTINGS_FILES:
        if "processor" in name and (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


# ---------------------------------------------------------------- loading


def _load_classifier(folder: ModelFolder, path: str) -> nn.Module:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # for the first weights of the head
        try:
            classifier, info = classifier_loader(folder.modality).from_pretrained(
                path,
                config=_config_of(path),
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # its head will be replaced
                output_loading_info=True,
            )
        except ValueError as error:
            raise _no_classifier(folder, error) from error
    body = body_of(classifier)
    in_body = tuple(f"{name}." for name, part in classifier.named_children() if part is body)
    missing = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    require_none(
        folder,
        (
            name
            for name in missing
            if name.startswith(in_body) and not UNUSED_IN_ENCODERS.search(name)
        ),
    )
    return classifier


def _config_of(path: str) -> Any:
    """Return the model's config, with its layers weighted if its classifier supports that."""
    import transformers

    config: Any = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
    if hasattr(config, "use_weighted_layer_sum"):
        config.use_weighted_layer_sum = True
        config.classifier_proj_size = config.hidden_size
    if hasattr(config, "layerdrop"):
        config.layerdrop = 0.0  # workers that tune it together must drop the same layers
    return config


def _no_classifier(folder: ModelFolder, error: ValueError) -> TeacherError:
    return TeacherError(
        f"transformers has no classification model for backbone {folder.place!r} "
        f"({one_line(error)}): use a backbone of another architecture"
    )


def _shape_of(classifier: Any) -> tuple[int, int]:
    """Return the number of layers that a head has as its input, and the width of each."""
    if hasattr(classifier, "layer_weights"):
        return classifier.layer_weights.numel(), classifier.projector.in_features
    return 1, find_head(classifier).in_features


def embed(
    backbone: HuggingFaceBackbone, batches: Iterable[Sequence[Clip]], emotions: Sequence[str]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return what a head is fitted on.

    Returns:
        Embeddings [inputs, layers * dim] and the number of the emotion of each [inputs].
    """
    embeddings = [np.empty((0, backbone.embedding_dim), np.float32)]
    numbers: list[int] = []
    for batch in batches:
        for clip, (_, of_clip) in zip(batch, backbone.predict(batch), strict=True):
            embeddings.append(of_clip)
            numbers += [emotions.index(clip.emotion)] * len(of_clip)
    return np.concatenate(embeddings), np.array(numbers, np.int64)


def trainable_parameters(backbone: HuggingFaceBackbone, layers: str | int) -> list[nn.Parameter]:
    """Return the parameters to fine-tune: those of the head and of the last layers of the body.

    The convolutions that make frames of a waveform stay frozen, as is usual.

    Args:
        backbone: The network; the returned parameters require gradients afterwards.
        layers: Number of layers of the body, or "all".

    Raises:
        TeacherError: The body has no list of layers.
    """
    net: Any = backbone.module
    body = {id(weight) for weight in backbone.body.parameters()}
    learned = [weight for weight in net.parameters() if id(weight) not in body]
    if layers == "all":
        learned = list(net.parameters())
    else:
        for layer in _transformer_layers(backbone)[-int(layers) :]:
            learned += layer.parameters()
    frames = getattr(backbone.body, "feature_extractor", None)
    if frames is not None:
        frames._freeze_parameters()
        frozen = {id(weight) for weight in frames.parameters()}
        learned = [weight for weight in learned if id(weight) not in frozen]
    for weight in learned:
        weight.requires_grad_(True)
    return learned


def _transformer_layers(backbone: HuggingFaceBackbone) -> nn.ModuleList:
    """Return the transformer layers of the body, from input to output.

    Raises:
        TeacherError: The body has no list of layers.
    """
    from torch import nn

    config: Any = backbone.module.config
    config = getattr(config, "vision_config", config)
    count = getattr(config, "num_hidden_layers", None)
    lists = [m for m in backbone.body.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not lists:
        raise TeacherError(
            f"`tune.layers`: the layers of {type(backbone.module).__name__} cannot be told apart, "
            "so the last ones cannot be tuned alone: use `none` or `all`"
        )
    return lists[-1]
