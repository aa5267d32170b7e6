"""The task: scores, resuming with memory, processes, generating."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import adamp
from tasks.base import InputError, Shard, StepContext
from tasks.engine.errors import Stopped
from tasks.engine.phases import Phase
from tasks.engine.schedules import cosine
from tasks.language import Corpus, DropoutLstm, LanguageModel, TransformerXL
from tests.engine import toys

SMALL = {"layers": 2, "width": 32, "heads": 2, "head_width": 16, "inner_width": 48, "memory": 8, "cutoffs": (20, 50)}


def make(corpus: Corpus, *, model: str = "txl", dropout: float = 0.1, **options: Any) -> LanguageModel:
    torch.manual_seed(0)

    def build(words: int) -> torch.nn.Module:
        if model == "lstm":
            return DropoutLstm(words, width=16, hidden=24, layers=2)
        return TransformerXL(words, dropout=dropout, **SMALL)

    given = {"columns": 8, "length": 12, "seed": 0, "val": {"columns": 2, "length": 12}}
    return LanguageModel(corpus, build, **{**given, **options})


def adamw(groups: Any) -> torch.optim.Optimizer:
    return adamp.AdamP(groups, lr=3e-3)


def fit(task: LanguageModel, folder: Path, *, epochs: int = 2, **options: Any) -> toys.Trainer:
    made = toys.trainer(
        task, folder, phases=[Phase(epochs, adamw, {"lr": cosine})], batch_size=8, epochs=epochs, **options
    )
    try:
        made.fit()
    finally:
        toys.close(made)
    return made


def test_training_beats_guessing_by_frequency(corpus: Corpus, tmp_path: Path) -> None:
    made = fit(make(corpus), tmp_path, epochs=4)
    assert made.state.scores["val/ppl"] == pytest.approx(math.exp(made.state.scores["val/loss"]))
    assert made.state.scores["test/loss"] < corpus.unigram_loss("test") - 0.02


@pytest.mark.parametrize("case", ["txl", "lstm", "micro-batches"])
def test_stopping_and_resuming_keeps_the_memory_bit_for_bit(case: str, corpus: Corpus, tmp_path: Path) -> None:
    options: dict[str, Any] = {"accumulation": 2} if case == "micro-batches" else {}
    values: dict[str, Any] = {"model": "lstm", "random_lengths": True} if case == "lstm" else {"epoch_steps": 9}
    whole = fit(make(corpus, **values), tmp_path / "whole", **options)
    for step in (4, 13):
        folder = tmp_path / f"{step}"
        task = make(corpus, **values)
        hook, updates = toys.kill_at(step), task.updates

        def killed(*args: Any, updates: Any = updates, hook: Any = hook) -> Any:
            hook()
            return updates(*args)

        task.updates = killed  # type: ignore[method-assign]
        with pytest.raises(Stopped):
            fit(task, folder, **options)
        resumed = fit(make(corpus, **values), folder, **options)
        assert (folder / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
        ours, theirs = toys.weights(resumed), toys.weights(whole)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_columns_split_over_processes_give_the_gradient_and_the_memory_of_the_whole(corpus: Corpus) -> None:
    task = make(corpus, dropout=0.0)
    net = task.networks["model"]

    def gradient(shards: list[Shard]) -> torch.Tensor:
        net.zero_grad()
        for shard in shards:
            context = StepContext()
            for batch in list(task.train_batches(0, shard))[:3]:  # the third sees two segments of memory
                (update,) = task.updates(task.networks, batch, context)
            (update.loss / len(shards)).backward()
        return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])

    one, two = gradient([Shard()]), gradient([Shard(0, 2), Shard(1, 2)])
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)  # float32 sums in another order


@pytest.mark.parametrize("columns", [1, 3, 10])
def test_scores_over_processes_are_those_of_one(columns: int, corpus: Corpus) -> None:
    task = make(corpus, val={"columns": columns, "length": 9})
    task.networks["model"].eval()

    def score(count: int) -> dict[str, float]:
        records = []
        for index in range(count):
            for batch in task.eval_batches(Shard(index, count))["val"]:
                with torch.no_grad():
                    records.append(task.predict(task.networks, batch, {}))
        assert sum(tokens for _, tokens in records) == columns * (len(corpus.tokens["valid"]) // columns - 1)
        return task.score("val", records)

    assert score(4)["val/loss"] == pytest.approx(score(1)["val/loss"], abs=1e-6)


def test_one_column_scores_every_token_but_the_first_whatever_the_segments(corpus: Corpus) -> None:
    # With a memory as long as the text, cutting it up changes nothing.
    length = len(corpus.tokens["valid"])
    losses = []
    for segment in (length, 40):
        task = make(corpus, val={"columns": 1, "length": segment, "options": {"memory_length": length}})
        task.networks["model"].eval()
        (batch,) = task.eval_batches(Shard())["val"]
        with torch.no_grad():
            total, tokens = task.predict(task.networks, batch, {})
        assert tokens == length - 1
        losses.append(total / tokens)
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_the_rate_of_a_random_segment_is_scaled_by_its_length(corpus: Corpus) -> None:
    task = make(corpus, model="lstm", random_lengths=True)
    batch = next(iter(task.train_batches(0, Shard())))
    (update,) = task.updates(task.networks, batch, StepContext())
    assert update.lr_scale == batch[0].shape[1] / 12
    assert update.log["train/nll"] < update.loss  # the penalties are no part of the perplexity


def test_characters_are_scored_in_bits(wikitext: Path, tmp_path: Path) -> None:
    from tasks.language import text_corpus

    chars = text_corpus(wikitext, name="chars", unit="char", cache=tmp_path)
    task = make(chars, model="lstm")
    assert task.score("val", [(math.log(2) * 10, 10)])["val/bpc"] == pytest.approx(1.0)


def test_the_record_names_the_floor_to_beat(corpus: Corpus) -> None:
    facts = make(corpus).describe()
    assert facts["baseline"].startswith(f"{math.exp(corpus.unigram_loss('valid')):.1f} validation perplexity")
    assert facts["vocabulary"] == len(corpus.words)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, r"task\.length=0"),
        ({"epoch_steps": 0}, r"task\.epoch_steps=0"),
        ({"val": {"columns": 0}}, r"task\.val\.columns=0"),
        ({"val": {"colums": 3}}, r"task\.val: .*colums"),
        ({"tests": {"long": {"length": -1}}}, r"task\.tests\.long\.length=-1"),
    ],
)
def test_options_that_cannot_be_are_refused_by_name(options: dict[str, Any], message: str, corpus: Corpus) -> None:
    with pytest.raises(InputError, match=message):
        make(corpus, **options)


def test_a_number_of_processes_that_does_not_divide_the_columns_is_refused(corpus: Corpus) -> None:
    with pytest.raises(InputError, match=r"train\.batch_size=8 columns: must divide"):
        make(corpus).train_batches(0, Shard(0, 3))
