"""The workspace on W&B: what it says where the package or an account is missing, and what it holds with them."""

import importlib.util

import pytest

from evidence.runs.run import ReadError
from scripts import wandb_workspace

INSTALLED = importlib.util.find_spec("wandb_workspaces") is not None


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_ENTITY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))


def test_without_an_entity_it_says_which_option_to_give():
    with pytest.raises(ReadError, match="entity=TEAM"):
        wandb_workspace.main([])


def test_without_the_package_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb_workspaces", None)
    monkeypatch.setitem(__import__("sys").modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(ReadError, match="pip install wandb-workspaces"):
        wandb_workspace.main(["entity=team"])


@pytest.mark.skipif(not INSTALLED, reason="wandb-workspaces is not installed")
@pytest.mark.filterwarnings("default")
def test_the_workspace_has_a_panel_a_metric(capsys):
    assert wandb_workspace.main(["entity=team", "experiment=imagenet-resnet18", "--dry"]) == 0
    assert "Norms and effective steps: norm/mean, effective_step/mean" in capsys.readouterr().out
