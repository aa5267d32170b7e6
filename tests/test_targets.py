"""What a configuration may call, wherever it comes from. Every target here is harmless: it would make a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from launch.targets import check_loaded, check_name, check_targets
from launch.trained import restore
from launch.trust import without_trust
from tasks.base import InputError
from tests import commands
from tests.configurations import CONFIGS, targets


def test_every_configuration_of_the_suite_names_only_what_is_allowed() -> None:
    files = [OmegaConf.to_container(OmegaConf.load(path)) for path in sorted(CONFIGS.rglob("*.yaml"))]
    named = {node["_target_"] for file in files for node in targets(file)}
    assert len(named) > 50
    check_loaded([{"_target_": name} for name in sorted(named)])
    check_targets({"figures": [name for file in files if isinstance(file, dict) for name in file.get("figures") or ()]})


@pytest.mark.parametrize("name", [
    "os.mkdir", "adamp", "tasksmith.Task", "tasks.engine.processes.spawn", "tasks.engine.wandb_files.Path.mkdir",
    "adamp.kernels.cpu_build.subprocess.run", "tasks.base.__builtins__.open", "torch.hub.load", 3, None,
])  # fmt: skip
def test_a_target_outside_the_list_is_refused_by_its_name(name: object) -> None:
    with pytest.raises(InputError, match=r"opt\._target_ is .*ADAMP_MODULES"):
        check_name("opt._target_", name)


@pytest.mark.parametrize(
    "name", ["tasks.data.cifar.pickle.loads", "tasks.data.cifar.Path", "torch.optim.lr_scheduler.StepLR"]
)
def test_what_an_allowed_module_only_imports_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="comes from"):
        check_loaded({"_target_": name})
    if name.startswith("tasks."):
        with pytest.raises(restore.ReadError, match="may build only"):
            restore.build({"_target_": name})


@pytest.mark.parametrize("words", [
    ["opt._target_=os.mkdir", "+opt.path={0}"], ["+task.augment={{_target_:os.mkdir,path:{0}}}"],
    ["+logger.mine={{_target_:tasks.data.cifar.Path.mkdir,self:{0}}}"], ["figures=[os.mkdir]", "pictures=true"],
    ["phases=[{{epochs:1,opt:{{_target_:os.mkdir,path:{0}}}}}]"],
])  # fmt: skip
def test_a_command_that_names_foreign_code_ends_before_anything_is_called(words: list[str], tmp_path: Path) -> None:
    made = tmp_path / "made"
    done = commands.call(*commands.options(tmp_path, *(word.format(made) for word in words)))
    assert done.code == 2, done.err
    assert "error: " in done.err and "ADAMP_MODULES" in done.err
    assert not made.exists() and not (tmp_path / "runs").exists()


def test_a_module_of_ones_own_counts_when_the_environment_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_optimizers.py").write_text("from torch.optim import SGD\n\n\nclass Mine(SGD):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = {"opt": {"_target_": "my_optimizers.Mine"}, "figures": ["my_optimizers.draw"]}
    with pytest.raises(InputError, match="ADAMP_MODULES"):
        check_targets(config)
    monkeypatch.setenv("ADAMP_MODULES", "another, my_optimizers")
    check_targets(config)
    check_loaded(config)


@pytest.mark.parametrize("words", [
    ["+hydra.callbacks.a._target_=os.mkdir", "+hydra.callbacks.a.path={0}"], ["--config-dir={0}"], ["-cd", "{0}"],
    ["--config-name={0}"], ["--experimental-rerun={0}"], ["hydra.searchpath=[file://{0}]"],
    ["hydra.job_logging.a={{'()':os.mkdir}}"], ["+hydra.job.env_set.LD_PRELOAD={0}"], ["hydra/job_logging=x"],
    ["hydra.launcher._target_=os.mkdir"], ["opt@hydra.callbacks.a=sgd"], ["hydra.sweeper._target_=os.mkdir"],
])  # fmt: skip
def test_words_that_set_up_hydra_itself_need_a_word_of_trust(words: list[str], tmp_path: Path) -> None:
    made = tmp_path / "made"
    done = commands.call(*(word.format(made) for word in words), *commands.options(tmp_path))
    assert done.code == 2, done.err
    assert "Add trusted=true if you know what it names" in done.err
    assert not list(tmp_path.iterdir())


def test_options_of_launchers_and_sweeps_need_no_word_of_trust() -> None:
    words = ["hydra.launcher.partition=gpu", "hydra.sweeper.params.opt=sgd", "hydra.mode=RUN", "hydra.run.dir=x"]
    assert without_trust(words) == words
    assert without_trust(["trusted=true", "--config-dir=x"]) == ["--config-dir=x"]
