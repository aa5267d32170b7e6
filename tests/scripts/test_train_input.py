"""What `scripts/train.py` answers to wrong input: a line or two with value, rule and option, and nothing destroyed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from launch import compose
from launch.output import until_closed
from launch.schema import check_arguments
from tasks.engine import checkpoint
from tasks.engine.run_record import RunRecord
from tests import commands
from tests.configurations import composed
from tests.tasks.data.pictures import write_image_folder


def assert_clear(done: commands.Done, *words: str, code: int = 2) -> None:
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    assert 1 <= len(done.err.splitlines()) <= 2, done.err
    for word in words:
        assert word in done.err, done.err


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three epochs."""
    folder = tmp_path_factory.mktemp("whole")
    assert commands.call(*short(folder)).code == 0
    return folder


@pytest.fixture(scope="module")
def halfway(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, broken off at the ninth save, of step 8; step 7's is there too (step 4 saves twice)."""
    folder = tmp_path_factory.mktemp("halfway")

    class Broken(BaseException):
        pass

    with pytest.MonkeyPatch.context() as patch:
        save, saves = checkpoint.save, 0

        def broken(path: Path, state: dict[str, Any]) -> None:
            nonlocal saves
            save(path, state)
            saves += path.stem == "last"
            if saves == 9:
                raise Broken

        patch.setattr(checkpoint, "save", broken)
        with pytest.raises(Broken):
            commands.call(*short(folder), "train.checkpoint_minutes=0")
    assert (commands.run_folder(folder) / "checkpoints" / "last.previous.pt").exists()
    return folder


@pytest.fixture
def broken_off(halfway: Path, tmp_path: Path) -> Path:
    shutil.copytree(halfway, tmp_path / "copy")
    return tmp_path / "copy"


def short(folder: Path, *more: str) -> list[str]:
    return commands.options(folder, *(() if any("train.epochs=" in m for m in more) else ("train.epochs=3",)), *more)


WRONG: dict[str, tuple[list[str], list[str]]] = {
    "unknown experiment": (["experiment=imagenet-resnet19"], ["experiment=imagenet-resnet19", "imagenet-resnet18"]),
    "unknown optimizer": (["opt=sgdq"], ["opt=sgdq is not known", "adamp", "sgdp"]),
    "unknown model": (["model=vgg"], ["model=vgg is not known", "resnet18"]),
    "unknown option of the loop": (["train.epoch=3"], ["train.epoch"]),
    "unknown option of the optimizer": (["opt.momentun=0.9"], ["opt.momentun"]),
    "unknown option of the data": (["data.picture_size=3"], ["data.picture_size"]),
    "an argument that the optimizer does not take": (["+opt.momentun=0.9"], ["momentun"]),
    "an argument that the network does not take": (["+model.depth=3"], ["depth"]),
    "a key without a value": (["train.epochs"], ["train.epochs"]),
    "a broken override": (["train.epochs=[1"], ["key=value", "[1"]),
    "a rate that is nan": (["opt.lr=nan"], ["opt.lr is nan"]),
    "a rate that is infinite": (["opt.lr=inf"], ["opt.lr is inf"]),
    "a rate below 0": (["opt.lr=-0.1"], ["opt.lr is -0.1"]),
    "a rate that is a word": (["opt.lr=fast"], ["opt.lr", "fast"]),
    "a rate that is null": (["opt.lr=null"], ["opt.lr"]),
    "a decay that is nan": (["opt.weight_decay=nan"], ["opt.weight_decay is nan"]),
    "a momentum that the optimizer refuses": (["opt.momentum=-1"], ["momentum", "-1"]),
    "a type that does not fit": (["train.epochs=many"], ["train.epochs", "many"]),
    "no epochs": (["train.epochs=0"], ["train.epochs is 0", "at least 1"]),
    "a batch that processes do not divide": (
        ["gpus=2", "train.batch_size=63"], ["train.batch_size is 63", "2 processes", "GPUS"],
    ),
    "a batch that micro-batches do not divide": (["train.accumulation=3"], ["train.batch_size is 16", "multiple of 3"]),
    "a batch larger than the set": (["train.batch_size=65"], ["train.batch_size=65", "64 training images"]),
    "no processes": (["gpus=0"], ["gpus", "0"]),
    "a precision that does not exist": (["train.precision=fp8"], ["train.precision", "fp8", "bf16"]),
    "a device that does not exist": (["train.device=tpu"], ["train.device", "tpu"]),
    "a rule that matches nothing": (["opt_groups=[{match: heat, weight_decay: 0}]"], ["opt_groups", "heat"]),
    "a word for false": (["opt.nesterov=off"], ["opt.nesterov is 'off'", "true or false"]),
    "a word for false in the task": (["experiment=coco-centernet", "task.flip_test=no"], ["task.flip_test is 'no'"]),
    "a word for false in a network": (["experiment=coco-centernet", "model.crop=no"], ["model.crop is 'no'"]),
    "a word for false that no constructor takes": (["pictures=no"], ["pictures is 'no'", "true or false"]),
    "a word for a number": (["opt.momentum=yes"], ["opt.momentum is 'yes'", "a number"]),
    "a broken number of examples": (["task.eval_batch_size=7.5"], ["task.eval_batch_size is 7.5", "a whole number"]),
    "a number for a pair": (["opt=adamp", "opt.betas=0.9"], ["opt.betas is 0.9", "[a number, a number]"]),
    "half a pair": (["opt=adam", "opt.betas=[0.9]"], ["opt.betas is [0.9]", "[a number, a number]"]),
    "a word for false in an inner optimizer": (["opt=lambp", "opt.base.always_adapt=off"], ["opt.base.always_adapt"]),
    "a word for false in timm's optimizer": (["opt=rmsprop_tf", "+opt.centered=off"], ["opt.centered is 'off'"]),
    "a word for false in a package's optimizer": (["opt=adabound", "opt.weight_decouple=no"], ["opt.weight_decouple"]),
    "a word for false in a phase": (
        ["phases=[{epochs:1,opt:{_target_:torch.optim.SGD,_partial_:true,lr:0.1,nesterov:off}}]"],
        ["phases[0].opt.nesterov is 'off'"],
    ),
    "a word for a number in a schedule": (["schedule.lr.final=low"], ["schedule.lr.final is 'low'", "a number"]),
    "a target that does not exist": (["opt._target_=torch.optim.SGG"], ["opt._target_", "torch.optim.SGG"]),
    "a misspelt experiment": (["experiment=imagenet-resnet81"], ["(did you mean imagenet-resnet18?)"]),
    "a misspelt optimizer": (["opt=Adampp"], ["(did you mean adamp?)"]),
    "an option without its group": (["lr=0.1"], ["lr is no option", "(did you mean opt.lr?)"]),
    "a misspelt option": (["train.epoch=1"], ["train.epoch is no option", "(did you mean train.epochs?)"]),
    "a misspelt argument": (["+opt.momentun=0.9"], ["opt.momentun is no argument of SGD", "(did you mean momentum?)"]),
    "a flag for an option": (["--opt=adamp"], ["--opt=adamp is no flag", "opt=adamp"]),
    "a flag and a value": (["--experiment", "X"], ["--experiment X is no flag", "experiment=X"]),
    "a value after a space": (["opt", "adamp"], ["opt is not key=value", "opt=adamp"]),
    "characters that need quotes": (["tag=a:b;c"], ["tag=a:b;c cannot be read", """'tag="a:b;c"'"""]),
    "a rule that is no expression": (["opt_groups=[{match: '(', weight_decay: 0}]"], ["opt_groups", "'('"]),
}  # fmt: skip


# What only a built task or network can refuse, at whose start the run's record is there.
FOUND_LATER = {
    "a momentum that the optimizer refuses", "a batch larger than the set", "a rule that matches nothing",
    "a rule that is no expression", "a rate below 0", "a rate that is nan", "a rate that is infinite",
    "a decay that is nan",
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_answered_in_words_before_anything_is_written(case: str, tmp_path: Path) -> None:
    words, expected = WRONG[case]
    assert_clear(commands.call(*commands.options(tmp_path, *words)), *expected)
    assert not list(tmp_path.rglob("*.pt"))
    assert case in FOUND_LATER or not list(tmp_path.iterdir())  # no folder of a run either


@pytest.mark.parametrize(
    "words",
    [
        ["opt.nesterov=false", "task.eval_batch_size=20", "model.width=1", "opt.momentum=0"],
        ["opt=adam", "opt.betas=[0,0.9]", "+opt.foreach=null", "+opt.amsgrad=true"],
        ["experiment=wikitext103-txl", "opt=adarem_s", "opt.radius=2"],
    ],
)  # whole numbers for numbers, null for what has no value
def test_values_of_the_right_type_are_accepted(words: list[str]) -> None:
    check_arguments(composed("experiment=imagenet-resnet18", *words))


def test_the_name_of_a_run_is_a_value_and_keeps_its_own_name() -> None:
    pasted = "sgd,wd=0.0001,lr=0.1,mini,seed=0"
    spec = compose.composed(["experiment=imagenet-resnet18", f"tag={pasted}"])
    assert spec.config["tag"] == pasted
    assert spec.name == f"sgd,wd=0.0001,lr=0.1,mini,seed=0,{pasted}"
    assert compose.identify(["experiment=imagenet-resnet18", f"tag={pasted}"], [0])[1] == [spec.name]


def test_wrong_words_are_answered_without_torch(tmp_path: Path) -> None:
    code = f"""
import sys
from launch.train import main
for word in ("lr=0.1", "opt=adampp", "pictures=no", "scale=full", "scale=full,data_root=nowhere"):
    assert main(["experiment=imagenet-resnet18", "paths.runs={tmp_path}", *word.split(",")]) == 2
assert not sys.modules.keys() & {{"torch", "matplotlib", "pandas", "scipy"}}
"""
    env = commands.importing(commands.ROOT)
    done = subprocess.run([sys.executable, "-c", code], cwd=commands.ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_processes_without_gpus_are_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.engine.processes.spawn", lambda words, processes: 0)
    done = commands.call(*[w for w in commands.options(tmp_path, "gpus=4") if w != "train.device=cpu"])
    assert "gpus=4: no GPU is used; 4 processes share the" in done.err
    assert_clear(commands.call(*commands.options(tmp_path, "gpus=4", "train.device=cuda")), "there is no GPU")


@pytest.mark.parametrize(
    "words", [["scripts.train", "--help"], ["scripts.status", "--help"], ["scripts.train", "lr=1"]]
)
def test_a_closed_pipe_ends_a_command_without_a_traceback(words: list[str], tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with (tmp_path / "err").open("wb") as err:
        streams = {"stdout": writer, "stderr": writer if "lr=1" in words else err}
        command = [sys.executable, "-O", "-m", *words]
        done = subprocess.run(command, cwd=commands.ROOT, env=commands.importing(commands.ROOT), **streams)
    os.close(writer)
    assert done.returncode == 141
    assert (tmp_path / "err").read_text() == ""


def test_a_broken_pipe_to_anything_else_is_raised() -> None:
    def broken() -> int:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        until_closed(broken)


def test_a_command_without_an_experiment_lists_those_there_are(tmp_path: Path) -> None:
    assert_clear(commands.call(f"paths.runs={tmp_path}/runs"), "experiment=NAME", "imagenet-resnet18")


@pytest.mark.parametrize("word", ["--config-dir={}", "hydra.searchpath=[file://{}]"])
def test_processes_are_started_with_the_callers_own_folder_of_configurations(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "opt").mkdir()
    text = (commands.ROOT / "configs" / "opt" / "sgdp.yaml").read_text().replace("sgdp", "newcomer")
    (tmp_path / "opt" / "newcomer.yaml").write_text(text)
    started: list[list[str]] = []
    monkeypatch.setattr("tasks.engine.processes.spawn", lambda words, processes: started.append(words) or 0)
    words = [word.format(tmp_path), *commands.options(tmp_path, "opt=newcomer", "gpus=2")]
    refused = commands.call(*words)
    assert (refused.code, started) == (2, [])
    assert "Add trusted=true if you know what it names" in refused.err
    words = ["trusted=true", *words]
    assert commands.call(*words).code == 0
    assert set(words) <= set(started[0])


def full_scale(tmp_path: Path, *words: str) -> list[str]:
    kept = [word for word in commands.TINY if not word.startswith(("data", "train.num_workers"))]
    return [*kept, "scale=full", *words, f"paths.runs={tmp_path}/runs", f"paths.reports={tmp_path}/reports"]


def test_a_missing_data_folder_is_named(tmp_path: Path) -> None:
    assert_clear(commands.call(*full_scale(tmp_path)), "data_root is not set", "data_root=/path/to/imagenet")
    missing = tmp_path / "nowhere"
    assert_clear(commands.call(*full_scale(tmp_path, f"data_root={missing}")), f"data_root={missing}", "does not exist")


def test_an_empty_data_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_clear(commands.call(*full_scale(tmp_path, f"data_root={tmp_path}/empty")), "data_root=", "train/")
    for split in ("train", "val"):
        (tmp_path / "empty" / split).mkdir()
    assert_clear(commands.call(*full_scale(tmp_path, f"data_root={tmp_path}/empty")), "has no class folders")


def test_class_folders_that_differ_are_named(tmp_path: Path) -> None:
    root = write_image_folder(tmp_path / "pictures", classes=2, train=1, val=1)
    (root / "val" / "n00000001").rename(root / "val" / "n00000007")
    assert_clear(commands.call(*full_scale(tmp_path, f"data_root={root}")), "n00000001", "not in val/")


BROKEN: dict[str, Callable[[Path], None]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:1000]),
    "empty": lambda path: path.write_bytes(b""),
    "not a checkpoint": lambda path: torch.save({"weights": torch.zeros(3)}, path),
    "another run's": lambda path: torch.save(torch.load(path, weights_only=True) | {"run": "somebody/else"}, path),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_checkpoint_that_cannot_be_used_is_kept_aside_and_the_next_call_goes_on(
    case: str, broken_off: Path, whole: Path
) -> None:
    folder = commands.run_folder(broken_off) / "checkpoints"
    (folder / "last.unreadable-1.pt").write_bytes(b"an earlier one")
    BROKEN[case](folder / "last.pt")
    content = (folder / "last.pt").read_bytes()
    done = commands.call(*short(broken_off))
    assert_clear(done, str(folder / "last.pt"), "kept as last.unreadable-2.pt", "same command again")
    assert not (folder / "last.pt").exists()
    done = commands.call(*short(broken_off))
    assert done.code == 0, done.err
    assert commands.record(broken_off)["resumed_from"] == [7]
    commands.assert_same_result(broken_off, whole)
    assert (folder / "last.unreadable-1.pt").read_bytes() == b"an earlier one"
    assert (folder / "last.unreadable-2.pt").read_bytes() == content


def test_another_configuration_under_the_same_name_is_refused_and_its_keys_are_listed(
    whole: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    path = commands.run_folder(copy) / "run.json"
    record = json.loads(path.read_text())
    record["config"]["opt"]["momentum"] = 0.5
    record["config"]["train"]["num_workers"] = 3  # does not change the result, so it may differ
    path.write_text(json.dumps(record))
    content = path.read_bytes()
    done = commands.call(*short(copy))
    assert_clear(done, "finished run with another configuration", "opt.momentum: 0.5 -> 0.9", "tag=NAME")
    assert "num_workers" not in done.err
    assert path.read_bytes() == content
    assert commands.call(*short(copy, "tag=other", "train.epochs=1")).code == 0


def test_a_run_json_that_cannot_be_read_is_named_and_kept(broken_off: Path) -> None:
    path = commands.run_folder(broken_off) / "run.json"
    path.write_text('{"name": ')
    assert_clear(commands.call(*short(broken_off)), str(path), "not readable JSON")
    assert path.read_text() == '{"name": '


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    words = commands.options(tmp_path, "opt.lr=1e30", "train.checkpoint_minutes=0")
    done = commands.call(*words)
    assert_clear(done, "not finite at step 2", "opt.lr", "last.pt", code=1)
    record = commands.record(tmp_path)
    assert record["status"] == "failed"
    assert "step 2" in record["error"]
    kept = commands.run_folder(tmp_path) / "checkpoints" / "last.pt"
    assert all(bool(value.isfinite().all()) for value in commands.weights(kept).values())
    again = commands.call(*words)
    assert_clear(again, "not finite at step 2", code=1)


def test_a_folder_that_another_process_runs_is_left_alone(broken_off: Path) -> None:
    folder = commands.run_folder(broken_off)
    stored = json.loads((folder / "run.json").read_text())
    other = RunRecord(folder, name=stored["name"], config=stored["config"])
    try:
        assert_clear(commands.call(*short(broken_off)), str(folder), f"process {os.getpid()} now", "tag=NAME")
    finally:
        other.close()
    assert json.loads((folder / "run.json").read_text()) == stored


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a small file system in memory; skips where that is not allowed."""
    folder = tmp_path / "mounted"
    folder.mkdir()

    def attach(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        allowed = os.geteuid() == 0 and shutil.which("mount") is not None
        if not allowed or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("needs the right to mount")
        return folder

    yield attach
    if folder.is_mount():
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_results_folder_that_cannot_be_written_is_named(tmp_path: Path, mount: Callable[[str], Path]) -> None:
    if os.geteuid() == 0:  # whom permissions do not bind
        folder = mount("ro,size=1m")
    else:
        folder = tmp_path / "locked"
        folder.mkdir(mode=0o500)
    assert_clear(commands.call(*short(folder)), str(folder), "paths.runs")
    (tmp_path / "file").write_text("")
    assert_clear(commands.call(*short(tmp_path / "file")), str(tmp_path / "file"), "paths.runs")


@pytest.mark.parametrize("room", ["none", "part of a checkpoint"])
def test_a_full_disk_keeps_the_checkpoint_before_and_the_same_command_goes_on(
    room: str, whole: Path, mount: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = mount("size=16m")
    save, saves = checkpoint.save, 0

    def filling(path: Path, state: dict[str, Any]) -> None:
        nonlocal saves
        saves += path.stem == "last"
        if saves == 6:
            left = 0 if room == "none" else 300_000
            fill(folder / "filler", os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize - left)
        save(path, state)

    monkeypatch.setattr(checkpoint, "save", filling)
    words = short(folder, "train.checkpoint_minutes=0")
    done = commands.call(*words)
    assert_clear(done, "cannot save a checkpoint", os.strerror(errno.ENOSPC), "still valid", "run again")
    monkeypatch.undo()
    last = commands.run_folder(folder) / "checkpoints" / "last.pt"
    assert torch.load(last, weights_only=True)["step"] == 4  # step 4 ends an epoch, which is saved once more
    assert not list(last.parent.glob("*.tmp"))

    full = commands.call(*words)  # still full
    assert "Traceback" not in full.err
    assert full.code == 2
    assert torch.load(last, weights_only=True)["step"] == 4

    (folder / "filler").unlink()
    done = commands.call(*words)
    assert done.code == 0, done.err
    commands.assert_same_result(folder, whole)


def fill(path: Path, size: int) -> None:
    with path.open("wb") as file:
        try:
            file.write(b"\0" * size)
        except OSError as error:
            assert error.errno == errno.ENOSPC
