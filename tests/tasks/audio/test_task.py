"""The task alone and through the engine: exact resume, two processes equal to one, the switch from Adam to SGD."""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.audio import AudioClassifier, HarmonicCnn, official_set
from tasks.base import InputError, Shard, StepContext
from tasks.engine.distributed import process_group
from tasks.engine.errors import Stopped
from tasks.engine.phases import Phase
from tasks.engine.schedules import step as step_schedule
from tests.configurations import composed
from tests.engine import toys
from tests.tasks import training
from tests.tasks.audio import layouts
from tests.tasks.training import losses_on_one_batch, metrics


def make(data, *, pools=(2, 2, 2, 2, 2, 2, 1), norm=True, **options):
    torch.manual_seed(0)
    given = {"batch_size": 6, "seed": 1, "input_length": 16_384, "chunks": 2, "select": "loss", "select_after": 0,
             "eval_batch_size": 4} | options  # fmt: skip

    def model(num_classes):
        network = HarmonicCnn(num_classes, width=1 / 32, time_pools=pools, dropout=0.0 if not norm else 0.5)
        if not norm:  # statistics over half a batch differ
            for module in network.modules():
                for name, child in list(module.named_children()):
                    if isinstance(child, torch.nn.modules.batchnorm._BatchNorm):
                        setattr(module, name, torch.nn.Identity())
        return network

    return AudioClassifier(data, model, **given)


@pytest.mark.parametrize("kind", ["keyword", "music", "events"])
def test_a_step_on_a_repeated_batch_lowers_its_loss(kind, request):
    task = make(request.getfixturevalue(kind))
    network = task.networks["model"].train()
    network.head[3].p = 0.0
    batch = next(iter(task.train_batches(0, Shard())))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = losses_on_one_batch(task, batch, optimizer, steps=6)
    assert losses[-1] < losses[0]
    (update,) = task.updates(task.networks, batch, StepContext())
    assert float(update.log["train/q"]) != 1


@torch.no_grad()
def test_a_clips_output_is_the_mean_of_its_chunks_probabilities_and_its_loss_that_of_their_losses(events):
    task = make(events, input_length=8_192, pools=(2, 2, 2, 2, 2, 1, 1))
    network = task.networks["model"].eval()
    waves, counts, targets = next(iter(task.test_batches(Shard())["test"]))
    assert counts.tolist() == [2, 2, 2]
    loss, output, kept = task.predict(task.networks, (waves, counts, targets), {})
    logits = network(waves).double()
    torch.testing.assert_close(output, logits.sigmoid().view(3, 2, -1).mean(1))
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, targets.double().repeat_interleave(2, 0), reduction="none"
    )
    torch.testing.assert_close(loss, losses.mean(1).view(3, 2).mean(1))
    assert torch.equal(kept, targets)


def test_scores_are_of_the_whole_split(keyword, events):
    task = make(keyword)
    outputs = torch.eye(3, dtype=torch.float64)
    records = [
        (torch.tensor([0.5, 1.5]), outputs[[0, 1]], torch.tensor([0, 2])),
        (torch.tensor([1.0]), outputs[[2]], torch.tensor([2])),
    ]
    scores = task.score("test", records)
    assert scores == {"test/loss": 1.0, "test/top1": pytest.approx(200 / 3)}
    tagged = make(events, threshold=0.1, select="f1", select_after=3)
    assert tagged.monitor == "val/selection"
    record = [(torch.zeros(2), torch.rand(2, 17, dtype=torch.float64), torch.eye(17)[:2])]
    tagged.train_batches(2, Shard())
    early = tagged.score("val", record)
    tagged.train_batches(3, Shard())
    late = tagged.score("val", record)
    assert early["val/selection"] == pytest.approx(early["val/f1"] - 100)
    assert late["val/selection"] == late["val/f1"]
    assert late["val/skipped_tags"] == 15
    assert "test/selection" not in tagged.score("test", record)


def test_the_record_names_the_set_and_what_guessing_scores(keyword, music):
    assert make(keyword).describe()["baseline"].startswith("33.33 validation top1")
    assert "PR-AUC of guessing" in make(music).describe()["baseline"]
    task = make(music)
    task.train_batches(0, Shard(0, 2))
    assert task.notices() == {"undecodable_clips": 1}
    task.train_batches(0, Shard(1, 2))
    assert task.notices() == {}  # the first process has told of it


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"input_length": 16_000}, "task.input_length=16000: too short.*at least 16128"),
        ({"chunks": 0}, "task.chunks=0"),
        ({"batch_size": 0}, "train.batch_size=0"),
        ({"threshold": float("nan")}, "task.threshold=nan"),
        ({"select": "f1"}, "task.select=f1"),
        ({"eval_batch_size": 0}, "task.eval_batch_size=0"),
    ],
)
def test_wrong_values_are_refused_with_their_option(keyword, options, said):
    with pytest.raises(InputError, match=said):
        make(keyword, **options)


# ---------------------------------------------------------------------------------------------------- the engine

SHORT = {"pools": (2, 2, 2, 1, 1, 1, 1), "input_length": 2_048}  # an eighth of the work


def fit(folder, task, *, opt=toys.adam, **options):
    return training.fit(task, folder, phases=[Phase(2, opt)], **options)


def test_a_stopped_run_goes_on_without_a_changed_bit(tmp_path, keyword):
    whole = fit(tmp_path / "whole", make(keyword, **SHORT))
    for step in (2, 5):  # inside the first epoch and the second
        folder = tmp_path / f"stopped-{step}"
        with pytest.raises(Stopped):
            fit(folder, make(keyword, **SHORT), stop_at=step)
        resumed = fit(folder, make(keyword, **SHORT))
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)
        assert (folder / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    last = metrics(tmp_path / "whole")[-1]
    assert {"test/top1", "test/loss"} <= last.keys()
    assert any("train/q" in line for line in metrics(tmp_path / "whole"))


def sgd(groups):
    return torch.optim.SGD(groups, lr=1e-3, momentum=0.9)


def main(folder: Path) -> None:
    """What each process of a pair does."""
    data = official_set("mtat", str(folder / "mtat"), num_tags=5, cache=str(folder / "cache"))
    with process_group("cpu", timeout_minutes=1) as world:
        fit(folder / "two", make(data, norm=False, **SHORT), world=world, opt=sgd)


def test_two_processes_equal_one_and_gather_predictions(tmp_path):
    root = layouts.mtat(tmp_path)
    training.run_pair("tests.tasks.audio.test_task", tmp_path, seconds=180)
    data = official_set("mtat", str(root), num_tags=5, cache=str(tmp_path / "cache"))
    fit(tmp_path / "one", make(data, norm=False, **SHORT), opt=sgd)
    for one, two in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert one.keys() == two.keys()
        keys = [key for key in one if not {"cosine", "margin", "oscillation"} & set(key.split("/"))]
        assert [two[key] for key in keys] == pytest.approx([one[key] for key in keys], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("opt", ["adam_sgd_paper", "adam_sgd_reference"])
def test_the_mixture_goes_back_to_the_best_weights_at_the_switch(tmp_path, keyword, opt):
    task = make(keyword, **SHORT)
    given = iter([1.0, 2.0, 3.0, 4.0])  # the first epoch is the best
    score = task.score
    task.score = lambda split, records: score(split, records) | ({"val/loss": next(given)} if split == "val" else {})
    ends, first = [], []
    updates = task.updates

    def watched(nets, batch, context):
        if len(ends) == 3 and not first:
            first.append({k: v.clone() for k, v in task.networks["model"].state_dict().items()})
        yield from updates(nets, batch, context)

    task.updates = watched
    made = toys.trainer(task, tmp_path, phases=phases(opt), epochs=4)
    for _ in made.epochs():
        ends.append({k: v.clone() for k, v in task.networks["model"].state_dict().items()})
    toys.close(made)
    assert all(torch.equal(first[0][name], ends[0][name]) for name in first[0])
    moved = [name for name in first[0] if not torch.equal(first[0][name], ends[2][name])]
    assert len(moved) > 20
    assert isinstance(made.state.optimizers["model"], torch.optim.SGD)


def phases(opt):
    """The phases of a configuration, three epochs and one."""
    from hydra.utils import instantiate

    config = composed("experiment=speech-commands", f"opt={opt}", "mixture.adam_epochs=3", "mixture.sgd_epochs=1")
    first, second = config["phases"]
    return [
        Phase(first["epochs"], instantiate(config["opt"], _convert_="all"), instantiate(first["schedule"])),
        Phase(second["epochs"], instantiate(second["opt"], _convert_="all"), instantiate(second["schedule"]),
              start_from=second["start_from"]),
    ]  # fmt: skip


def test_the_mixtures_are_the_papers_and_the_references():
    for opt, rate in (("adam_sgd_paper", 1e-4), ("adam_sgd_reference", 1e-3)):
        config = composed("experiment=mtat", f"opt={opt}", "scale=full", "data_root=/data")
        adam, sgd = config["phases"]
        assert (config["opt"]["_target_"], config["opt"]["lr"], config["opt"]["weight_decay"]) == (
            "torch.optim.Adam",
            1e-4,
            1e-4,
        )
        assert (adam["epochs"], sgd["epochs"], sgd["start_from"]) == (60, 140, "best")
        assert (sgd["opt"]["lr"], sgd["opt"]["momentum"], sgd["opt"]["nesterov"]) == (rate, 0.9, True)
        rates = partial(step_schedule, milestones=sgd["schedule"]["lr"]["milestones"])
        assert [rates(epoch, 140) for epoch in (19.9, 20, 39.9, 40)] == pytest.approx([1, 0.1, 0.1, 0.01])


def test_the_experiments_at_full_scale_hold_the_papers_settings():
    for experiment, epochs, length, chunks in (
        ("mtat", 100, 80_000, 16),
        ("speech-commands", 30, 16_384, 1),
        ("dcase", 30, 48_000, 16),
    ):
        config = composed(f"experiment={experiment}", "opt=adamp", "scale=full", "data_root=/data")
        assert (config["train"]["epochs"], config["opt"]["lr"], config["opt"]["weight_decay"]) == (epochs, 1e-4, 0)
        assert (config["task"]["input_length"], config["task"]["chunks"]) == (length, chunks)
        assert config["schedule"]["lr"]["_target_"].endswith("cosine")
        assert config["model"]["width"] == 1.0


if __name__ == "__main__":
    np.seterr(all="raise")
    main(Path(sys.argv[1]))
