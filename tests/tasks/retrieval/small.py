"""A small task and a short course of training, for the tests of retrieval."""

from __future__ import annotations

import json
from functools import partial

import torch

from adamp import AdamP
from tasks.engine.phases import Phase
from tasks.engine.schedules import constant, step
from tasks.retrieval import EmbeddingNet, Retrieval
from tests.engine import toys

SMALL = partial(EmbeddingNet, "resnet18", width=0.0625, features=16)
RULES = ({"match": "model.proxies", "lr_scale": 100},)


def make(data, model=SMALL, **options):
    torch.manual_seed(0)
    return Retrieval(data, model, **{"batch_size": 12, "seed": 0, **options})


def adam(groups):
    return AdamP(groups, lr=1e-3)


def two_phases():
    """The paper's course in small: the embedding and the proxies alone, then everything at half the rate."""
    halved = partial(step, milestones=(0, 0.5), factor=0.5)
    return [Phase(1, adam, {"lr": constant}, trainable="model.(embedding|proxies)"), Phase(2, None, {"lr": halved})]


def fit(task, folder, *, world=toys.CPU, rules=RULES, **values):
    made = toys.trainer(task, folder, phases=two_phases(), world=world, rules=rules, clip_value=10.0, **values)
    made.fit()
    toys.close(made)
    return made


def scores(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "val/recall_at_1" in line]
