"""Transformer-XL (Dai et al. 2019, arXiv:1901.02860): attention over a memory of earlier segments, by distance.

B columns, Q queries (tokens of the segment), M tokens of memory, K = M + Q keys, D width, H heads, d width of a head.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from tasks.base import InputError
from tasks.checks import check_at_least
from tasks.language.adaptive import TiedAdaptiveSoftmax

Memory = list[Tensor]  # the input of each layer at the last tokens, (B, M, D), detached
# Which linear maps carry weight normalisation in the "+ WN" rows: all five of every layer. The paper does not say.
DECODER = (r"layers\.\d+\.(qkv|relative|out|inner|outer)$",)


class TransformerXL(nn.Module):
    """The language model, from tokens to the loss of each next token.

    Args:
        num_words: V.
        layers: Number of layers.
        width: D.
        heads: H.
        head_width: d.
        inner_width: Of the feed-forward part.
        memory: M at most, in training; evaluation may ask for another.
        cutoffs: Of the adaptive softmax, see `TiedAdaptiveSoftmax`.
        dropout: After every linear map, on embeddings, distances and outputs.
        attention_dropout: On attention weights.
        fused_attention: Compute attention by `scaled_dot_product_attention` with the distance term as its mask.
        weight_norm: Names of the linear maps that carry weight normalisation, as patterns, see `weight_normalise`.

    Raises:
        InputError: A size below its minimum, or a pattern that matches nothing.
    """

    def __init__(
        self,
        num_words: int,
        *,
        layers: int = 16,
        width: int = 410,
        heads: int = 10,
        head_width: int = 41,
        inner_width: int = 2100,
        memory: int = 150,
        cutoffs: Sequence[int] = (),
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        fused_attention: bool = False,
        weight_norm: Sequence[str] = (),
    ) -> None:
        super().__init__()
        sizes = {"layers": layers, "width": width, "heads": heads, "head_width": head_width, "inner_width": inner_width}
        check_at_least(1, {f"model.{name}": value for name, value in sizes.items()})
        if not memory >= 0:
            raise InputError(f"model.memory={memory}: must be 0 (no memory) or more")
        self.width, self.memory = width, memory
        self.embedding = nn.Embedding(num_words, width)
        self.content_bias = nn.Parameter(torch.empty(heads, head_width))  # u of equation (5), of all layers
        self.distance_bias = nn.Parameter(torch.empty(heads, head_width))  # v
        self.layers = nn.ModuleList(
            Layer(
                width, heads=heads, head_width=head_width, inner_width=inner_width, dropout=dropout,
                attention_dropout=attention_dropout, fused_attention=fused_attention,
            )
            for _ in range(layers)
        )  # fmt: skip
        self.softmax = TiedAdaptiveSoftmax(num_words, width, cutoffs)
        self.dropout = nn.Dropout(dropout)
        self._initialise()
        weight_normalise(self, weight_norm)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, 0.0, 0.02)
            if isinstance(module, nn.LayerNorm):
                nn.init.normal_(module.weight, 1.0, 0.02)
            if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for parameter in (self.content_bias, self.distance_bias, self.softmax.cluster_weight):
            nn.init.normal_(parameter, 0.0, 0.02)

    def forward(
        self, inputs: Tensor, targets: Tensor, memory: Memory | None = None, **evaluation: Any
    ) -> tuple[Tensor, Memory, Tensor]:
        """Return the loss of each target (B, Q), the memory for the next segment, and a penalty (none: 0).

        Args:
            inputs: Tokens (B, Q) int64.
            targets: The tokens that follow them, (B, Q).
            memory: What the segment before returned; None or [] at a text's start.
            evaluation: See `hidden`.
        """
        hidden, memory = self.hidden(inputs, memory, **evaluation)
        losses = self.softmax(hidden.flatten(0, 1), targets.flatten(), self.embedding.weight)
        return losses.view_as(targets), memory, losses.new_zeros(())

    def hidden(
        self,
        inputs: Tensor,
        memory: Memory | None = None,
        *,
        memory_length: int | None = None,
        clamp: int | None = None,
        same_length: bool = False,
    ) -> tuple[Tensor, Memory]:
        """Return what the softmax reads, (B, Q, D), and the new memory.

        Args:
            inputs: Tokens (B, Q) int64.
            memory: What the segment before returned.
            memory_length: Keep so many tokens instead of the model's own number.
            clamp: Distances above it count as this one.
            same_length: Let every token look back equally far: over `memory_length` tokens, itself included.
        """
        keep = self.memory if memory_length is None else memory_length
        x = self.dropout(self.embedding(inputs) * self.width**0.5)
        held = memory[0].shape[1] if memory else 0
        queries = inputs.shape[1]
        distances = self.dropout(self._sinusoids(held + queries, clamp, x))
        hidden_keys = self._hidden_keys(queries, held, keep if same_length else None, inputs.device)
        new: Memory = []
        for i, layer in enumerate(self.layers):
            past = memory[i] if memory else x[:, :0]
            context = torch.cat([past, x], 1)  # (B, K, D)
            new.append(context[:, max(0, context.shape[1] - keep) :].detach())
            x = layer(x, context, distances, self.content_bias, self.distance_bias, hidden_keys)
        return self.dropout(x), new

    def log_probabilities(self, inputs: Tensor, memory: Memory | None = None) -> tuple[Tensor, Memory]:
        """Return the log-probability of every word after the last token, (B, V), and the new memory."""
        hidden, memory = self.hidden(inputs, memory)
        return self.softmax.log_probabilities(hidden[:, -1], self.embedding.weight), memory

    def _sinusoids(self, keys: int, clamp: int | None, like: Tensor) -> Tensor:
        """Return the encoding of distances K - 1, ..., 0, (K, D)."""
        steps = torch.arange(keys - 1, -1, -1, device=like.device, dtype=torch.float64)
        if clamp is not None:
            steps = steps.clamp(max=clamp)
        rates = 10_000 ** -(torch.arange(0, self.width, 2, device=like.device, dtype=torch.float64) / self.width)
        angles = torch.outer(steps, rates)
        return torch.cat([angles.sin(), angles.cos()], 1)[:, : self.width].to(like.dtype)

    @staticmethod
    def _hidden_keys(queries: int, held: int, reach: int | None, device: torch.device) -> Tensor:
        """Return (Q, K) bool, true where a query may not look: ahead, or further back than `reach` tokens."""
        distance = held + torch.arange(queries, device=device)[:, None] - torch.arange(held + queries, device=device)
        masked = distance < 0
        return masked if reach is None else masked | (distance >= max(reach, 1))


class Layer(nn.Module):
    """Attention with relative positions, then a feed-forward part, each followed by addition and LayerNorm."""

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        head_width: int,
        inner_width: int,
        dropout: float,
        attention_dropout: float,
        fused_attention: bool,
    ) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width
        self.attention_dropout, self.fused_attention = attention_dropout, fused_attention
        self.qkv = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.relative = nn.Linear(width, heads * head_width, bias=False)
        self.out = nn.Linear(heads * head_width, width, bias=False)
        self.inner = nn.Linear(width, inner_width)
        self.outer = nn.Linear(inner_width, width)
        self.attention_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, context: Tensor, distances: Tensor, content_bias: Tensor, distance_bias: Tensor, masked: Tensor
    ) -> Tensor:
        """Return the layer's output, (B, Q, D), from its input x (B, Q, D) and memory and input together (B, K, D)."""
        batch, queries, _ = x.shape
        # Queries from the segment, keys and values from memory and segment
        q, k, v = self.qkv(context).unflatten(-1, (3, self.heads, self.head_width)).unbind(2)  # each (B, K, H, d)
        q, k, v = q[:, -queries:].transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H, Q or K, d)
        # Terms (b) and (d) of the attention score, by distance (Dai et al., section 3.3); then (a) and (c)
        r = self.relative(distances).unflatten(-1, (self.heads, self.head_width)).transpose(0, 1)  # (H, K, d)
        by_distance = shift_by_distance((q + distance_bias[:, None].to(q.dtype)) @ r.mT)  # (B, H, Q, K)
        q = q + content_bias[:, None].to(q.dtype)
        scale = self.head_width**-0.5
        rate = self.attention_dropout if self.training else 0.0
        if self.fused_attention:
            bias = (by_distance * scale).masked_fill(masked, -torch.inf)
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=rate)
        else:
            scores = ((q @ k.mT + by_distance) * scale).masked_fill(masked, -torch.inf)
            attended = F.dropout(scores.softmax(-1), rate, training=self.training) @ v
        attended = attended.transpose(1, 2).reshape(batch, queries, -1)
        x = self.attention_norm(x + self.dropout(self.out(attended)))
        # Feed-forward part
        inside = self.dropout(F.relu(self.inner(x)))
        return self.norm(x + self.dropout(self.outer(inside)))


def shift_by_distance(scores: Tensor) -> Tensor:
    """Turn scores by distance into scores by key (Dai et al. 2019, appendix B).

    Entry [i, j] of the input (..., Q, K) is query i against distance K - 1 - j; of the result, against key j, which
    lies K - Q + i - j tokens back. Entries of keys ahead of the query mean nothing.
    """
    *lead, queries, keys = scores.shape
    padded = F.pad(scores, (1, 0)).reshape(*lead, keys + 1, queries)
    return padded[..., 1:, :].reshape(*lead, queries, keys)


def weight_normalise(model: nn.Module, patterns: Sequence[str]) -> nn.Module:
    """Give the linear maps whose names match weight normalisation, `w = g v / ‖v‖` row by row.

    Salimans and Kingma 2016, equation (2). g starts as the norm of each row, so the network computes what it did
    before. The parameters become `...parametrizations.weight.original0` (g, (out, 1)) and `...original1` (v,
    (out, in)); only v is scale-invariant.

    Raises:
        InputError: A pattern matches no linear map.
    """
    for pattern in patterns:
        layers = [m for name, m in model.named_modules() if isinstance(m, nn.Linear) and re.search(pattern, name)]
        if not layers:
            raise InputError(f"model.weight_norm: {pattern!r} matches no linear map")
        for module in layers:
            parametrizations.weight_norm(module)
    return model
