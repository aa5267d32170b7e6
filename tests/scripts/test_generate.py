"""Reading a run back and drawing text from it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evidence.runs.run import ReadError
from launch.trained.restore import build, weights
from scripts.generate import generate, main
from tasks.language import DropoutLstm, TransformerXL
from tests.commands import ROOT, call
from tests.tasks.language.conftest import sentences

WORDS = [
    "experiment=wikitext103-txl", "opt=adamw", "train.epochs=1", "task.epoch_steps=3", "train.batch_size=4",
    "pictures=false", "model.width=16", "model.heads=1", "model.head_width=16", "model.layers=1",
    "model.inner_width=16", "model.cutoffs=[20]", "train.threads=1", "task.tests={}", "train.progress=false",
    "data.vocabulary_size=null", "data.name=sentences",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    for number, split in enumerate(("train", "valid", "test")):
        (folder / f"{split}.txt").write_text(sentences(number, 60), encoding="utf-8")
    cache = os.environ | {"ADAMP_DATA": str(folder / "cache")}
    done = call(
        *WORDS, f"data.root={folder}", f"paths.runs={folder}/runs", f"paths.reports={folder}/reports", env=cache
    )
    assert done.code == 0, done.err
    (found,) = (folder / "runs" / "wikitext103-txl").iterdir()
    return found


def test_a_trained_model_goes_on_with_a_text_and_the_seed_decides(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for seed in (0, 0, 1):
        assert main([f"run={run}", "prompt=w1 w2 zyzzyva", "length=12", f"seed={seed}"]) == 0
        out = capsys.readouterr()
        texts.append(out.out)
        assert "read as <unk>: zyzzyva" in out.err
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith("w1 w2 zyzzyva ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "run=FOLDER is missing"),
        (["run=nowhere"], "holds no run.json"),
        (["run=RUN", "length=-1"], "length=-1: must be a whole number"),
        (["run=RUN", "temperature=nan"], "temperature=nan"),
        (["run=RUN", "checkpoint=worst"], "choose one of best, last"),
        (["run=RUN", "data_root=nowhere"], "holds no train text"),
        (["run=RUN", "colour=red"], "unknown argument 'colour=red'"),
    ],
)
def test_wrong_words_are_named(words: list[str], message: str, run: Path) -> None:
    with pytest.raises(ReadError, match=message):
        main([word.replace("RUN", str(run)) for word in words])


def test_a_configuration_from_elsewhere_builds_nothing_outside_the_suite() -> None:
    with pytest.raises(ReadError, match="may build only what lies in tasks and adamp"):
        build({"_target_": "os.system", "command": "true"})


def test_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.pt").write_bytes(b"no archive")
    with pytest.raises(ReadError, match=r"best\.pt: cannot be read"):
        weights(tmp_path)


@pytest.mark.parametrize("kind", ["txl", "lstm"])
def test_drawing_word_by_word_uses_the_probabilities_of_one_pass(kind: str) -> None:
    torch.manual_seed(0)
    size = {"layers": 2, "width": 16}
    net = DropoutLstm(30, hidden=16, **size) if kind == "lstm" else TransformerXL(
        30, heads=1, head_width=16, inner_width=16, memory=50, **size
    )  # fmt: skip
    net.eval()
    drawn = generate(net, [3, 4], length=10, temperature=0, top=0, seed=0)
    with torch.no_grad():
        for i, token in enumerate(drawn):
            logs, _ = net.log_probabilities(torch.tensor([[3, 4, *drawn[:i]]]), None)  # type: ignore[operator]
            assert int(logs.argmax()) == token
    assert generate(net, [3, 4], length=10, temperature=1.0, top=1, seed=5) == drawn


def test_help_says_every_option() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.generate", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and "temperature=1.0" in done.stdout
