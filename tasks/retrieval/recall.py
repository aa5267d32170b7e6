"""Recall@K by exact search, in blocks.

Shapes: Q queries, G gallery rows, D features, M largest number of positives of a query, B queries in a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from tasks.base import InputError
from tasks.retrieval.losses import unit_rows

BLOCK_BYTES = 64 * 2**20  # of one block of similarities: large enough for the matrix product, small beside 2 GiB
MANY = 64  # doubtful neighbours a query, beyond which a product in float64 is quicker than single sums
PART = 256  # sums at a time, until enough examples of other classes are found


def recall_at_k(
    queries: Tensor,
    query_labels: Tensor,
    gallery: Tensor | None = None,
    gallery_labels: Tensor | None = None,
    *,
    ks: Sequence[int] = (1, 2, 4, 8),
    ties: str = "strict",
) -> dict[int, float]:
    """Return the share of queries that have an example of their class among their K nearest, by cosine.

    A query hits at K if fewer than K examples of other classes are at least as near as its nearest example of its own
    class: a tie counts against it, so the result depends on no sorting order and a collapsed network scores 0. A query
    without any example of its class misses. Cosines are compared as float64 sums over the normalised rows; only where
    the quick product leaves no doubt about the order is it believed.

    Args:
        queries: (Q, D), of any length.
        query_labels: (Q,).
        gallery: (G, D); None searches the queries themselves, each without itself.
        gallery_labels: (G,), if there is a gallery.
        ks: Numbers of neighbours, each at least 1.
        ties: "strict", or "optimistic": only strictly nearer examples of other classes count, as in the published
            code for In-Shop.

    Returns:
        K -> share in [0, 1].

    Raises:
        InputError: Nothing to search, shapes that do not fit, an embedding that is not finite, or a wrong option.
    """
    if not ks or any(not k >= 1 for k in ks):
        raise InputError(f"ks is {list(ks)}; it must name numbers of neighbours, each at least 1")
    if ties not in ("strict", "optimistic"):
        raise InputError(f"ties is {ties!r}; choose strict or optimistic")
    if (gallery is None) != (gallery_labels is None):
        raise InputError("gallery and gallery_labels: give both or neither")
    itself = gallery is None
    if gallery is None or gallery_labels is None:
        gallery, gallery_labels = queries, query_labels
    _check("queries", queries, query_labels)
    _check("gallery", gallery, gallery_labels)
    if queries.shape[1] != gallery.shape[1]:
        raise InputError(f"queries have {queries.shape[1]} features and the gallery {gallery.shape[1]}")
    with torch.no_grad():
        search = _Search(queries, query_labels, gallery, gallery_labels, itself=itself, strict=ties == "strict")
        ahead = torch.cat([search.negatives_ahead(index, cap=max(ks)) for index in search.blocks()])
    return {k: int((ahead < k).sum()) / len(queries) for k in ks}


class _Search:
    """Counts, for each query, the examples of other classes that come before its nearest own one."""

    def __init__(
        self,
        queries: Tensor,
        query_labels: Tensor,
        gallery: Tensor,
        gallery_labels: Tensor,
        *,
        itself: bool,
        strict: bool,
    ) -> None:
        self.queries = _rounding_once(unit_rows(queries))
        self.gallery = self.queries if itself else _rounding_once(unit_rows(gallery))
        self.itself, self.strict = itself, strict
        self._memory: Tensor | None = None
        # Gallery rows by class, so that a class is a range of `order`.
        ordered, self.order = gallery_labels.sort(stable=True)
        self.first = torch.searchsorted(ordered, query_labels.contiguous())
        self.count = torch.searchsorted(ordered, query_labels.contiguous(), right=True) - self.first

    def blocks(self) -> Iterator[Tensor]:
        """Yield the numbers of the queries, block by block."""
        size = max(1, BLOCK_BYTES // (len(self.gallery) * self.gallery.element_size()))
        yield from torch.arange(len(self.queries), device=self.queries.device).split(size)

    def negatives_ahead(self, index: Tensor, *, cap: int, double: bool = False) -> Tensor:
        """Return a count a query: exact below `cap`, and at least `cap` otherwise.

        Args:
            index: Numbers of the queries, (B,).
            cap: Counts from here on need not be exact.
            double: Take the product in float64, where the product in float32 leaves much in doubt.
        """
        queries, gallery = self.queries[index], self.gallery
        if double:
            queries, gallery = queries.double(), gallery.double()
        doubt = self._doubt(queries)
        cosine = self._product(queries, gallery)  # (B, G)
        positives, is_valid = self._positives(index)  # (B, M)
        near = cosine.gather(1, positives).masked_fill(~is_valid, -torch.inf)
        best = near.amax(1, keepdim=True)  # (B, 1), -inf without an example of the same class
        cosine.scatter_(1, positives, -torch.inf)  # what is left are the examples of other classes
        ahead = torch.zeros_like(index)
        ahead[best[:, 0] == -torch.inf] = torch.iinfo(torch.int64).max
        rows = ((cosine.amax(1) >= best[:, 0] - doubt) & (ahead == 0)).nonzero()[:, 0]
        if len(rows) == 0:
            return ahead
        rest, bar = (cosine, best) if len(rows) == len(cosine) else (cosine[rows], best[rows])
        # Certain and possible counts; those that differ are within rounding of the nearest positive
        sure, possible = _count(rest > bar + doubt), _count(rest >= bar - doubt)
        ahead[rows] = possible
        unsure = ((sure < possible) & (sure < cap)).nonzero()[:, 0]
        if int((possible - sure)[unsure].sum()) > MANY * len(unsure) and cosine.dtype == torch.float32:
            again = rows[unsure]
            ahead[again] = self.negatives_ahead(index[again], cap=cap, double=True)
            return ahead
        # Decide the uncertain ones exactly
        for i in unsure.tolist():
            row, close = int(rows[i]), ((rest[i] - bar[i]).abs() <= doubt).nonzero()[:, 0]
            left = cap - int(sure[i])
            ahead[row] = sure[i] + self._exactly_ahead(int(index[row]), close, positives[row][is_valid[row]], cap=left)
        return ahead

    def _product(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """Return all cosines, into the same memory each time: fresh pages of this size cost more than the sums."""
        shape = (len(queries), len(gallery))
        if self._memory is None or self._memory.dtype != queries.dtype or self._memory.numel() < shape[0] * shape[1]:
            self._memory = queries.new_empty(shape[0] * shape[1])
        return torch.mm(queries, gallery.T, out=self._memory[: shape[0] * shape[1]].view(shape))

    @staticmethod
    def _doubt(rows: Tensor) -> float:
        # A sum of D products of unit vectors is off by less than D units of rounding, whatever its order (Higham,
        # "Accuracy and Stability of Numerical Algorithms", section 3.1); two sums are compared, a unit is eps / 2.
        return 2 * rows.shape[1] * torch.finfo(rows.dtype).eps

    def _positives(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return gallery rows of each query's class (B, M), and which of them are no padding nor the query itself.

        The padding repeats the first row; where a class is not in the gallery at all, it is any row.
        """
        first, count = self.first[index], self.count[index]
        offset = torch.arange(max(1, int(count.max())), device=index.device)  # (M,)
        is_valid = offset < count.unsqueeze(1)
        place = torch.where(is_valid, first.unsqueeze(1) + offset, first.unsqueeze(1))
        positives = self.order[place.clamp(max=len(self.order) - 1)]
        if self.itself:
            is_valid &= positives != index.unsqueeze(1)
        return positives, is_valid

    def _exactly_ahead(self, query: int, close: Tensor, positives: Tensor, *, cap: int) -> int:
        """Count, up to about `cap`, the rows of `close` that come before the nearest of the query's own class."""
        best = self._exact(query, positives).max()
        ahead = 0
        for part in close.split(PART):
            cosine = self._exact(query, part)
            ahead += int(((cosine >= best) if self.strict else (cosine > best)).sum())
            if ahead >= cap:
                break
        return ahead

    def _exact(self, query: int, rows: Tensor) -> Tensor:
        """Return float64 cosines, each summed in the same order, so that equal rows give equal numbers."""
        return (self.gallery[rows].double() * self.queries[query].double()).sum(1)


def _count(mask: Tensor) -> Tensor:
    """Return how many entries of each row are true; torch's own sum of booleans takes forty times as long on a CPU."""
    if mask.device.type != "cpu":
        return mask.sum(1)
    return torch.tensor([np.count_nonzero(row) for row in mask.numpy()])


def _rounding_once(rows: Tensor) -> Tensor:
    """Raise to float64 where the fast product would round its factors (TF32, bfloat16)."""
    return rows.double() if torch.get_float32_matmul_precision() != "highest" else rows


def _check(name: str, rows: Tensor, labels: Tensor) -> None:
    if rows.ndim != 2 or len(rows) == 0:
        raise InputError(f"{name}: embeddings are {tuple(rows.shape)}; they must be (N, D) with at least one row")
    if labels.shape != rows.shape[:1]:
        raise InputError(f"{name}: labels are {tuple(labels.shape)}; they must be ({len(rows)},), one an embedding")
    bad = int((~torch.isfinite(rows).all(1)).sum())
    if bad:
        raise InputError(f"{name}: {bad} of {len(rows)} embeddings are not finite: no neighbour can be found")
