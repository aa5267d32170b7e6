"""Sharded weights (DTensor, FSDP2), ZeRO and resharded checkpoints, in two processes on the CPU."""

import copy
from pathlib import Path

import pytest
import torch
from torch import multiprocessing

from tests.adamp import two_processes
from tests.adamp.problems import filter_network
from tests.adamp.sharded_table import COLUMNS, FSDP2_RUNS_HERE, ROWS
from tests.adamp.two_processes import LAYOUTS, OPTIMIZERS, train

needs_fsdp2 = pytest.mark.skipif(not FSDP2_RUNS_HERE, reason="fully_shard of torch 2.6 does not train on the CPU")


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


@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocks_of_columns_are_projected_or_refused(results, layout):
    result = results["blocks of columns", layout]
    if layout in ("rows", "rows and replicas", "rows, then within"):
        assert "first dimension is sharded" in result
    else:
        apart, moved = result
        assert apart <= 1e-10 < 1e-4 < moved  # a slice of one entry decays only


def test_the_search_normalises_over_the_examples_of_one_process(results):
    assert results["sync batch norm"] == {"0.weight": "rows"}


def test_the_search_refuses_a_sharded_model_and_says_what_to_do(results):
    message, groups = results["sharded model"]
    assert "find the marks before the model is sharded" in message
    assert groups == {"tensor": 1, False: 6}


def test_a_step_needs_one_collective_whatever_the_groups_and_placements(results):
    assert results["collectives"] == [1, 1, 0]


def test_replicas_stay_bitwise_equal(results):
    assert results["ranks agree"]


@needs_fsdp2
@pytest.mark.parametrize("name", ["sgdp", "adamp", "adarem-s"])
def test_fsdp2_trains_as_one_process(results, name):
    assert results["fsdp2"][name] <= 1e-10


@needs_fsdp2
@pytest.mark.parametrize("name", ["sgdp", "adamp", "adarem-s"])
@pytest.mark.filterwarnings("ignore")  # of torch.distributed.checkpoint about running alone
def test_a_checkpoint_of_two_processes_goes_on_in_one(folder, results, name):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    cls, options = OPTIMIZERS[name]
    plain, model = filter_network(), filter_network()
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


STAGES = ("step", "save", "load 2->1", "load 1->2", "probe")
REFUSED = {("AdaRem, global", "ZeRO"), ("AdaRemS, global", "ZeRO")}


@pytest.mark.parametrize(
    "column", [pytest.param(name, marks=needs_fsdp2) if "FSDP2" in name else name for name in COLUMNS]
)
@pytest.mark.parametrize("row", ROWS)
def test_a_sharded_run_equals_the_whole_one_or_is_refused(results, row, column):
    result = results["table"][row, column]
    if (row, column) in REFUSED:
        assert "in ZeroRedundancyOptimizer" in result["refused"] and result["moved"] == 0
        return
    assert result["moved"] > 1e-3
    assert max(result[stage] for stage in STAGES) <= 1e-10


DOCUMENTED_AS = {
    "`SGDP`, `AdamP`, `AdaRem`, `AdaRemS`": [
        "SGDP",
        "SGDP, project_buffer",
        "SGDP by tensors",
        "AdamP",
        "AdamP by columns",
        "AdaRem",
        "AdaRemS",
    ],
    '`AdaRem`, `AdaRemS` with `"global"`': ["AdaRem, global", "AdaRemS, global"],
    "`project_updates`, `shrink_weights`, `NormProbe`": [
        "project_updates",
        "project_updates by columns",
        "shrink_weights by columns",
        "shrink_weights by tensors",
        "shrink_weights, gradient",
        "shrink_weights, weights",
    ],
}


def test_the_table_of_the_docs_is_the_tested_one():
    text = (Path(__file__).parents[2] / "docs" / "optimizers.md").read_text(encoding="utf-8")
    lines = text.partition("### Sharded weights")[2].partition("\n## ")[0].splitlines()
    header, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    documented = {(row[0], column): cell for row in body for column, cell in zip(header[1:], row[1:], strict=True)}
    tested = {}
    for label, rows in DOCUMENTED_AS.items():
        for row in rows:
            for column in COLUMNS:
                tested[label, "2-D mesh" if "2-D mesh" in column else column] = (
                    "refused" if (row, column) in REFUSED else "="
                )
    assert documented == tested
    assert {row for rows in DOCUMENTED_AS.values() for row in rows} == ROWS.keys()


def test_terms_of_a_sum_are_refused(results):
    assert all("needs values, not terms of a sum" in error for error in results["terms of a sum"].values())


def test_an_ordinary_gradient_of_a_sharded_weight_is_refused_before_weights_move(results):
    outcomes = list(results["ordinary gradients"].values())
    assert len(outcomes) == 5
    for error, unmoved in outcomes:
        assert "is a DTensor and its gradient an ordinary tensor" in error and unmoved


def test_the_shrink_that_diverges_is_noticed_on_every_process(results):
    whole, *sharded = results["shrink warnings"]
    assert "for the largest filter" in whole[0] and sharded == [whole] * 3


def test_an_optimizers_own_state_dict_goes_on_in_fewer_or_more_processes(results):
    assert max(map(max, results["plain state"].values())) <= 1e-10
