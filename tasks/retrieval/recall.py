"""Recall@K by exact search, in blocks.

Shapes: Q queries, G gallery rows, D features, M largest number of positives of a query, B queries in a block.

Queries and gallery are sorted by class first, so that a class is a range, and only blocks near the diagonal hold pairs
of one class. Where the queries are the gallery the matrix of cosines is symmetric: the half above the diagonal is
computed, and each block serves its rows and its columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from tasks.base import InputError
from tasks.retrieval.losses import unit_rows

BLOCK_BYTES = 64 * 2**20  # of the cosines of the queries that are looked at again
SIDE = 1024  # of a block of cosines: large enough for the matrix product, and still in cache when it is read again
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
        ahead = search.ahead(cap=max(ks))
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
        labels, order = gallery_labels.sort(stable=True)
        self.gallery, self.gallery_labels = _rounding_once(unit_rows(gallery[order])), labels
        self.queries, self.labels = self.gallery, labels
        if not itself:
            self.labels, order = query_labels.sort(stable=True)
            self.queries = _rounding_once(unit_rows(queries[order]))
        self.itself, self.strict = itself, strict
        self._memory: Tensor | None = None
        # The class of a query is the range `first` to `first + count` of the gallery.
        self.first = torch.searchsorted(labels, self.labels)
        self.count = torch.searchsorted(labels, self.labels, right=True) - self.first

    def ahead(self, *, cap: int) -> Tensor:
        """Return a count a query, in the order of `labels`: exact below `cap`, and at least `cap` otherwise."""
        blocks = self._ranges(len(self.queries), SIDE)
        best = torch.cat([self._nearest_positive(block) for block in blocks])
        tally = _Tally(best, self._doubt(self.queries), cap)
        for rows in blocks:
            for columns in self._ranges(len(self.gallery), SIDE):
                if self.itself and columns.start < rows.start:
                    continue
                cosine = self._product(self.queries[rows], self.gallery[columns])
                mine, theirs = self.labels[rows], self.gallery_labels[columns]
                if mine[0] <= theirs[-1] and theirs[0] <= mine[-1]:
                    cosine.masked_fill_(mine[:, None] == theirs, -torch.inf)
                tally.add(cosine, rows, columns)
                if self.itself and columns != rows:
                    tally.add(cosine.T, columns, rows)
        ahead = tally.possible
        ahead[best == -torch.inf] = torch.iinfo(torch.int64).max
        # Decide the doubtful pairs: one by one where they are few, in a product of float64 where they are many
        for query, close in tally.doubtful():
            positives, is_valid = self._positives(torch.tensor([query], device=ahead.device))
            sure = int(tally.sure[query])
            ahead[query] = sure + self._exactly_ahead(query, close, positives[is_valid], cap=cap - sure)
        again = tally.crowded()
        size = max(1, BLOCK_BYTES // (len(self.gallery) * self.gallery.element_size()))
        for index in again.split(size) if len(again) else ():
            ahead[index] = self.negatives_ahead(index, cap=cap)
        return ahead

    @staticmethod
    def _ranges(length: int, size: int) -> list[slice]:
        return [slice(start, min(start + size, length)) for start in range(0, length, size)]

    def _nearest_positive(self, block: slice) -> Tensor:
        """Return each query's largest cosine to an example of its own class, (B,), -inf where there is none."""
        first, end = self.first[block], self.first[block] + self.count[block]
        gallery = slice(int(first.min()), max(int(end.max()), int(first.min())))
        if gallery.start == gallery.stop:
            return self.queries.new_full((len(first),), -torch.inf)
        cosine = self._product(self.queries[block], self.gallery[gallery])
        cosine.masked_fill_(self.labels[block][:, None] != self.gallery_labels[gallery], -torch.inf)
        if self.itself:
            places = torch.arange(block.start, block.stop, device=cosine.device)
            cosine[places - block.start, places - gallery.start] = -torch.inf
        return cosine.amax(1)

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
        positives = place.clamp(max=len(self.gallery) - 1)
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


class _Tally:
    """For each query, how many rows of other classes come before its nearest own one: certainly, and possibly.

    Args:
        best: (Q,) cosine of the nearest example of a query's own class.
        doubt: Cosines that differ by less may be in either order.
        cap: Counts from here on need not be exact.
    """

    def __init__(self, best: Tensor, doubt: float, cap: int) -> None:
        self.best, self.doubt, self.cap = best, doubt, cap
        self.sure, self.possible = (torch.zeros(len(best), dtype=torch.int64, device=best.device) for _ in range(2))
        self._pairs: list[Tensor] = []  # (P, 2) query and gallery row, in doubt
        self._crowded = torch.zeros(len(best), dtype=torch.bool, device=best.device)

    def add(self, cosine: Tensor, rows: slice, columns: slice) -> None:
        """Count a block: cosines (B, C) of the queries in `rows` to the gallery in `columns`, own class at -inf."""
        best, sure = self.best[rows], self.sure[rows]
        open_rows = (cosine.amax(1) >= best - self.doubt) & (best > -torch.inf) & (sure < self.cap)
        local = open_rows.nonzero()[:, 0]
        if len(local) == 0:
            return
        near, bar = cosine[local], best[local, None]
        certain, possible = near > bar + self.doubt, near >= bar - self.doubt
        index = local + rows.start
        counts = _count(certain), _count(possible)
        self.sure[index] += counts[0]
        self.possible[index] += counts[1]
        unsure = (counts[0] < counts[1]).nonzero()[:, 0]
        if len(unsure) == 0:
            return
        if int((counts[1] - counts[0])[unsure].sum()) > MANY * len(unsure):
            self._crowded[index[unsure]] = True
            return
        at, column = (possible[unsure] & ~certain[unsure]).nonzero(as_tuple=True)
        self._pairs.append(torch.stack([index[unsure[at]], column + columns.start], 1))

    def _undecided(self) -> Tensor:
        return (self.sure < self.possible) & (self.sure < self.cap)

    def doubtful(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the queries with few pairs in doubt, each with the gallery rows that are."""
        if not self._pairs:
            return
        pairs = torch.cat(self._pairs)
        pairs = pairs[(self._undecided() & ~self._crowded)[pairs[:, 0]]]
        queries, counts = pairs[:, 0].unique(return_counts=True)
        order = pairs[:, 0].argsort(stable=True)
        yield from zip(queries.tolist(), pairs[order, 1].split(counts.tolist()), strict=True)

    def crowded(self) -> Tensor:
        """Return the undecided queries with many pairs in doubt."""
        return (self._undecided() & self._crowded).nonzero()[:, 0]


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
