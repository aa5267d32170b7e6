"""Sharded weights (DTensor, FSDP2), ZeRO and resharded checkpoints, in two processes on the CPU."""

import copy

import pytest
import torch
from torch import multiprocessing

from tests.adamp import two_processes
from tests.adamp.two_processes import LAYOUTS, OPTIMIZERS, network, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("two")
    multiprocessing.spawn(two_processes.run, args=(str(path),), nprocs=2)
    return path


@pytest.fixture(scope="module")
def results(folder):
    return torch.load(folder / "results.pt", weights_only=True)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sharded_weights_make_the_steps_of_whole_ones(results, layout, name):
    apart, moved = results["layout", layout, name]
    assert apart <= 1e-10 < 1e-3 < moved


def test_a_step_needs_one_collective_whatever_the_groups_and_placements(results):
    assert results["collectives"] == [1, 1, 0]


def test_replicas_stay_bitwise_equal(results):
    assert results["ranks agree"]


@pytest.mark.parametrize("name", ["sgdp", "adamp"])
def test_fsdp2_trains_as_one_process(results, name):
    assert results["fsdp2"][name] <= 1e-10


@pytest.mark.parametrize("name", ["sgdp", "adamp"])
@pytest.mark.filterwarnings("ignore")  # of torch.distributed.checkpoint about running alone
def test_a_checkpoint_of_two_processes_goes_on_in_one(folder, results, name):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    cls, options = OPTIMIZERS[name]
    plain, model = network(), network()
    expected, optimizer = cls(plain.parameters(), **options), cls(model.parameters(), **options)
    train(plain, expected, 6)
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state = {"model": model_state, "optimizer": copy.deepcopy(optimizer_state)}
    dcp.load(state, checkpoint_id=str(folder / name), no_dist=True)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    train(model, optimizer, 3, start=3)
    for p, q in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["sgdp", "adamp"])
def test_zero_redundancy_makes_no_difference(results, name):
    assert results["zero"][name] <= 1e-10


@pytest.mark.parametrize("keep_originals", [False, True])
def test_the_older_fsdp_is_refused_by_name_of_the_newer(results, keep_originals):
    assert "was flattened by FullyShardedDataParallel" in results["fsdp1"][keep_originals]
