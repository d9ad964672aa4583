"""Trains a teacher in each worker: a classifier on a pretrained backbone, from labelled clips.

1. The head is fitted on the frozen backbone (`teachers/heads.py`).
2. The backbone's last layers are fine-tuned from there if `tune.layers` asks for it. Fitting the
   head first keeps a good backbone from being distorted by a random head (Kumar et al.,
   "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", 2022).
3. A temperature is fitted on the validation set, whose speakers are held out. It is used unless it
   raises the calibration error of that set.

The clips are split over the workers. Losses are divided by the counts of all workers, so that any
split of a batch gives the gradient of the complete batch.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch import distributed as dist

from liser_dist.config.teachers import TeacherIdentity
from liser_dist.config.train_teacher import TrainTeacherSpec
from liser_dist.data.splits import require_all_classes, require_disjoint_speakers, require_speakers
from liser_dist.errors import SpecError
from liser_dist.pipeline.labelled import NO_LABEL
from liser_dist.pipeline.plan import LABELLED_SETS
from liser_dist.records import Clip, Reason
from liser_dist.runs.caveats import warn_left_out, warn_not_calibrated, warn_one_emotion
from liser_dist.students.collectives import (
    all_gather,
    broadcast_from_rank0,
    failing_together,
    worker_count,
    worker_rank,
)
from liser_dist.students.scoring import Scores, score
from liser_dist.teachers.backbone import (
    HuggingFaceBackbone,
    embed,
    find_head,
    trainable_parameters,
)
from liser_dist.teachers.calibration import (
    Calibration,
    calibrate,
    calibration_error,
    mean_probabilities,
)
from liser_dist.teachers.heads import fit_head
from liser_dist.teachers.identity import verified
from liser_dist.teachers.teachers import naming_field

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Predicted:
    """The predictions of a network for the clips of a set, from all workers.

    An audio network gives one prediction per clip, an image network one per frame.
    """

    keys: Sequence[str]  # [clips]
    labels: NDArray[np.int64]  # [clips] numbers of the labelled emotions
    logits: NDArray[np.float32]  # [predictions, emotions], clip by clip
    counts: NDArray[np.int64]  # [clips] number of predictions of each clip

    def probabilities(self) -> NDArray[np.float64]:
        """Return [clips, emotions], the mean over the predictions of each clip."""
        return mean_probabilities(self.logits, self.counts, temperature=1.0)

    def scores(self) -> Scores:
        """Score the most probable emotion of each clip."""
        return score(self.labels, self.probabilities().argmax(axis=1))

    def calibration_error(self) -> float:
        """Return the expected calibration error, 0 to 1."""
        return calibration_error(self.probabilities(), self.labels)


@dataclass(frozen=True, slots=True)
class Trained:
    """The result of a training, the same on every worker."""

    clips: Mapping[str, int]  # of each set
    left_out: Mapping[str, int]  # clips that were not used, by reason
    speakers: Mapping[str, int]  # of each set
    mix: Sequence[float]  # weight of each backbone layer in the head's input; sums to 1
    epochs: int  # of fine-tuning, after which the best weights were reached
    calibration: Calibration  # the temperature that was fitted, and whether it is used
    warnings: Sequence[str]  # why the scores say less than they seem to
    validation: Predicted
    test: Predicted | None


class TeacherLoop:
    """Trains a teacher on one worker's clips, in step with the other workers."""

    def __init__(
        self,
        spec: TrainTeacherSpec,
        clips: Mapping[str, Sequence[Clip]],
        identity: TeacherIdentity | None = None,
    ) -> None:
        """Load the backbone and check the clips of all workers.

        Args:
            spec: The job.
            clips: This worker's clips of each set.
            identity: The weights that the backbone must have; None: they are not checked.

        Raises:
            SpecError: The clips are too few, lack an emotion, or share speakers between sets.
            TeacherError: The backbone cannot be loaded, or was replaced.
        """
        self.spec = spec
        self.rank, self.workers = worker_rank(), worker_count()
        commit = None if identity is None else identity.commit
        with failing_together(), naming_field("backbone"), verified(spec.backbone, identity):
            self.backbone = HuggingFaceBackbone(spec.backbone, spec.clip.sample_rate_hz, commit)
        unusable = Counter(
            reason
            for of_set in clips.values()
            for clip in of_set
            if (reason := self._reason_unusable(clip))
        )
        self.left_out = sum(all_gather(unusable), Counter[str]())
        self.warnings = self._warn_of_other_emotions(clips)
        for warning in self.warnings if self.rank == 0 else ():
            logger.warning("%s", warning)
        self.clips = {
            name: [clip for clip in of_set if not self._reason_unusable(clip)]
            for name, of_set in clips.items()
        }
        labelled_clips = [clip for part in all_gather(self._without_content()) for _, clip in part]
        if not labelled_clips:
            raise SpecError(
                f"`data.labelled` {spec.data.labelled} has no usable clip: "
                + ", ".join(f"{reason} ({count})" for reason, count in self.left_out.most_common())
                + f"; fix the clips or their labels, or change `emotions` {list(spec.emotions)}"
            )
        require_speakers(labelled_clips, "data")
        if spec.data.validation is None:
            self._hold_out_speakers()
        self._check_sets()

    def _reason_unusable(self, clip: Clip) -> str:
        """Return why a clip cannot be used; empty if it can."""
        if clip.rejected:
            return clip.reason
        if clip.emotion not in self.spec.emotions:
            return f"emotion {clip.emotion!r} is not one of the job's `emotions`"
        return "" if clip.shows(self.backbone.modality) else Reason.NO_FACE

    def _warn_of_other_emotions(self, clips: Mapping[str, Sequence[Clip]]) -> list[str]:
        """Return warnings of clips, over all workers, whose emotion the job does not have."""
        own = Counter(
            (name, clip.emotion or NO_LABEL)
            for name, of_set in clips.items()
            for clip in of_set
            if not clip.rejected and clip.emotion not in self.spec.emotions
        )
        counts = sorted(sum(all_gather(own), Counter[tuple[str, str]]()).items())
        return [
            warning
            for of_set in clips
            for warning in warn_left_out(
                f"data.{of_set}", {emotion: n for (name, emotion), n in counts if name == of_set}
            )
        ]

    def _speakers(self, name: str) -> list[str]:
        """Return the speakers of a set, over all workers."""
        own = {clip.speaker for clip in self.clips.get(name, ())}
        return sorted(set[str]().union(*all_gather(own)))

    def _hold_out_speakers(self) -> None:
        """Move labelled speakers, drawn from the seed, to the validation set."""
        names = self._speakers("labelled")
        if len(names) < 2:
            raise SpecError(
                "`data.labelled` has too few speakers to hold any out for validation: set "
                "`data.validation`, or add clips of more speakers"
            )
        count = min(len(names) - 1, math.ceil(self.spec.data.validation_share * len(names)))
        held_out = set(np.random.default_rng(self.spec.seed).permutation(names)[:count])
        labelled = self.clips["labelled"]
        self.clips["validation"] = [clip for clip in labelled if clip.speaker in held_out]
        self.clips["labelled"] = [clip for clip in labelled if clip.speaker not in held_out]

    def _check_sets(self) -> None:
        """Check the sets over all workers, and count their clips."""
        pairs = [pair for part in all_gather(self._without_content()) for pair in part]
        sets = {name: [clip for of_set, clip in pairs if of_set == name] for name in LABELLED_SETS}
        require_disjoint_speakers(sets)
        require_all_classes(sets["labelled"], self.spec.emotions, "data.labelled")
        if not sets["validation"]:
            raise SpecError(
                f"`data.validation` {self.spec.data.validation} has no usable clip for the "
                f"{self.backbone.modality} backbone: set it to other shards, or leave it out"
            )
        self.counts = {name: len(clips) for name, clips in sets.items() if clips}

    def _without_content(self) -> list[tuple[str, Clip]]:
        """Return this worker's clips as (set, clip), without audio and pixels."""
        return [
            (name, Clip(**clip.provenance(), **clip.labels()))
            for name, of_set in self.clips.items()
            for clip in of_set
        ]

    # ------------------------------------------------------------ steps

    def run(self) -> Trained:
        """Fit the head, tune the backbone if asked to, and fit the temperature."""
        speakers = {name: len(self._speakers(name)) for name in self.counts}
        self.fit_head()
        epochs = self.tune() if self.spec.tune.layers != "none" else 0
        before = self.predict("validation")
        calibration = calibrate(before.logits, before.labels, before.counts)
        self._apply_temperature(calibration.temperature)
        validation = self.predict("validation")
        net: Any = self.backbone.module
        mix = net.layer_weights.detach().softmax(0).tolist() if self.backbone.layers > 1 else [1.0]
        return Trained(
            clips=self.counts,
            left_out=dict(self.left_out),
            speakers=speakers,
            mix=mix,
            epochs=epochs,
            calibration=calibration,
            warnings=[*self.warnings, *self._warn_of_result(calibration, validation)],
            validation=validation,
            test=self.predict("test") if "test" in self.counts else None,
        )

    def _warn_of_result(self, calibration: Calibration, validation: Predicted) -> list[str]:
        """Return warnings about the trained teacher."""
        likeliest = validation.probabilities().argmax(axis=1)
        shares = {name: float((likeliest == n).mean()) for n, name in enumerate(self.spec.emotions)}
        fitted, before = calibration.fitted, calibration.error_before
        return [
            *warn_not_calibrated(fitted, before, calibration.error_fitted),
            *warn_one_emotion("the teacher", "validation clips", shares),
        ]

    def fit_head(self) -> None:
        """Fit the head on the frozen backbone: on the first worker, for all of them."""
        emotions = self.spec.emotions
        own = embed(self.backbone, self._batches(self.clips["labelled"]), emotions)
        embeddings, labels = (np.concatenate(parts) for parts in zip(*all_gather(own), strict=True))
        head = None
        if self.rank == 0:
            head = fit_head(
                self.backbone.by_layer(embeddings),
                torch.from_numpy(labels),
                len(emotions),
                balanced=self.spec.balanced,
            )
        head = broadcast_from_rank0(head)
        assert head is not None
        self.backbone.insert_head(head, emotions)

    def tune(self) -> int:
        """Fine-tune until UAR on the validation set has not improved for `tune.patience` epochs.

        Returns:
            The number of epochs after which the best weights, which are kept, were reached.
        """
        learned = trainable_parameters(self.backbone, self.spec.tune.layers)
        rate, decay = self.spec.tune.learning_rate, self.spec.tune.weight_decay
        optimizer = torch.optim.AdamW(learned, rate, weight_decay=decay)
        best, best_epoch = self.predict("validation").scores().uar, 0
        best_weights = _copied(learned)
        class_weights = self._class_weights()
        for epoch in range(1, self.spec.tune.epochs + 1):
            for step, batch in enumerate(self._shuffled(epoch)):
                seed = hash((self.spec.seed, epoch, step, self.rank)) % 2**32
                torch.manual_seed(seed)
                np.random.seed(seed)
                self._learn(batch, learned, optimizer, class_weights)
            uar = self.predict("validation").scores().uar
            if self.rank == 0:
                logger.info(
                    "epoch %d of fine-tuning: UAR %.1f %% on the validation set", epoch, 100 * uar
                )
            if uar > best:
                best, best_epoch, best_weights = uar, epoch, _copied(learned)
            if epoch - best_epoch >= self.spec.tune.patience:
                break
        with torch.no_grad():
            for weight, value in zip(learned, best_weights, strict=True):
                weight.copy_(value)
        return best_epoch

    def _learn(
        self,
        batch: Sequence[Clip],
        learned: Sequence[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        weights: Tensor,
    ) -> None:
        """Take one step. Every worker takes it, with or without clips."""
        self.backbone.module.train()
        for module in self.backbone.module.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()  # a worker's statistics would be those of its own few clips
        optimizer.zero_grad(set_to_none=False)
        loss, predictions = None, 0
        if batch:
            logits, of_clip = self.backbone.classify(batch)
            labels = [self.spec.emotions.index(batch[n].emotion) for n in of_clip]
            loss = nn.functional.cross_entropy(
                logits, torch.tensor(labels, device=logits.device), weights, reduction="sum"
            )
            predictions = len(labels)
        total = sum(all_gather(predictions))
        if loss is not None:
            (loss / total).backward()
        for weight in learned:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            if self.workers > 1:
                dist.all_reduce(weight.grad)
        if nn.utils.clip_grad_norm_(learned, 1.0).isfinite():  # alike on all workers
            optimizer.step()
        elif self.rank == 0:
            logger.warning("a step of tuning is skipped: its gradient is NaN or infinite")
        self.backbone.module.eval()

    def predict(self, name: str) -> Predicted:
        """Return the current predictions for a set, from all workers; clips are sorted by key."""
        rows: list[tuple[str, int, NDArray[np.float32]]] = []
        for batch in self._batches(self.clips.get(name, ())):
            # Not inference_mode: tensors that a model caches are used in a later backward pass.
            with torch.no_grad():
                logits, of_clip = self.backbone.classify(batch)
            values = logits.float().cpu().numpy()
            for n, clip in enumerate(batch):
                label = self.spec.emotions.index(clip.emotion)
                rows.append((clip.key, label, values[np.asarray(of_clip) == n]))
        # Sorted by key, so that nothing depends on which worker had which clip.
        rows_of_all = sorted(
            (row for part in all_gather(rows) for row in part), key=lambda row: row[0]
        )
        return Predicted(
            keys=[key for key, _, _ in rows_of_all],
            labels=np.array([label for _, label, _ in rows_of_all]),
            logits=np.concatenate([values for _, _, values in rows_of_all]),
            counts=np.array([len(values) for _, _, values in rows_of_all]),
        )

    # ------------------------------------------------------------ parts

    def _batches(self, clips: Sequence[Clip]) -> Iterable[Sequence[Clip]]:
        size = max(1, self.spec.batch_size // self.workers)
        return (clips[first : first + size] for first in range(0, len(clips), size))

    def _shuffled(self, epoch: int) -> Iterable[Sequence[Clip]]:
        """Return this worker's batches. All workers have equally many; some end with empty ones."""
        clips = self.clips["labelled"]
        order = np.random.default_rng([self.spec.seed, epoch, self.rank]).permutation(len(clips))
        own = list(self._batches([clips[n] for n in order]))
        return own + [[]] * (max(all_gather(len(own))) - len(own))

    def _class_weights(self) -> Tensor:
        """Return [emotions] weights: inverse to the class counts if `balanced`, else 1."""
        emotions = self.spec.emotions
        counts = np.zeros(len(emotions))
        for clip in self.clips["labelled"]:
            counts[emotions.index(clip.emotion)] += 1
        counts = np.sum(all_gather(counts), axis=0)
        even = counts.sum() / (len(emotions) * counts)
        weights = torch.tensor(even if self.spec.balanced else np.ones_like(even))
        return weights.float().to(self.backbone.device)

    def _apply_temperature(self, temperature: float) -> None:
        """Divide the logits of the head by the temperature."""
        head = find_head(self.backbone.module)
        with torch.no_grad():
            head.weight.div_(temperature)
            head.bias.div_(temperature)


def _copied(weights: Sequence[nn.Parameter]) -> list[Tensor]:
    return [weight.detach().clone() for weight in weights]
