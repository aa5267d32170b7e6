"""The commands' configuration: the paper's settings, and what a wrong value says before the first step."""

import pytest

from tests import commands
from tests.configurations import composed
from tests.tasks.rebias.sets import write_imagenet9, write_mnist


def test_biased_mnist_at_full_scale_holds_the_papers_settings():
    config = composed("experiment=biased-mnist", "opt=adamp", "scale=full", "data_root=/data/mnist", "rho=0.999")
    assert (config["train"]["epochs"], config["train"]["batch_size"]) == (80, 256)
    assert (config["opt"]["lr"], config["opt"]["weight_decay"]) == (1e-3, 1e-4)
    assert config["schedule"]["lr"]["milestones"] == [0.25, 0.5, 0.75]  # epochs 20, 40, 60
    assert (config["task"]["rho"], config["task"]["sigma"], config["task"]["method"]) == (0.999, 1.0, "rebias")
    assert (config["task"]["f"]["kernel_size"], config["task"]["g"]["kernel_size"]) == (7, 1)
    assert config["data"]["root"] == "/data/mnist"


def test_imagenet9_at_full_scale_holds_the_papers_settings():
    config = composed("experiment=imagenet9", "opt=adam", "scale=full", "data_root=/data/imagenet")
    assert (config["train"]["epochs"], config["train"]["batch_size"]) == (120, 128)
    assert (config["opt"]["lr"], config["opt"]["weight_decay"]) == (1e-3, 1e-4)
    assert config["schedule"]["lr"]["whole_epochs"] is True
    assert config["task"]["sigma"] == "median"
    assert (config["data"]["image_size"], config["task"]["min_cell_count"]) == (224, 10)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["experiment=biased-mnist", "rho=1.2"], "rho=1.2: must be from 0 to 1"),
        (["experiment=biased-mnist", "rho=nan"], "rho=nan: must be from 0 to 1"),
        (["experiment=biased-mnist", "task.method=none"], "task.method=none"),
        (["experiment=biased-mnist", "scale=full", "data_root=/nowhere"], "data_root=/nowhere: does not exist"),
        (["experiment=imagenet9", "scale=full"], "data_root is not set"),
    ],
)
def test_a_wrong_value_is_one_line_without_a_traceback(words, said, tmp_path):
    done = commands.call(*words, "pictures=false", "train.progress=false", f"paths.runs={tmp_path}")
    assert done.code == 2
    assert said in done.err
    assert "Traceback" not in done.err


def test_a_truncated_file_and_missing_clusters_stop_the_command(tmp_path):
    path = write_mnist(tmp_path / "mnist") / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    words = ["pictures=false", "train.progress=false", f"paths.runs={tmp_path}/runs", "scale=full"]
    done = commands.call("experiment=biased-mnist", f"data_root={tmp_path}/mnist", *words)
    assert (done.code, "t10k-images-idx3-ubyte: truncated" in done.err) == (2, True)
    root = write_imagenet9(tmp_path / "imagenet", train=1, val=1)
    done = commands.call("experiment=imagenet9", f"data_root={root}", "data.clusters=/nowhere.csv", *words)
    assert (done.code, "data.clusters=/nowhere.csv: cannot be read" in done.err) == (2, True)
