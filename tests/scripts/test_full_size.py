"""Full-size dry runs: the paper's networks at their own picture sizes on noise, two steps of small batches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import commands

SMALL = (
    "scale=full", "data=synthetic", "data.train_examples=16", "data.val_examples=4", "train.batch_size=8",
    "train.max_steps=2", "train.num_workers=0", "train.threads=1", "train.device=cpu", "train.progress=false",
    "pictures=false",
)  # fmt: skip
SAMPLE = {
    "imagenet-mobilenetv2": ("opt=adamw", 224),
    "imagenet-efficientnet-b3": ("opt=adamp", 300),
    "imagenet-resnet50-cutmix": ("opt=sgdp", 224),
    "imagenet-resnet50-batch16k": ("opt=adamp", 224),
    "ws-se-resnet101": ("opt=sgd_aws", 224),
    "adarem-shufflenetv2": ("opt=adarem_s", 224),
}


@pytest.mark.slow
@pytest.mark.parametrize("experiment", SAMPLE)
def test_two_steps_at_full_size_pass_within_the_memory_of_a_workstation(experiment: str, tmp_path: Path) -> None:
    opt, size = SAMPLE[experiment]
    accumulation = "train.accumulation=2"
    places = (f"paths.runs={tmp_path}/runs", f"paths.reports={tmp_path}/reports")
    done = commands.call(f"experiment={experiment}", opt, accumulation, *SMALL, *places)
    assert done.code == 0, done.err
    (path,) = tmp_path.glob("runs/*/*/run.json")
    record = json.loads(path.read_text())
    assert (record["status"], record["steps"], record["data"]["image_size"]) == ("finished", 2, size)
    assert record["peak_memory_mib"] < 20 * 1024
