"""What each worker does that trains a teacher: labelled clips -> a classifier, saved as a folder.

1. the head is fitted on the frozen backbone (`heads.py`)
2. the backbone's last layers are tuned from there, where the spec says so: fitting the head first
   keeps a good backbone from being bent to a random one (Kumar et al., "Fine-Tuning can Distort
   Pretrained Features and Underperform Out-of-Distribution", 2022)
3. a temperature is fitted on the validation set, of speakers that nobody has learned from

The workers share the clips; losses are divided by what all of them have, so that any split of a
batch gives the gradient of the whole.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch import distributed as dist

from liser_dist import together
from liser_dist.calibration import calibration_error, fit_temperature, mean_shares
from liser_dist.errors import SpecError, TeacherError
from liser_dist.evaluation import Scores, score
from liser_dist.fitting import embed
from liser_dist.heads import fit_head
from liser_dist.huggingface_backbone import HuggingFaceBackbone, find_head
from liser_dist.label_draws import require_all_classes, require_disjoint, require_speakers
from liser_dist.records import Clip, Reason
from liser_dist.together import gather, told_by_the_first
from liser_dist.train_teacher_spec import TrainTeacherSpec

logger = logging.getLogger(__name__)

SETS = ("labelled", "validation", "test")


@dataclass(frozen=True, slots=True)
class Answered:
    """What a net said of a set's clips, over all workers."""

    keys: Sequence[str]
    labels: NDArray[np.int64]  # [clips]
    logits: NDArray[np.float32]  # [looks, emotions], clip by clip
    looks: NDArray[np.int64]  # [clips] how many each has

    def shares(self) -> NDArray[np.float64]:
        """[clips, emotions] probabilities, the mean over looks."""
        return mean_shares(self.logits, self.looks, temperature=1.0)

    def scores(self) -> Scores:
        return score(self.labels, self.shares().argmax(axis=1))

    def calibration_error(self) -> float:
        return calibration_error(self.shares(), self.labels)


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of it, known to every worker."""

    clips: Mapping[str, int]  # of each set
    left_out: Mapping[str, int]  # clips, by why
    speakers: Mapping[str, int]
    mix: Sequence[float]  # shares of the layers
    epochs: int  # of tuning
    temperature: float
    before: Answered  # of the validation set, at temperature 1
    validation: Answered
    test: Answered | None


class TeacherLoop:
    """One worker's part."""

    def __init__(self, spec: TrainTeacherSpec, clips: Mapping[str, Sequence[Clip]]) -> None:
        """`clips`: of each set, this worker's."""
        self.spec = spec
        self.rank, self.workers = together.rank(), together.workers()
        self.backbone = HuggingFaceBackbone(spec.backbone, spec.clip.sample_rate_hz)
        unfit = Counter(
            why for of_set in clips.values() for clip in of_set if (why := self._unfit(clip))
        )
        self.left_out = sum(gather(unfit), Counter[str]())
        self.clips = {
            name: [clip for clip in of_set if not self._unfit(clip)]
            for name, of_set in clips.items()
        }
        everybody = [clip for part in gather(self._bare()) for _, clip in part]
        if not everybody:
            raise SpecError(
                f"`data.labelled` {spec.data.labelled} has no clip to learn from: "
                + ", ".join(f"{count} x {why}" for why, count in self.left_out.most_common())
                + f"; mend the labels, or give `emotions` that it has in place of "
                f"{list(spec.emotions)}"
            )
        require_speakers(everybody, "data")
        if spec.data.validation is None:
            self._set_speakers_aside()
        self._require_sound()

    def _unfit(self, clip: Clip) -> str:
        """Why a clip cannot be learned from, if it cannot."""
        if clip.rejected:
            return clip.reason
        if clip.emotion not in self.spec.emotions:
            return f"emotion {clip.emotion!r} is none of the job's"
        return "" if clip.shows(self.backbone.modality) else Reason.NO_FACE

    def _everybody(self, name: str) -> list[str]:
        here = {clip.speaker for clip in self.clips.get(name, ())}
        return sorted(set[str]().union(*gather(here)))

    def _set_speakers_aside(self) -> None:
        """Some of the labelled speakers, drawn from the seed, become the validation set."""
        names = self._everybody("labelled")
        if len(names) < 2:
            raise SpecError(
                f"`data.labelled` has {len(names)} speaker, and validation needs another one: "
                "give `data.validation`"
            )
        count = min(len(names) - 1, math.ceil(self.spec.data.validation_share * len(names)))
        aside = set(np.random.default_rng(self.spec.seed).permutation(names)[:count])
        both = self.clips["labelled"]
        self.clips["validation"] = [clip for clip in both if clip.speaker in aside]
        self.clips["labelled"] = [clip for clip in both if clip.speaker not in aside]

    def _require_sound(self) -> None:
        everybody = [clip for parts in gather(self._bare()) for clip in parts]
        sides = {name: [clip for of_set, clip in everybody if of_set == name] for name in SETS}
        for one, other in combinations(SETS, 2):
            require_disjoint(sides[one], sides[other])
        require_all_classes(sides["labelled"], self.spec.emotions, "data.labelled")
        if not sides["validation"]:
            raise SpecError("`data.validation` has no clip that shows the backbone anything")
        self.counts = {name: len(side) for name, side in sides.items() if side}

    def _bare(self) -> list[tuple[str, Clip]]:
        """This worker's clips by set, without sound and pixels."""
        return [
            (name, Clip(**clip.provenance(), **clip.labels()))
            for name, of_set in self.clips.items()
            for clip in of_set
        ]

    # ------------------------------------------------------------ steps

    def run(self) -> Trained:
        speakers = {name: len(self._everybody(name)) for name in self.counts}
        self.fit_head()
        epochs = self.tune() if self.spec.tune.layers != "none" else 0
        before = self.answer("validation")
        temperature = fit_temperature(before.logits, before.labels, before.looks)
        self._soften(temperature)
        net: Any = self.backbone.module
        mix = net.layer_weights.detach().softmax(0).tolist() if self.backbone.layers > 1 else [1.0]
        return Trained(
            clips=self.counts,
            left_out=dict(self.left_out),
            speakers=speakers,
            mix=mix,
            epochs=epochs,
            temperature=temperature,
            before=before,
            validation=self.answer("validation"),
            test=self.answer("test") if "test" in self.counts else None,
        )

    def fit_head(self) -> None:
        """On the backbone as it is, by the first worker, for all."""
        emotions = self.spec.emotions
        mine = embed(self.backbone, self._batches(self.clips["labelled"]), emotions)
        embeddings, labels = (np.concatenate(parts) for parts in zip(*gather(mine), strict=True))
        head = None
        if self.rank == 0:
            head = fit_head(
                self.backbone.by_layer(embeddings),
                torch.from_numpy(labels),
                len(emotions),
                balanced=self.spec.balanced,
            )
        head = told_by_the_first(head)
        assert head is not None
        self.backbone.put_in(head, emotions)

    def tune(self) -> int:
        """From that head on, until the validation set has not gained for some epochs.

        Returns the number of epochs after which the best weights were there.
        """
        learned = tuned(self.backbone, self.spec.tune.layers)
        rate, decay = self.spec.tune.learning_rate, self.spec.tune.weight_decay
        optimizer = torch.optim.AdamW(learned, rate, weight_decay=decay)
        best, best_epoch = self.answer("validation").scores().uar, 0
        kept = _copied(learned)
        weights = self._class_weights()
        for epoch in range(1, self.spec.tune.epochs + 1):
            for step, batch in enumerate(self._shuffled(epoch)):
                drawn = hash((self.spec.seed, epoch, step, self.rank)) % 2**32
                torch.manual_seed(drawn)
                np.random.seed(drawn)
                self._learn(batch, learned, optimizer, weights)
            uar = self.answer("validation").scores().uar
            if self.rank == 0:
                logger.info("epoch %d: UAR %.1f %% on validation", epoch, 100 * uar)
            if uar > best:
                best, best_epoch, kept = uar, epoch, _copied(learned)
            if epoch - best_epoch >= self.spec.tune.patience:
                break
        with torch.no_grad():
            for weight, value in zip(learned, kept, strict=True):
                weight.copy_(value)
        return best_epoch

    def _learn(
        self,
        batch: Sequence[Clip],
        learned: Sequence[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        weights: Tensor,
    ) -> None:
        """One step, which every worker takes, with or without clips."""
        self.backbone.module.train()
        for module in self.backbone.module.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()  # statistics of a worker's few clips would be its alone
        optimizer.zero_grad(set_to_none=False)
        loss, looks = None, 0
        if batch:
            logits, of_clip = self.backbone.classify(batch)
            labels = [self.spec.emotions.index(batch[n].emotion) for n in of_clip]
            loss = nn.functional.cross_entropy(
                logits, torch.tensor(labels, device=logits.device), weights, reduction="sum"
            )
            looks = len(labels)
        total = sum(gather(looks))
        if loss is not None:
            (loss / total).backward()
        for weight in learned:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            if self.workers > 1:
                dist.all_reduce(weight.grad)
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        self.backbone.module.eval()

    def answer(self, name: str) -> Answered:
        """The net as it is now, asked about a set by all workers."""
        rows: list[tuple[str, int, NDArray[np.float32]]] = []
        for batch in self._batches(self.clips.get(name, ())):
            with torch.no_grad():  # what a net keeps must be fit for a backward pass
                logits, of_clip = self.backbone.classify(batch)
            said = logits.float().cpu().numpy()
            for n, clip in enumerate(batch):
                label = self.spec.emotions.index(clip.emotion)
                rows.append((clip.key, label, said[np.asarray(of_clip) == n]))
        # By key, so that nothing depends on which worker had which clip.
        whole = sorted((row for part in gather(rows) for row in part), key=lambda row: row[0])
        return Answered(
            keys=[key for key, _, _ in whole],
            labels=np.array([label for _, label, _ in whole]),
            logits=np.concatenate([said for _, _, said in whole]),
            looks=np.array([len(said) for _, _, said in whole]),
        )

    # ------------------------------------------------------------ parts

    def _batches(self, clips: Sequence[Clip]) -> Iterable[Sequence[Clip]]:
        size = max(1, self.spec.batch_size // self.workers)
        return (clips[first : first + size] for first in range(0, len(clips), size))

    def _shuffled(self, epoch: int) -> Iterable[Sequence[Clip]]:
        """This worker's batches; as many on all workers, the last of them empty on some."""
        clips = self.clips["labelled"]
        order = np.random.default_rng([self.spec.seed, epoch, self.rank]).permutation(len(clips))
        mine = list(self._batches([clips[n] for n in order]))
        return mine + [[]] * (max(gather(len(mine))) - len(mine))

    def _class_weights(self) -> Tensor:
        """[emotions] so that each weighs the same, or 1."""
        emotions = self.spec.emotions
        counts = np.zeros(len(emotions))
        for clip in self.clips["labelled"]:
            counts[emotions.index(clip.emotion)] += 1
        counts = np.sum(gather(counts), axis=0)
        even = counts.sum() / (len(emotions) * counts)
        weights = torch.tensor(even if self.spec.balanced else np.ones_like(even))
        return weights.float().to(self.backbone.device)

    def _soften(self, temperature: float) -> None:
        head = find_head(self.backbone.module)
        with torch.no_grad():
            head.weight.div_(temperature)
            head.bias.div_(temperature)


def tuned(backbone: HuggingFaceBackbone, layers: str | int) -> list[nn.Parameter]:
    """The parameters that are to be learned: the head's, and of the body the last so many layers.

    The convolutions that make frames of a waveform stay as they are, as is usual.
    """
    net: Any = backbone.module
    body = {id(weight) for weight in backbone.body.parameters()}
    learned = [weight for weight in net.parameters() if id(weight) not in body]
    if layers == "all":
        learned = list(net.parameters())
    else:
        for layer in transformer_layers(backbone)[-int(layers) :]:
            learned += layer.parameters()
    frames = getattr(backbone.body, "feature_extractor", None)
    if frames is not None:
        frames._freeze_parameters()
        still = {id(weight) for weight in frames.parameters()}
        learned = [weight for weight in learned if id(weight) not in still]
    for weight in learned:
        weight.requires_grad_(True)
    return learned


def transformer_layers(backbone: HuggingFaceBackbone) -> nn.ModuleList:
    """The body's transformer layers, the first one first. Raises TeacherError."""
    config: Any = backbone.module.config
    config = getattr(config, "vision_config", config)
    count = getattr(config, "num_hidden_layers", None)
    lists = [m for m in backbone.body.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not lists:
        raise TeacherError(
            f"`tune.layers`: {type(backbone.module).__name__} has no list of layers to tune the "
            "last of: give none or all"
        )
    return lists[-1]


def _copied(weights: Sequence[nn.Parameter]) -> list[Tensor]:
    return [weight.detach().clone() for weight in weights]
