"""What comes from outside cannot run code, leave its folder, inject into a page, or carry a secret out."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import pickle
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.base import InputError
from tasks.data.cifar import FILES, read_batch
from tasks.data.files import stays_inside
from tasks.engine import checkpoint
from tasks.weights import read_weights
from tests import commands
from tests.engine import toys

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("adamp", "tasks", "evidence", "launch", "scripts", "benchmarks")
SOURCES = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
# Calls that hand control to what they read, or to a shell.
FORBIDDEN = {
    "eval", "exec", "pickle.load", "pickle.loads", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load",
    "yaml.full_load", "marshal.loads", "shelve.open", "joblib.load", "tempfile.mktemp", "subprocess.getoutput",
    "subprocess.getstatusoutput", "torch.hub.load", "cloudpickle.loads", "dill.loads",
}  # fmt: skip


# Who may, and why.
ALLOWED = {
    "launch/slurm.py: pickle.load": "job files that submitit wrote in the user's own folder a moment before",
}


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def calls() -> Iterator[tuple[Path, ast.Call]]:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield path, node


def given(node: ast.Call, name: str) -> str | None:
    return next((ast.unparse(k.value) for k in node.keywords if k.arg == name), None)


def test_no_source_calls_what_runs_the_content_of_a_file_or_a_shell() -> None:
    wrong = []
    for path, node in calls():
        name, where = called(node), f"{path.relative_to(ROOT)}:{node.lineno}"
        if name in FORBIDDEN and f"{path.relative_to(ROOT).as_posix()}: {name}" not in ALLOWED:
            wrong.append(f"{where}: {name}")
        if name == "torch.load" and given(node, "weights_only") != "True":
            wrong.append(f"{where}: torch.load without weights_only=True")
        if name in ("np.load", "numpy.load") and given(node, "allow_pickle") not in (None, "False"):
            wrong.append(f"{where}: np.load with pickles")
        if name.startswith("subprocess.") and given(node, "shell") not in (None, "False"):
            wrong.append(f"{where}: a shell")
        if name.split(".")[-1] in ("extractall", "extract") and "files" in name + str(path.name) and len(node.args) < 2:
            wrong.append(f"{where}: {name} without a check of paths")
        if name == "subprocess.run" and node.args and isinstance(node.args[0], ast.JoinedStr | ast.Constant):
            wrong.append(f"{where}: a command in one string")
    assert not wrong


def test_no_archive_is_unpacked_onto_the_disk_without_a_check_of_its_paths() -> None:
    """Members are read into memory, by name, so that one called ../../x has nowhere to go; or torn out by `data`."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path, node in calls()
        if called(node).split(".")[-1] in ("extractall", "unpack_archive") and given(node, "filter") != "'data'"
    ]
    assert not found


def test_unpicklers_of_our_own_refuse_every_name_but_those_listed() -> None:
    classes = [
        (path, node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and any("Unpickler" in ast.unparse(base) for base in node.bases)
    ]
    assert {path.relative_to(ROOT).as_posix() for path, _ in classes} == {
        "tasks/data/cifar.py",
        "scripts/prepare/mnist.py",
    }
    for _, node in classes:
        (find,) = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "find_class"]
        assert "raise" in ast.unparse(find) and "getattr" not in ast.unparse(find)


def test_preparation_that_downloads_verifies_a_sha256_before_anything_is_used() -> None:
    fetching = re.compile(r'"download"|download=True|urlopen|urlretrieve|npm", "pack|curl|wget')
    for path in (ROOT / "scripts" / "prepare").glob("*.py"):
        text = path.read_text()
        if fetching.search(text):
            assert "sha256" in text and re.search(r"hexdigest\(\)\)? *!= |!= v\]|digest != |_verify|verify", text), (
                path.name
            )


class Touch:
    """Unpickling this makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.canary),))


def poisoned_zip(path: Path, canary: Path) -> None:
    """A torch archive whose pickle asks for os.mkdir."""
    torch.save({"networks": {}}, path)
    content = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(content, "w") as new:
        for name in old.namelist():
            data = pickle.dumps(Touch(canary), protocol=2) if name.endswith("data.pkl") else old.read(name)
            new.writestr(name, data)
    path.write_bytes(content.getvalue())


def read_array(path: Path) -> Any:
    return np.load(path)


READERS: dict[str, Callable[[Path], Any]] = {
    "checkpoint": lambda path: checkpoint.load(path, run="e/r"),
    "weights": read_weights,
    "cifar": lambda path: read_batch(path, md5=None),
    "cache": lambda path: np.load(path, mmap_mode="r"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("wrapping", ["plain pickle", "torch archive", "object array"])
def test_a_file_that_would_run_code_when_unpickled_runs_none(reader: str, wrapping: str, tmp_path: Path) -> None:
    canary, path = tmp_path / "ran", tmp_path / FILES["val"][0]
    if wrapping == "plain pickle":
        path.write_bytes(pickle.dumps({"data": Touch(canary), "labels": [1]}, protocol=2))
    elif wrapping == "torch archive":
        poisoned_zip(path, canary)
    else:
        with path.open("wb") as file:
            np.save(file, np.array([Touch(canary)], dtype=object), allow_pickle=True)
    with contextlib.suppress(InputError, ValueError):  # numpy opens an archive, and reads of it what is asked for
        found = READERS[reader](path)
        assert reader == "cache" and isinstance(found, np.lib.npyio.NpzFile)
    assert not canary.exists()


def test_names_that_leave_a_folder_are_known() -> None:
    for name in ("../x", "a/../../x", "/etc/passwd", "", "a\0b", ".."):
        assert not stays_inside(name)
    for name in ("x.jpg", "a/b/c.jpg", "..x/y", "a b\nc.jpg", "ünïcode/é.jpg"):
        assert stays_inside(name)


def test_a_prepared_archive_is_read_by_member_and_a_member_of_another_name_is_left(tmp_path: Path) -> None:
    path = tmp_path / "shakespeare.tar"
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("../../evil.txt")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
    from evidence.runs.run import ReadError
    from scripts.prepare import shakespeare

    with pytest.raises(ReadError, match="sha256"):  # before it is opened at all
        shakespeare.texts(path)
    assert not (tmp_path.parent / "evil.txt").exists()


SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_sesameSESAMEsesame",
    "AWS_SECRET_ACCESS_KEY": "sesame+open/SESAME",
}


def test_no_secret_of_the_environment_reaches_a_file_or_the_terminal(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    env = {**environment, **SECRETS, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    more = ("train.epochs=2", "pictures=true", "logger=wandb")
    done = commands.run(commands.options(tmp_path, *more), env)
    assert done.code == 0, done.err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"run.json", "metrics.jsonl", "report.html", "last.pt"} <= names
    assert any(name.endswith(".wandb") for name in names)
    for secret in SECRETS.values():
        assert secret not in done.out + done.err
        assert not [str(path) for path in files if secret.encode() in path.read_bytes()]


EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


def test_pages_escape_every_name_that_a_record_holds(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    folder = runs / "toys" / "evil"
    made = toys.trainer(toys.Toy(), folder)
    made.fit()
    made.record.update(status="finished")  # type: ignore[union-attr]
    toys.close(made)
    path = folder / "run.json"
    record = json.loads(path.read_text())
    record.update(
        name=EVIL, experiment=EVIL, opt_name=EVIL, scale=EVIL, status="failed", error=EVIL, command=EVIL,
        monitor="val/top1",
        data={"name": EVIL, "licence": EVIL, EVIL: EVIL}, git={"commit": EVIL, "dirty": True}, versions={EVIL: EVIL},
        hardware={"machine": EVIL}, notices={EVIL: 3}, config={"tag": EVIL, EVIL: EVIL, "opt": {EVIL: EVIL}},
        scores={"val/top1": 50.0, EVIL: 1.0}, best={"score": 50.0, "epoch": 1}, model={"parameters": 3, EVIL: EVIL},
    )  # fmt: skip
    path.write_text(json.dumps(record))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 13, "epoch": 4.0, EVIL: 1.0, f"norm/{EVIL}": 1.0, "train/loss": 1.0}) + "\n")
    from evidence.site.reports import write_experiment_report, write_run_report

    pages = [write_run_report(folder), write_experiment_report(runs, "toys", tmp_path / "reports")]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "<script>alert" not in text and "<img src=x" not in text, page
        assert "&lt;script&gt;alert" in text


@pytest.mark.parametrize(
    "tag", ["../../evil", "/evil", "a\nb", "a b;rm -rf x", "é\u202eevil", "x" * 500, "..", "$(touch x)"]
)
def test_a_run_s_folder_is_one_plain_name_whatever_the_tag(tag: str) -> None:
    from launch.compose import run_name

    config = {"opt_name": "sgd", "opt": {"lr": 0.1}, "scale_name": "mini", "train": {"seed": 0}, "tag": tag}
    name = run_name(config, [f"tag={tag}", f"data.x={tag}"])
    assert "/" not in name and "\n" not in name and len(name) <= 200 and name not in (".", "..")
    assert not re.search(r"[;$()\s]", name)
