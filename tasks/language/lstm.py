"""The LSTM language model of Merity et al. 2018 (arXiv:1708.02182), the network of the AdaRem paper's Table 3.

B columns, L tokens of a segment, D width of the embedding, H hidden width.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from tasks.checks import check_at_least, check_fractions
from tasks.precision import widen

State = list[Tensor]  # h and c of each layer in turn, (1, B, width of the layer), detached


class DropoutLstm(nn.Module):
    """Three LSTM layers between an embedding and the same embedding as decoder, with dropout of five kinds.

    Args:
        num_words: V.
        width: D; the last layer has it too, since the decoder is the embedding.
        hidden: H.
        layers: Number of layers, at least 1.
        dropout: Of the last layer's outputs, one mask for all tokens of a segment.
        input_dropout: Of the embedded tokens, likewise.
        hidden_dropout: Between layers, likewise.
        word_dropout: Of whole words of the embedding.
        weight_dropout: Of entries of the hidden-to-hidden matrices.
        activation_penalty: Factor of the mean square of the dropped-out outputs.
        change_penalty: Factor of the mean square change of the outputs from token to token.

    Raises:
        InputError: A dropout outside [0, 1), or no layer.
    """

    def __init__(
        self,
        num_words: int,
        *,
        width: int = 400,
        hidden: int = 1150,
        layers: int = 3,
        dropout: float = 0.4,
        input_dropout: float = 0.4,
        hidden_dropout: float = 0.25,
        word_dropout: float = 0.1,
        weight_dropout: float = 0.5,
        activation_penalty: float = 2.0,
        change_penalty: float = 1.0,
    ) -> None:
        super().__init__()
        rates = {
            "dropout": dropout, "input_dropout": input_dropout, "hidden_dropout": hidden_dropout,
            "word_dropout": word_dropout, "weight_dropout": weight_dropout,
        }  # fmt: skip
        check_fractions({f"model.{name}": rate for name, rate in rates.items()})
        check_at_least(1, {"model.layers": layers})
        self.rates = rates
        self.activation_penalty, self.change_penalty = activation_penalty, change_penalty
        self.embedding = nn.Embedding(num_words, width)
        widths = [width, *[hidden] * (layers - 1), width]
        self.layers = nn.ModuleList(nn.LSTM(a, b, batch_first=True) for a, b in pairwise(widths))
        self.decoder_bias = nn.Parameter(torch.zeros(num_words))
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def forward(
        self, inputs: Tensor, targets: Tensor, state: State | None = None, **evaluation: Any
    ) -> tuple[Tensor, State, Tensor]:
        """Return the loss of each target (B, L), the state for the next segment, and the penalties (0-d)."""
        outputs, dropped, state = self.hidden(inputs, state)
        logits = F.linear(dropped, self.embedding.weight, self.decoder_bias)  # (B, L, V)
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
        return losses, state, self._penalty(outputs, dropped)

    def _penalty(self, outputs: Tensor, dropped: Tensor) -> Tensor:
        penalty = self.activation_penalty * widen(dropped).square().mean()
        if outputs.shape[1] > 1:
            penalty = penalty + self.change_penalty * widen(outputs).diff(dim=1).square().mean()
        return penalty

    def hidden(self, inputs: Tensor, state: State | None = None) -> tuple[Tensor, Tensor, State]:
        """Return the last layer's outputs (B, L, D), the same after dropout, and the new state."""
        x = self._locked(F.embedding(inputs, self._words()), "input_dropout")
        new: State = []
        for i, layer in enumerate(self.layers):
            x = self._locked(x, "hidden_dropout") if i else x
            before = (state[2 * i], state[2 * i + 1]) if state else None
            x, (h, c) = functional_call(layer, {"weight_hh_l0": self._recurrent(layer)}, (x, before))
            new += [h.detach(), c.detach()]
        return x, self._locked(x, "dropout"), new

    def log_probabilities(self, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return the log-probability of every word after the last token, (B, V), and the new state."""
        _, dropped, state = self.hidden(inputs, state)
        logits = F.linear(dropped[:, -1], self.embedding.weight, self.decoder_bias)
        return logits.log_softmax(-1), state

    def _words(self) -> Tensor:
        """Return the embedding with some words dropped whole and the others scaled up, in training."""
        weight, rate = self.embedding.weight, self.rates["word_dropout"]
        if not (self.training and rate):
            return weight
        return weight * weight.new_empty(len(weight), 1).bernoulli_(1 - rate).div_(1 - rate)

    def _recurrent(self, layer: nn.Module) -> Tensor:
        weight: Tensor = layer.weight_hh_l0  # type: ignore[assignment]
        return F.dropout(weight, self.rates["weight_dropout"], training=self.training)

    def _locked(self, x: Tensor, name: str) -> Tensor:
        """Drop the same entries at every token of a segment (Gal and Ghahramani 2016)."""
        rate = self.rates[name]
        if not (self.training and rate):
            return x
        return x * x.new_empty(len(x), 1, x.shape[2]).bernoulli_(1 - rate).div_(1 - rate)
