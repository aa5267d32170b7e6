"""Image retrieval as in the AdamP paper's section 4.5: embeddings learnt on some classes, searched on others.

Shapes: B pictures of a process's share, N of the global batch, S side in pixels, D features, P proxies.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from tasks.base import Batch, BatchLoader, InputError, LoopState, Record, Shard, StepContext, Task, Update
from tasks.data.image_batches import ImageBatches
from tasks.retrieval.losses import proxy_anchor_loss, semihard_triplets, triplet_loss
from tasks.retrieval.networks import EmbeddingNet
from tasks.retrieval.recall import recall_at_k
from tasks.retrieval.sampling import SAMPLERS, balanced_batches
from tasks.retrieval.sets import RetrievalSet

_logger = logging.getLogger("tasks.retrieval")
LOSSES = ("proxy_anchor", "triplet")
MEASURED = 512  # training pictures, at most, from which a random network's BatchNorm statistics are measured


class Retrieval(Task):
    """Trains an embedding and scores Recall@K on classes it has never seen.

    Both losses compare all examples of the global batch, which is gathered from all processes; accumulation would
    change what they compare and is refused.

    Args:
        data: The pictures.
        model: Builds the network from `num_proxies`; called once.
        batch_size: Global training batch, over all processes.
        seed: Fixes the order of the data and its augmentation.
        loss: "proxy_anchor" or "triplet".
        margin: Of either loss: of the cosine, or of the distance.
        alpha: Sharpness of Proxy-Anchor.
        sampler: "random", any pictures together, or "balanced", `images_per_class` of each class in a batch.
        images_per_class: For the balanced sampler.
        ties: How recall counts ties, "strict" or "optimistic".
        untrained: Also score the network as it was before training, once.
        num_workers: Decoding processes beside each training process; 0 decodes in it.
        eval_batch_size: Pictures in one evaluation batch of one process.

    Raises:
        InputError: An option is out of its range, or the loss does not fit the network or the batch.
    """

    monitor = "val/recall_at_1"

    def __init__(
        self,
        data: RetrievalSet,
        model: Callable[..., EmbeddingNet],
        *,
        batch_size: int,
        seed: int,
        loss: str = "proxy_anchor",
        margin: float = 0.1,
        alpha: float = 32.0,
        sampler: str = "random",
        images_per_class: int = 4,
        ties: str = "strict",
        untrained: bool = True,
        num_workers: int = 0,
        eval_batch_size: int = 120,
    ) -> None:
        _check(batch_size, loss=loss, margin=margin, alpha=alpha, sampler=sampler, ties=ties)
        self.data, self.loss, self.margin, self.alpha = data, loss, margin, alpha
        self.sampler, self.images_per_class, self.ties = sampler, images_per_class, ties
        self.batches = ImageBatches(
            data, batch_size=batch_size, seed=seed, num_workers=num_workers, eval_batch_size=eval_batch_size
        )
        net = model(num_proxies=data.num_classes if loss == "proxy_anchor" else 0)
        self.networks: Mapping[str, EmbeddingNet] = {"model": net}
        self.origin = net.origin
        if net.freeze_statistics and net.origin.startswith("random") and net.batch_norms():
            net.measure_statistics(self._pictures(MEASURED))
            self.origin += ", BatchNorm statistics measured on training pictures"
        _logger.info("network starts from %s", self.origin)
        # Scored in the first evaluation, and in the first after resuming: the seed makes the same network again.
        self._untrained = copy.deepcopy(net).eval() if untrained else None
        self._untrained_scores: dict[str, float] = {}
        self._evaluations = 0

    def train_batches(self, epoch: int, shard: Shard, start: int = 0) -> BatchLoader:
        if shard.accumulation_steps > 1:
            raise InputError(
                f"train.accumulation={shard.accumulation_steps}: a loss of retrieval compares all pictures of a batch, "
                "so it cannot be cut into micro-batches; set train.accumulation=1"
            )
        if self.sampler == "random":
            return self.batches.train(epoch, shard, start)
        return balanced_batches(
            self.batches, self.data.train_labels, shard, per_class=self.images_per_class, epoch=epoch, start=start
        )

    def eval_batches(self, shard: Shard) -> Mapping[str, Iterable[Batch]]:
        self._evaluations += 1
        return {"val": self.batches.evaluation(shard)}

    def updates(self, nets: Mapping[str, nn.Module], batch: Batch, context: StepContext) -> Iterator[Update]:
        images, labels = batch  # (B, 3, S, S) uint8, (B,)
        rows, proxies = nets["model"](images)  # (B, D), (P, D)
        rows, labels = context.gather(rows), context.gather(labels)  # (N, D), (N,)
        net = self.networks["model"]
        log = {"train/embedding_weight_norm": net.embedding.weight.detach().norm()}
        if self.loss == "proxy_anchor":
            loss = proxy_anchor_loss(rows, labels, proxies, alpha=self.alpha, margin=self.margin)
            assert net.proxies is not None
            log["train/proxy_norm"] = net.proxies.detach().norm(dim=1).mean()
        else:
            triplets = semihard_triplets(rows, labels, margin=self.margin)
            loss = triplet_loss(rows, triplets, margin=self.margin)
            log["train/triplets"] = torch.tensor(float(len(triplets[0])), device=loss.device)
        yield Update(loss, log=log)

    def predict(self, nets: Mapping[str, nn.Module], batch: Batch, state: LoopState) -> Record:
        """Return the pictures' numbers, their embeddings, and in a first evaluation those of the untrained network."""
        images, numbers = batch
        before = None
        if self._untrained is not None and self._evaluations == 1:
            before = self._untrained.to(images.device)(images)[0].float().cpu()
        return numbers.cpu(), nets["model"](images)[0].float().cpu(), before

    def score(self, split: str, records: Sequence[Record]) -> dict[str, float]:
        """Return Recall@K in percent; queries that could not be read are left out."""
        if not records:
            raise InputError(f"{self.data.name}: no readable image in the {split} split")
        numbers = torch.cat([record[0] for record in records])
        scores = self._recalls(f"{split}/", numbers, torch.cat([record[1] for record in records]))
        if records[0][2] is not None:
            before = torch.cat([record[2] for record in records])
            recalls = self._recalls(f"{split}/untrained_", numbers, before)
            self._untrained_scores = {f"{split}/untrained_recall_at_1": recalls[f"{split}/untrained_recall_at_1"]}
        return scores | self._untrained_scores

    def _recalls(self, prefix: str, numbers: Tensor, rows: Tensor) -> dict[str, float]:
        bad = int((~torch.isfinite(rows).all(1)).sum())
        if bad:
            raise InputError(f"{self.data.name}: {bad} of {len(rows)} embeddings are not finite; lower opt.lr")
        labels = torch.tensor(self.data.val_labels)[numbers]
        if self.data.num_queries is None:
            recalls = recall_at_k(rows, labels, ks=self.data.ks, ties=self.ties)
        else:
            asks = numbers < self.data.num_queries
            recalls = recall_at_k(
                rows[asks], labels[asks], rows[~asks], labels[~asks], ks=self.data.ks, ties=self.ties
            )  # fmt: skip
        return {f"{prefix}recall_at_{k}": 100 * share for k, share in recalls.items()}

    def example_inputs(self) -> Mapping[str, tuple[Any, ...]]:
        """Return up to eight training pictures, the same ones whatever the batch size."""
        return {"model": (next(self._pictures(8)).float(),)}

    def describe(self) -> dict[str, Any]:
        return {**self.data.describe(), "network_starts_from": self.origin}

    def notices(self) -> dict[str, int]:
        return self.batches.notices()

    def faulty_examples(self) -> dict[str, list[Any]]:
        return self.batches.faulty_examples()

    def add_faulty_examples(self, faulty: Mapping[str, Sequence[Any]]) -> None:
        self.batches.add_faulty_examples(faulty)

    def _pictures(self, most: int) -> Iterator[Tensor]:
        """Yield batches of the same training pictures, at most so many; their count is no part of a run."""
        size = min(64, most, self.data.num_examples["train"])
        batches = ImageBatches(self.data, batch_size=size, seed=0).train(0, Shard())
        for images, _ in islice(batches, max(1, most // size)):
            yield images


def _check(batch_size: int, **options: Any) -> None:
    choices = {"loss": LOSSES, "sampler": SAMPLERS, "ties": ("strict", "optimistic")}
    for name, known in choices.items():
        if options[name] not in known:
            raise InputError(f"task.{name}={options[name]}: choose one of {', '.join(known)}")
    if not batch_size >= 2:
        raise InputError(f"train.batch_size={batch_size}: must be at least 2, for something to compare")
    if not options["margin"] >= 0:
        raise InputError(f"task.margin={options['margin']}: must be at least 0")
    if not options["alpha"] > 0:
        raise InputError(f"task.alpha={options['alpha']}: must be positive")
