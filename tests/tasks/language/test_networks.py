"""Transformer-XL and the LSTM: sizes, memory, causality, probabilities, weight normalisation, tied weights."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from adamp import AdamP, scale_invariant_parameters
from adamp.projection import project
from tasks.base import InputError
from tasks.language import DECODER, DropoutLstm, TransformerXL
from tasks.language.adaptive import TiedAdaptiveSoftmax
from tasks.language.transformer_xl import shift_by_distance

V = 50
SMALL = {"layers": 3, "width": 40, "heads": 2, "head_width": 20, "inner_width": 60, "memory": 12, "cutoffs": (10, 20)}


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def small(**options: object) -> TransformerXL:
    torch.manual_seed(0)
    model = TransformerXL(V, **{**SMALL, "dropout": 0.0, **options}).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


def text(columns: int = 2, tokens: int = 25) -> Tensor:
    return torch.randint(V, (columns, tokens), generator=torch.Generator().manual_seed(1))


def test_the_full_models_have_the_published_sizes() -> None:
    cutoffs = (20_000, 40_000, 200_000)
    with torch.device("meta"):
        plain = TransformerXL(267_735, cutoffs=cutoffs)
        assert count(plain) == 151_107_538
        assert count(plain.layers) == 41_066_400  # type: ignore[arg-type]
        normalised = TransformerXL(267_735, cutoffs=cutoffs, weight_norm=DECODER)
        assert count(normalised) == 151_180_498
        directions = [p for name, p in normalised.named_parameters() if name.endswith("original1")]
        assert len(directions) == 80 and sum(p.numel() for p in directions) == 41_000_000
        assert count(DropoutLstm(10_000)) == 24_221_600


@pytest.mark.parametrize("fused", [False, True])
def test_two_segments_with_memory_equal_one_pass(fused: bool) -> None:
    model, x = small(fused_attention=fused), text()
    first, memory, _ = model(x[:, :12], x[:, 1:13])
    assert [m.shape for m in memory] == [(2, 12, 40)] * 3
    second, _, _ = model(x[:, 12:24], x[:, 13:25], memory)
    whole, _, _ = model(x[:, :24], x[:, 1:25])
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=0, atol=1e-13)


def test_without_memory_each_segment_stands_alone() -> None:
    model, x = small(memory=0), text()
    _, memory, _ = model(x[:, :12], x[:, 1:13])
    assert all(m.shape == (2, 0, 40) for m in memory)
    with_memory, _, _ = model(x[:, 12:24], x[:, 13:25], memory)
    alone, _, _ = model(x[:, 12:24], x[:, 13:25])
    assert torch.equal(with_memory, alone)


def test_changing_a_token_leaves_everything_before_it_unchanged() -> None:
    model, x = small(), text()
    changed = x.clone()
    changed[:, 7] = (changed[:, 7] + 1) % V
    before, after = model.hidden(x[:, :12])[0], model.hidden(changed[:, :12])[0]
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


def test_at_same_length_every_token_looks_back_over_as_many() -> None:
    masked = TransformerXL._hidden_keys(4, 6, 6, torch.device("cpu"))
    assert masked.shape == (4, 10)
    assert (~masked).sum(1).tolist() == [6, 6, 6, 6]
    assert not masked[0, 6] and masked[0, 0] and not masked[0, 1]
    assert (~TransformerXL._hidden_keys(4, 2, 6, torch.device("cpu"))).sum(1).tolist() == [3, 4, 5, 6]


def test_distances_above_the_clamp_count_as_the_clamp() -> None:
    model, x = small(), text()
    near = model.hidden(x[:, :5], clamp=100)[0]
    torch.testing.assert_close(near, model.hidden(x[:, :5])[0], rtol=0, atol=0)
    assert not torch.allclose(model.hidden(x[:, :20], clamp=3)[0], model.hidden(x[:, :20])[0])


def test_shifting_puts_scores_by_distance_at_their_keys() -> None:
    queries, keys = 3, 5
    by_distance = torch.arange(keys - 1, -1, -1.0).expand(queries, keys)  # entry j: distance K - 1 - j
    shifted = shift_by_distance(by_distance)
    for i in range(queries):
        for j in range(keys - queries + i + 1):
            assert shifted[i, j] == keys - queries + i - j


def test_fused_attention_computes_the_same() -> None:
    plain, x = small(), text()
    fused = copy.deepcopy(plain)
    for layer in fused.layers:
        layer.fused_attention = True
    torch.testing.assert_close(fused(x[:, :-1], x[:, 1:])[0], plain(x[:, :-1], x[:, 1:])[0], rtol=0, atol=1e-13)


@pytest.mark.parametrize("cutoffs", [(), (10, 20), (49,)])
def test_probabilities_sum_to_one_and_are_those_of_the_loss(cutoffs: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    softmax = TiedAdaptiveSoftmax(V, 8, cutoffs).double()
    for parameter in softmax.parameters():
        nn.init.normal_(parameter)
    hidden, embedding, targets = torch.randn(V, 8).double(), torch.randn(V, 8).double(), torch.randperm(V)
    logs = softmax.log_probabilities(hidden, embedding)
    torch.testing.assert_close(logs.exp().sum(1), torch.ones(V).double(), rtol=0, atol=1e-14)
    losses = softmax(hidden, targets, embedding)
    torch.testing.assert_close(losses, -logs[torch.arange(V), targets], rtol=0, atol=1e-13)


@pytest.mark.parametrize("cutoffs", [(20, 10), (0,), (V,), (20, 20)])
def test_cutoffs_outside_the_vocabulary_are_refused(cutoffs: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"model\.cutoffs=.*below the vocabulary of 50"):
        TiedAdaptiveSoftmax(V, 8, cutoffs)


@pytest.mark.parametrize(
    ("options", "message"), [({"layers": 0}, r"model\.layers=0"), ({"memory": -1}, r"model\.memory=-1")]
)
def test_sizes_that_cannot_be_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TransformerXL(V, **{**SMALL, **options})  # type: ignore[arg-type]


def test_weight_normalisation_leaves_the_function_unchanged_at_the_start_and_the_softmax_tied() -> None:
    plain, x = small(), text()
    normalised = copy.deepcopy(plain)
    from tasks.language import weight_normalise

    weight_normalise(normalised, DECODER)
    torch.testing.assert_close(normalised(x[:, :-1], x[:, 1:])[0], plain(x[:, :-1], x[:, 1:])[0], rtol=0, atol=1e-12)
    names = [name for name, p in normalised.named_parameters() if p.shape == (V, 40)]
    assert names == ["embedding.weight"]
    with pytest.raises(InputError, match=r"model\.weight_norm: 'nothing' matches no linear map"):
        weight_normalise(plain, ["nothing"])


def test_only_the_directions_are_scale_invariant() -> None:
    model, x = TransformerXL(V, weight_norm=DECODER, **{**SMALL, "layers": 1}), text(2, 9)
    found = scale_invariant_parameters(model, (x[:, :-1], x[:, 1:]))
    names = {"qkv", "relative", "out", "inner", "outer"}
    assert found.keys() == {f"layers.0.{name}.parametrizations.weight.original1" for name in names}
    assert not scale_invariant_parameters(DropoutLstm(V, width=8, hidden=12), (x[:, :-1], x[:, 1:]))


def share_projected(rows: int, mark: object, *, draws: int = 2000) -> float:
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(draws):
        gain, grad = (torch.rand(rows, 1, generator=generator) + 0.5), torch.randn(rows, 1, generator=generator)
        result = project(grad, gain, grad, delta=0.1, eps=1e-8, wd_ratio=0.1, scale_invariant=mark)  # type: ignore[arg-type]
        hits += int(result.decision > 0)
    return hits / draws


def test_the_automatic_test_takes_gains_for_scale_invariant_in_eight_percent_of_the_steps_and_the_mark_never() -> None:
    # P(|N(0,1)| < 0.1) = 7.97 %; three deviations of 2,000 draws are 1.8 points.
    for rows in (410, 2100):
        assert 0.061 < share_projected(rows, "auto") < 0.098
    assert share_projected(410, False, draws=50) == 0


def test_marked_directions_keep_their_norm_where_automatic_ones_do() -> None:
    model, x = TransformerXL(V, weight_norm=DECODER, **{**SMALL, "layers": 1, "dropout": 0.0}), text()
    directions = {name: p for name, p in model.named_parameters() if name.endswith("original1")}
    rest = [p for name, p in model.named_parameters() if name not in directions]
    before = {name: p.detach().norm() for name, p in directions.items()}
    groups = [
        {"params": list(directions.values()), "scale_invariant": True},
        {"params": rest, "scale_invariant": False},
    ]
    optimizer = AdamP(groups, lr=1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        model(x[:, :-1], x[:, 1:])[0].mean().backward()
        optimizer.step()
    for name, p in directions.items():
        # A step of AdamP is at most about lr an entry and tangent: it adds lr² N to the squared norm, 20 times.
        after, start = float(p.detach().square().sum()), float(before[name].square())
        assert 0 <= after - start < 2 * 20 * 1e-6 * p.numel()


def lstm_small(**options: float) -> nn.Module:
    torch.manual_seed(0)
    return DropoutLstm(V, width=8, hidden=12, **options)


def test_two_lstm_segments_with_state_equal_one_pass() -> None:
    model, x = lstm_small().double().eval(), text()
    first, state, _ = model(x[:, :12], x[:, 1:13])
    second, _, _ = model(x[:, 12:24], x[:, 13:25], state)
    whole, _, _ = model(x[:, :24], x[:, 1:25])
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=0, atol=1e-14)


def test_weight_dropout_drops_half_of_the_recurrent_entries_in_training_alone() -> None:
    model, x = lstm_small(dropout=0.0, input_dropout=0.0, hidden_dropout=0.0, word_dropout=0.0), text()
    model.train()
    one, two = model(x[:, :12], x[:, 1:13])[0], model(x[:, :12], x[:, 1:13])[0]
    assert torch.equal(one[:, 0], two[:, 0])  # the first token has no past
    assert not torch.equal(one, two)
    one.mean().backward()
    for layer in model.layers:  # type: ignore[union-attr]
        assert abs(float((layer.weight_hh_l0.grad == 0).float().mean()) - 0.5) < 0.1
    model.eval()
    assert torch.equal(model(x[:, :12], x[:, 1:13])[0], model(x[:, :12], x[:, 1:13])[0])


def test_penalties_are_those_of_the_formula() -> None:
    model, x = lstm_small(activation_penalty=2.0, change_penalty=1.0).eval(), text()
    with torch.no_grad():
        outputs, dropped, _ = model.hidden(x[:, :12])
        expected = 2 * dropped.square().mean() + (outputs[:, 1:] - outputs[:, :-1]).square().mean()
        torch.testing.assert_close(model(x[:, :12], x[:, 1:13])[2], expected)
        assert math.isfinite(model(x[:, :1], x[:, 1:2])[2])  # a segment of one token has no change


@pytest.mark.parametrize(("options", "name"), [({"dropout": 1.0}, "dropout"), ({"layers": 0}, "layers")])
def test_lstm_options_outside_their_range_are_refused(options: dict[str, float], name: str) -> None:
    with pytest.raises(InputError, match=rf"model\.{name}="):
        lstm_small(**options)


@pytest.mark.parametrize("cutoffs", [(), (5, 20)], ids=str)
def test_log_probabilities_under_bf16_are_those_of_float32_up_to_the_logits_own_rounding(
    cutoffs: tuple[int, ...],
) -> None:
    torch.manual_seed(0)
    softmax, embedding = TiedAdaptiveSoftmax(40, 16, cutoffs), torch.randn(40, 16)
    hidden, targets = torch.randn(64, 16), torch.randint(0, 40, (64,))
    with torch.autocast("cpu", torch.bfloat16):
        losses = softmax(hidden, targets, embedding)
        every = softmax.log_probabilities(hidden, embedding)
    assert losses.dtype == every.dtype == torch.float32
    torch.testing.assert_close(every.exp().sum(1), torch.ones(64), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses, -every.gather(1, targets.unsqueeze(1)).squeeze(1), rtol=1e-6, atol=1e-6)
