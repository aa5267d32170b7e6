"""Every configuration composes, says what it claims, and calls constructors with arguments they take."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_method, get_object
from omegaconf import DictConfig, OmegaConf

import launch.compose as front  # registers the schema of train.*
from launch import schema
from tasks.engine.config import RESULT_NEUTRAL_KEYS, Train, config_hash, differing_keys, result_keys
from tasks.engine.schedules import step
from tests.configurations import CONFIGS, check_arguments, composed, targets


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def rows(experiment: str) -> list[str]:
    """Return the optimizers for which an experiment's own file has a row; sgd where it has none."""
    node = OmegaConf.load(CONFIGS / "experiment" / f"{experiment}.yaml")
    assert isinstance(node, DictConfig)
    return [str(opt) for opt in node.get("recipe") or ["sgd"]]


# Every row of every experiment, every optimizer, every scale: their full product would be minutes of the same.
CELLS = [(experiment, opt, "mini") for experiment in names("experiment") for opt in rows(experiment)]
CELLS += [(experiment, rows(experiment)[-1], "full") for experiment in names("experiment")]
CELLS += [("imagenet-resnet18", opt, "mini") for opt in names("opt") if opt not in rows("imagenet-resnet18")]


@pytest.mark.parametrize(("experiment", "opt", "scale"), CELLS)
def test_every_experiment_composes_with_its_optimizers_at_every_scale(experiment: str, opt: str, scale: str) -> None:
    config = composed(f"experiment={experiment}", f"opt={opt}", f"scale={scale}")
    assert (config["experiment_name"], config["opt_name"], config["scale_name"]) == (experiment, opt, scale)
    check_arguments(config)
    schema.check_options(config)
    schema.check_arguments(config)
    row = config["recipe"][opt]
    assert {key: config["opt"][key] for key in row} == row
    Train(**config["train"])


@pytest.mark.parametrize("experiment", names("experiment"))
def test_an_experiment_leaves_the_data_to_its_scale(experiment: str) -> None:
    # The scale's file comes after the experiment's, so an entry under data would be lost in silence.
    assert "data" not in OmegaConf.load(CONFIGS / "experiment" / f"{experiment}.yaml")


@pytest.mark.parametrize("scale", ["mini", "full"])
def test_every_task_names_its_data_at_both_scales_and_the_command_line_another(scale: str) -> None:
    assert names(f"scale/{scale}") == [task for task in names("task") if task != "none"]
    words = ["experiment=coco-ssd300", f"scale={scale}", "data_root=/data"]
    assert composed(*words)["data"]["_target_"].endswith({"mini": "FashionScenes", "full": "CocoSet"}[scale])
    assert composed(*words, "data=tree_crowns")["data"]["_target_"].endswith("TreeCrowns")


@pytest.mark.parametrize(
    "override",
    [  # unit_linear has no width, which this experiment sets
        f"{group}={name}"
        for group in ("data", "model", "schedule", "logger")
        for name in names(group)
        if name not in ("none", "unit_linear")
    ],
)
def test_every_choice_of_a_group_composes_and_names_arguments_that_exist(override: str) -> None:
    check_arguments(composed("experiment=imagenet-resnet18", override))


@pytest.mark.parametrize("sweep", names("sweep"))
def test_every_sweep_names_an_experiment_and_its_grid_composes(sweep: str) -> None:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("train", [f"sweep={sweep}"], return_hydra_config=True)
        assert cfg.hydra.runtime.choices.experiment in names("experiment")
        grid = OmegaConf.to_container(cfg.hydra.sweeper.params)
    assert isinstance(grid, dict)
    cell = [f"{key}={str(values).split(',')[-1]}" for key, values in grid.items()]
    check_arguments(composed(f"sweep={sweep}", *cell))


def test_a_sweep_over_one_key_gives_each_cell_a_run_of_its_own() -> None:
    cells = [["sweep=claims-norms", f"opt={opt}", "opt.weight_decay=0", "train.seed=1"] for opt in names("opt")]
    assert len({front.run_name(composed(*cell), cell) for cell in cells}) == len(cells)


# Where a file departs from its constructor, on purpose.
DEPARTURES = {
    "SGD": {"momentum": 0.9, "nesterov": True},
    "SGDP": {"momentum": 0.9, "nesterov": True},
    "Lamb": {"always_adapt": True},  # LAMB without decay is LAMB
    "Muon": {"nesterov": True},  # as torch's and the method's author
    "RMSpropTF": {"eps": 1e-3, "momentum": 0.9},  # timm's recipe
    "Synthetic": {},
    "FashionMnist": {},
}


FILE_DEPARTURES = {
    "coco_with_boxes.yaml": {"keep_empty": False},
    "language_ptb.yaml": {"random_lengths": True},
    "penn_treebank.yaml": {"order": "appearance"},
    "shakespeare_chars.yaml": {"unit": "char"},
    "shakespeare_top3000.yaml": {"max_words": 3000},
}


@pytest.mark.parametrize("opt", names("opt"))
def test_the_values_that_an_optimizer_file_shows_are_the_constructors_own(opt: str) -> None:
    for node in targets(composed("experiment=imagenet-resnet18", f"opt={opt}")["opt"]):
        target = get_object(node["_target_"])
        expected = {k: p.default for k, p in inspect.signature(target).parameters.items()}
        expected |= DEPARTURES.get(target.__name__, {})
        for key, value in node.items():
            # lr and weight_decay are the recipe's; an optimizer inside another is a node of its own.
            if not key.startswith("_") and key not in ("lr", "weight_decay") and not isinstance(value, dict):
                assert value == (list(expected[key]) if isinstance(expected[key], tuple) else expected[key]), key


@pytest.mark.parametrize("group", ["data", "schedule", "task"])
def test_the_values_that_other_files_show_are_the_constructors_own(group: str) -> None:
    for path in sorted((CONFIGS / group).glob("*.yaml")):
        for node in targets(OmegaConf.to_container(OmegaConf.load(path))):
            defaults = {k: p.default for k, p in inspect.signature(get_object(node["_target_"])).parameters.items()}
            for key, value in node.items():
                default = defaults.get(key, inspect.Parameter.empty)
                if (
                    key.startswith("_")
                    or key in ("name", "licence")
                    or default in (inspect.Parameter.empty, None)
                    or str(value).startswith("${")
                ):
                    continue
                shown = list(default) if isinstance(default, tuple) else default
                shown = FILE_DEPARTURES.get(path.name, {}).get(key, shown)
                assert value == shown, f"{path.name}: {key}"


def test_imagenet_resnet18_at_full_scale_holds_the_papers_settings() -> None:
    config = composed("experiment=imagenet-resnet18", "scale=full", "data_root=/data/imagenet", "opt=adamp")
    assert (config["train"]["epochs"], config["train"]["batch_size"]) == (100, 256)
    assert config["schedule"]["lr"]["_target_"].endswith("cosine")
    assert (config["schedule"]["lr"]["final"], config["schedule"]["lr"]["warmup_epochs"]) == (0.0, 0.0)
    assert config["data"]["_target_"].endswith("ImageFolderSet")
    assert config["data"]["root"] == "/data/imagenet"
    assert config["data"]["image_size"] == 224
    assert config["model"]["width"] == 1.0
    assert config["recipe"] == {
        "sgd": {"lr": 0.1, "weight_decay": 1e-4},
        "sgdp": {"lr": 0.1, "weight_decay": 1e-5},
        "adam": {"lr": 1e-3, "weight_decay": 1e-4},
        "adamw": {"lr": 1e-3, "weight_decay": 0.1},
        "adamp": {"lr": 1e-3, "weight_decay": 1e-2},
    }


@pytest.mark.parametrize("ball", ["linf", "l2"])
def test_the_later_recipe_of_the_adversarial_code_is_whole(ball: str) -> None:
    config = composed(f"experiment=cifar10-pgd-{ball}-2020", "scale=full", "data_root=/data")
    assert (config["model"]["negative_slope"], config["task"]["attack"]) == (0.1, f"paper-{ball}")
    assert [config["opt"][key] for key in ("lr", "momentum", "nesterov", "weight_decay")] == [0.1, 0.9, False, 2e-4]
    milestones, steps = config["schedule"]["lr"]["milestones"], 50_000 // config["train"]["batch_size"]
    iterations = (39_999, 40_000, 59_999, 60_000)
    factors = [step(i / steps, config["train"]["epochs"], milestones=milestones) for i in iterations]
    assert factors == pytest.approx([1, 0.1, 0.1, 0.01])


def test_mini_scale_needs_no_network_and_no_data_root_and_keeps_the_recipe() -> None:
    mini = composed("experiment=imagenet-resnet18")
    assert mini["data"]["name"] == "fashion_mnist_20k"
    assert mini["recipe"] == composed("experiment=imagenet-resnet18", "scale=full", "data_root=x")["recipe"]


def test_the_command_line_wins_over_the_recipe_and_the_scale() -> None:
    config = composed("experiment=imagenet-resnet18", "opt=sgdp", "opt.lr=0.3", "train.epochs=7", "model.width=0.5")
    assert (config["opt"]["lr"], config["opt"]["weight_decay"]) == (0.3, 1e-5)
    assert (config["train"]["epochs"], config["model"]["width"]) == (7, 0.5)


def test_an_optimizer_without_a_row_in_the_experiment_falls_back_on_its_own(tmp_path: Path) -> None:
    (tmp_path / "opt").mkdir()
    text = (CONFIGS / "opt" / "sgdp.yaml").read_text().replace("sgdp", "newcomer")
    (tmp_path / "opt" / "newcomer.yaml").write_text(text.replace("lr: 0.1,", "lr: 0.7,"))
    more = f"hydra.searchpath=[file://{tmp_path}]"
    config = composed("experiment=imagenet-resnet18", "opt=newcomer", more)
    assert (config["opt"]["lr"], config["opt"]["weight_decay"]) == (0.7, 1e-5)
    assert config["recipe"]["sgdp"]["lr"] == 0.1  # the experiment's rows stay
    assert composed("experiment=imagenet-resnet18", "opt=newcomer", more, "opt.lr=0.2")["opt"]["lr"] == 0.2


def test_result_keys_leave_out_exactly_what_changes_no_result() -> None:
    config = composed("experiment=imagenet-resnet18")
    everything = result_keys(config | {"data_root": None}).keys()
    flat = {key for node in ("train",) for key in config[node]}
    assert {f"train.{key}" for key in flat} - everything == {f"train.{key}" for key in RESULT_NEUTRAL_KEYS}
    left_out = {key for key in config if not any(k == key or k.startswith(f"{key}.") for k in everything)}
    # The empty ones have nothing to decide.
    free = {"data_root", "figures", "gpus", "jobs", "paths", "pictures"}
    assert left_out - {key for key in config if config[key] == {}} == free
    assert not {"data.root", "task.data.root", "task.num_workers"} & everything
    for key in ("opt.lr", "opt.weight_decay", "train.seed", "train.batch_size", "data.name", "model.width"):
        assert key in everything


def test_an_option_that_is_off_is_as_good_as_absent_from_an_older_record() -> None:
    config = composed("experiment=imagenet-resnet18")
    older = {key: value for key, value in config.items() if key not in ("normalise", "marks")}
    assert differing_keys(config, older) == []
    assert differing_keys(config | {"normalise": "ws"}, older) == ["normalise: absent -> ws"]


@pytest.mark.parametrize(
    "override",
    ["gpus=2", "data_root=/elsewhere", "train.num_workers=3", "train.checkpoint_minutes=1", "train.timeout_minutes=1",
     "train.progress=false", "logger=wandb", "paths.runs=/elsewhere"],
)  # fmt: skip
def test_where_and_how_a_run_runs_changes_neither_its_name_nor_its_identity(override: str) -> None:
    plain, moved = ["experiment=imagenet-resnet18"], ["experiment=imagenet-resnet18", override]
    a, b = composed(*plain), composed(*moved)
    assert front.run_name(a, plain) == front.run_name(b, moved)
    assert differing_keys(a, b) == []
    assert config_hash(a) == config_hash(b)


OVERRIDES = [
    [],
    ["opt=sgdp"],
    ["opt.lr=0.2"],
    ["opt.lr=0.10000001"],
    ["opt.weight_decay=0"],
    ["train.seed=1"],
    ["train.epochs=2"],
    ["train.epochs=2", "train.batch_size=32"],
    ["scale=full"],
    ["data=fashion_mnist"],
    ["schedule=step"],
    ["opt.momentum=0"],
    ["tag=again"],
    ["data.crop_scale=[0.08,1.0]"],
    ["opt_groups=[{match: bias, weight_decay: 0}]"],
    ["+phases=[{epochs: 1, trainable: 'a/b'}]"],
]


def test_run_names_are_the_same_for_the_same_settings_and_differ_for_others() -> None:
    seen: dict[str, list[str]] = {}
    for more in OVERRIDES:
        words = ["experiment=imagenet-resnet18", *more]
        config = composed(*words)
        name = front.run_name(config, words)
        assert name == front.run_name(composed(*words), list(reversed(words)))
        assert name not in seen, f"{more} and {seen[name]} share a name"
        assert "/" not in name
        assert "\\" not in name
        assert len(name.encode()) <= 200
        seen[name] = more


def test_names_too_long_for_a_file_system_still_differ_in_what_is_cut_off() -> None:
    many = [f"train.{name}={value}" for name, value in {"log_every": 3, "probe_every": 2, "eval_epochs": 2}.items()]
    many += ["data.image_size=32", "model.width=0.125", "train.batch_size=16", "train.max_steps=12", "train.threads=1"]
    many += ["train.clip_norm=1.0", "train.clip_value=1.0", "train.accumulation=2", "train.oscillation_window=5"]
    words = ["experiment=imagenet-resnet18", *many]
    config = composed(*words)
    plain, tagged = front.run_name(config, words), front.run_name(config | {"tag": "again"}, words)
    assert plain != tagged
    assert len(plain) <= 200
    assert len(tagged) <= 200


def test_functions_that_draw_when_a_run_has_ended_exist() -> None:
    """Run folders keep these names too."""
    files = [path for folder in ("experiment", "protocol") for path in (CONFIGS / folder).glob("*.yaml")]
    drawn = {str(name) for path in files for name in OmegaConf.load(path).get("figures") or ()}
    assert drawn >= {f"scripts.{name}" for name in (
        "detections.write_detections", "search.write_neighbours", "filterbank.write_filterbank",
    )}  # fmt: skip
    for name in drawn:
        assert callable(get_method(name))
