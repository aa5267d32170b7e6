"""ReBias through the engine: exact resume, two processes equal to one, probes of both networks."""

import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from tasks.engine.distributed import process_group
from tasks.engine.errors import Stopped
from tasks.engine.phases import Phase
from tests.engine import toys
from tests.tasks import training
from tests.tasks.rebias.sets import biased_mnist, without_norm
from tests.tasks.training import metrics

PLAIN = {"f": partial(without_norm, kernel_size=5), "g": partial(without_norm, kernel_size=1)}


def fit(folder, task, **options):
    return training.fit(task, folder, phases=[Phase(2, toys.adam)], **options)


@pytest.mark.parametrize("sigma", [1.0, "median"])
def test_a_stopped_run_goes_on_without_a_changed_bit(tmp_path, sigma):
    whole = fit(tmp_path / "whole", biased_mnist(sigma=sigma))
    for step in (4, 13):  # inside the first epoch and the second
        folder = tmp_path / f"stopped-{step}"
        with pytest.raises(Stopped):
            fit(folder, biased_mnist(sigma=sigma), stop_at=step)
        resumed = fit(folder, biased_mnist(sigma=sigma))
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)
        assert (folder / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_both_networks_are_probed_under_their_own_names(tmp_path):
    fit(tmp_path, biased_mnist())
    last = metrics(tmp_path)[-1]
    for role in "fg":
        assert last[f"{role}/norm/mean"] > 0
        assert last[f"{role}/effective_step/mean"] > 0
        assert {f"train/{role}_loss", f"train/{role}_hsic", f"train/{role}_distance"} <= last.keys()


def main(folder: Path) -> None:
    """What each process of a pair does."""
    with process_group("cpu", timeout_minutes=1) as world:
        for sigma in (1.0, "median"):
            fit(folder / f"{sigma}", biased_mnist(**PLAIN, sigma=sigma), world=world)


def test_two_processes_equal_one(tmp_path):
    training.run_pair("tests.tasks.rebias.test_training", tmp_path, seconds=120)
    for sigma in ("1.0", "median"):
        fit(tmp_path / "one" / sigma, biased_mnist(**PLAIN, sigma=sigma if sigma == "median" else 1.0))
        for one, two in zip(metrics(tmp_path / "one" / sigma), metrics(tmp_path / sigma), strict=True):
            assert one.keys() == two.keys()
            # float32 sums in another order; the cosine and the oscillation divide small differences
            keys = [key for key in one if not {"cosine", "margin", "oscillation"} & set(key.split("/"))]
            assert [two[key] for key in keys] == pytest.approx([one[key] for key in keys], rel=1e-4, abs=1e-6)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
