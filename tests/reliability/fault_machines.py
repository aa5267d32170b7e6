"""More cases of `tests/reliability/fault_cases.py`: a whole process, machine or launcher is disturbed, not a call."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from launch.checkout import ROOT
from tasks.base import InputError
from tasks.data.shards import MANIFEST, _Shards, read_manifest
from tests import commands
from tests.reliability import soak_runs
from tests.reliability.fault_cases import CASES, SECRETS, SkippedError, _pair, fault, refused
from tests.scripts import slurm_cluster

__all__ = ["CASES"]  # those that are registered here too
SECONDS = 400  # of a child, on a busy machine


def child(
    words: Sequence[str], *, before: Sequence[str] = (), env: Mapping[str, str] | None = None, code: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run Python on this repository, behind other words of a command, and compare its exit code."""
    names = {**os.environ, "OMP_NUM_THREADS": "1"} if env is None else dict(env)
    line = [*before, sys.executable, *words]
    done = subprocess.run(
        line, cwd=ROOT, env=commands.importing(ROOT, names), capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == code, f"code {done.returncode}: {done.stderr[-600:]}"
    return done


def needs(*programs: str) -> None:
    """Skip a case whose programs are not installed."""
    if missing := [name for name in programs if shutil.which(name) is None]:
        raise SkippedError(f"{missing[0]} is not installed")


def namespace(*options: str) -> list[str]:
    """Return the words that run a command in namespaces of its own, where this user may make them."""
    needs("unshare")
    words = ["unshare", "--user", *options]
    if subprocess.run([*words, "true"], capture_output=True).returncode:
        raise SkippedError("this user may make no namespaces")
    return words


RUN = "import sys; from pathlib import Path; from tests.reliability import fault_cases as f; path = Path(sys.argv[1])\n"
STOP_AND_GO_ON = f"{RUN}f.stopped(path / 'r'); f.goes_on(path / 'r')"

# ------------------------------------------------------------------------------------------------- a whole process

LETTERS = "I\u0131\u0130i"
PLAIN = {"PYTHONUTF8": "", "PYTHONCOERCECLOCALE": "", "LC_ALL": "C"}
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@fault("the locale is another", "Turkish", "C", "C without Python's UTF-8 mode")
def _(folder: Path, name: str) -> None:
    code = f"import locale; locale.setlocale(locale.LC_ALL, '')\n{RUN}path = path / {LETTERS!a}\n"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    for key in PLAIN:
        env.pop(key, None)
    if name == "Turkish":
        needs("localedef")
        made = ["localedef", "-i", "tr_TR", "-f", "UTF-8", str(folder / "tr_TR.UTF-8")]
        if subprocess.run(made, capture_output=True).returncode:
            raise SkippedError("there is no source of the locale tr_TR")
        env |= {"LOCPATH": str(folder), "LC_ALL": "tr_TR.UTF-8"}
        code += "assert locale.localeconv()['decimal_point'] == ','\n"
    env |= {"LC_ALL": "C"} if name == "C" else ASCII if name != "Turkish" else {}
    if name in ("Turkish", "C"):
        child(["-c", f"{code}f.stopped(path); f.goes_on(path)", str(folder)], env=env)
        return
    code += "from tasks.base import InputError\nwith f.refused(InputError, says='set PYTHONUTF8=1'): f.stopped(path)\n"
    child(["-c", f"{code}path = path.with_name('r'); f.stopped(path); f.goes_on(path)", str(folder)], env=env)


CLOCK = """
#include <dlfcn.h>
#include <time.h>
#include <stdlib.h>
#include <unistd.h>
extern "C" int clock_gettime(clockid_t which, struct timespec* now) {
    static auto system = reinterpret_cast<int (*)(clockid_t, struct timespec*)>(dlsym(RTLD_NEXT, "clock_gettime"));
    int code = system(which, now);
    bool is_set_back = access(getenv("CLOCK_BACK"), F_OK) == 0;
    if (which == CLOCK_REALTIME && is_set_back) now->tv_sec -= atol(getenv("CLOCK_SECONDS"));
    return code;
}
"""


@fault("the system's clock is set back during a run", "an hour", "ten years")
def _(folder: Path, name: str) -> None:
    needs("c++")
    (folder / "clock.cpp").write_text(CLOCK)
    library = str(folder / "clock.so")
    subprocess.run(["c++", "-shared", "-fPIC", "-o", library, str(folder / "clock.cpp"), "-ldl"], check=True)
    code = f"""{RUN}
import contextlib, json, os, signal, time
from tasks.engine.errors import Stopped
from tests.engine import toys
task, begun, seen = toys.Toy(), time.time(), []
def before_step():
    seen.append(1)
    if len(seen) == 3: Path(os.environ["CLOCK_BACK"]).touch()
    if len(seen) == 7: os.kill(os.getpid(), signal.SIGTERM)
task.before_step = before_step
with contextlib.suppress(Stopped): f.trained(path / "r", task, checkpoint_minutes=0)
assert time.time() < begun - 1800, "the clock was not set back"
f.goes_on(path / "r")
record = json.loads((path / "r" / "run.json").read_text())
assert 0 <= record["wall_time_s"] < 600, record["wall_time_s"]
"""
    seconds = 3600 if name == "an hour" else 10 * 365 * 86400
    env = {**os.environ, "OMP_NUM_THREADS": "1", "LD_PRELOAD": library, "CLOCK_BACK": str(folder / "back")}
    child(["-c", code, str(folder)], env={**env, "CLOCK_SECONDS": str(seconds)})


@fault("no HOME, and a user whom the system does not know", "a run", "the kernel's cache")
def _(folder: Path, name: str) -> None:
    before = [*namespace("--map-user=54321"), "env", "-u", "HOME", "-u", "XDG_CACHE_HOME", "-u", "ADAMP_DATA"]
    code = STOP_AND_GO_ON
    if name != "a run":
        code = f"{RUN}from adamp.kernels import cpu_build; cpu_build._cache_folder(); cpu_build.unavailable_reason()"
    child(["-c", code, str(folder)], before=[*before, "-u", "ADAMP_KERNEL_CACHE"])


@fault("a small disk is full in the middle of a run", "8k", "24k", "64k")
def _(folder: Path, name: str) -> None:
    code = f"""{RUN}
import subprocess
from tasks.base import InputError
with f.refused(InputError, says="No space left on device"): f.trained(path / "r", checkpoint_minutes=0)
subprocess.run(["mount", "-o", "remount,size=64m", path], check=True)
f.goes_on(path / "r")
"""
    mount = f'mount -t tmpfs -o size={name} none "$0" && exec "$@"'
    before = [*namespace("--map-root-user", "--mount"), "/bin/sh", "-c", mount, str(folder)]
    child(["-c", code, str(folder)], before=before)


@contextlib.contextmanager
def memory_group(size: int) -> Iterator[Path]:
    """Yield a group of processes that the system allows so many bytes."""
    name = f"adamp-{os.getpid()}"
    first, second = Path("/sys/fs/cgroup/memory") / name, Path("/sys/fs/cgroup") / name
    group, limit = (first, "memory.limit_in_bytes") if first.parent.is_dir() else (second, "memory.max")
    try:
        group.mkdir()
        (group / limit).write_text(str(size))
    except OSError as error:
        raise SkippedError(f"no group of processes can be made: {error.strerror}") from None
    try:
        yield group
    finally:
        with contextlib.suppress(OSError):
            group.rmdir()


@fault("memory ends in one of two processes", "a limit of its own", "the system kills it")
def _(folder: Path, name: str) -> None:
    with contextlib.ExitStack() as stack:
        if name == "the system kills it":
            group = stack.enter_context(memory_group(2**26))
            stack.enter_context(commands.mock.patch.dict(os.environ, {"GROUP": str(group)}))
        words = (str(folder), "limit" if name == "a limit of its own" else "kill")
        done = _pair("tests.reliability.test_waiting", *words)
    assert done.returncode in (1, 128 + signal.SIGKILL) and "Traceback" not in done.stderr, done.stderr
    assert "memory" in done.stderr or done.returncode == 128 + signal.SIGKILL, done.stderr
    done = _pair("tests.reliability.test_waiting", str(folder), "whole")
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "run.json").read_text())["resumed_from"]


TWO_NODES = """
set -e
ip link set lo up
unshare --net sleep 600 & other=$!
trap 'kill $other' EXIT
until [ "$(readlink /proc/$other/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.1; done
ip link add node0 type veth peer name node1
ip link set node1 netns $other
ip addr add 10.99.0.1/24 dev node0; ip link set node0 up
on_other="nsenter --net --target $other"
$on_other ip link set lo up; $on_other ip addr add 10.99.0.2/24 dev node1; $on_other ip link set node1 up
run='-m tests.reliability.test_waiting'
GLOO_SOCKET_IFNAME=node1 $on_other "$@" --local-addr=10.99.0.2 --rdzv-conf=is_host=0 $run "$0" "comes back" &
second=$!
GLOO_SOCKET_IFNAME=node0 "$@" --local-addr=10.99.0.1 --rdzv-conf=is_host=1 $run "$0" "comes back"
wait $second
"""


@fault("a node's process dies and comes back", "two nodes with networks of their own")
def _(folder: Path, name: str) -> None:
    needs("ip", "nsenter")
    before = [*namespace("--map-root-user", "--net"), "/bin/sh", "-c", TWO_NODES, str(folder)]
    words = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--max-restarts=2",
             "--rdzv-backend=c10d", "--rdzv-endpoint=10.99.0.1:29511", "--rdzv-id=run"]  # fmt: skip
    child(words, before=before)
    record = json.loads((folder / "run.json").read_text())
    assert len(record["segments"]) == 2 and record["resumed_from"], record["segments"]


# --------------------------------------------------------------------------------------------- commands as one types


def trained(*words: str, env: Mapping[str, str], root: Path = ROOT) -> str:
    """Run the training command to its end, in a checkout, and return what it said."""
    line = [sys.executable, str(root / "scripts" / "train.py"), *words]
    done = subprocess.run(
        line, cwd=root, env=commands.importing(root, env), capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, f"code {done.returncode}: {done.stderr[-600:]}"
    return done.stdout + done.stderr


@fault("the repository is moved between two starts", "an interrupted run")
def _(folder: Path, name: str) -> None:
    parts = ("adamp", "tasks", "evidence", "launch", "scripts", "configs", "hydra_plugins", "tests")
    for part in parts:
        shutil.copytree(ROOT / part, folder / "old" / part, ignore=shutil.ignore_patterns("__pycache__"))
    env = {key: value for key, value in os.environ.items() if key not in ("ADAMP_RESULTS", "PYTHONPATH")}
    words = [word for word in commands.TINY if not word.startswith("train.epochs")]
    trained(*words, "train.epochs=2", "train.max_steps=4", env=env, root=folder / "old")
    (record,) = (folder / "old" / "results" / "runs").glob("*/*/run.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), "status": "interrupted"}))
    (folder / "old").rename(folder / "new")
    trained(*words, "train.epochs=2", "train.max_steps=4", env=env, root=folder / "new")
    (moved,) = (folder / "new" / "results" / "runs").glob("*/*/run.json")
    assert json.loads(moved.read_text())["status"] == "finished"
    assert not (folder / "old").exists()


LAUNCHERS = {
    "basic": (), "local": ("launcher=local", "jobs=2"), "many": soak_runs.SWEEPS["many networks"][1:],
    "ray": ("launcher=ray", "hydra.launcher.num_gpus=0", "hydra.launcher.num_cpus=0.5"),
    "slurm": ("launcher=slurm", "hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1",
              "hydra.launcher.poll_s=1"),
}  # fmt: skip


@fault("secrets stand in the environment of a launcher", *LAUNCHERS)
def _(folder: Path, name: str) -> None:
    if reason := soak_runs.unavailable(name):
        raise SkippedError(reason)
    env = {**os.environ, **SECRETS, "WANDB_MODE": "disabled", "ADAMP_RESULTS": str(folder), "OMP_NUM_THREADS": "1"}
    with contextlib.ExitStack() as stack:
        if name == "slurm":
            env |= stack.enter_context(slurm_cluster.cluster())
        words = [*LAUNCHERS[name], "train.max_steps=2", "train.device=cpu", f"paths.runs={folder}/runs",
                 f"paths.reports={folder}/reports", f"hydra.sweep.dir={folder}/sweep"]  # fmt: skip
        if name != "many":
            words = [*(word for word in commands.TINY if "epochs" not in word), "opt=sgd,adamp", *words]
        said = trained("--multirun", *words, env=env)
    child(["-m", "scripts.report", f"runs={folder}/runs", f"out={folder}/reports"], env=env)
    left = [path for path in folder.rglob("*") if path.is_file()]
    assert len([path for path in left if path.name == "run.json"]) >= 2 and (folder / "reports/index.html").exists()
    for secret in SECRETS.values():
        assert secret not in said
        assert not [path for path in left if secret.encode() in path.read_bytes()]


# --------------------------------------------------------------------------------------------------------- archives

TAR = ("../../evil.tar", "/etc/passwd", "a/../../evil.tar", "", "a\0b")


@fault("shards name a place outside their folder", *(repr(name) for name in TAR), "a link", "an absolute name")
def _(folder: Path, name: str) -> None:
    facts = {"filenames": ["0.tar"], "shard_bytes": [0], "num_samples": 1}
    if name not in ("a link", "an absolute name"):
        facts["filenames"] = [next(each for each in TAR if repr(each) == name)]
        manifest = {"format": 1, "classes": ["a"], "splits": {"train": facts, "val": facts}}
        (folder / MANIFEST).write_text(json.dumps(manifest))
        with refused(InputError, says="filenames is no list of files in the folder"):
            read_manifest(folder)
        return
    path = folder / "0.tar"
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("/etc/passwd" if name == "an absolute name" else "0.jpg")
        if name == "a link":
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
    columns = {"label": [0], "shard": [0], "offset": [0], "size": [512], "name": [b"0.jpg"]}
    np.savez(folder / "train-index.npz", **{key: np.array(value) for key, value in columns.items()})  # type: ignore[arg-type]
    shards = _Shards(folder, "train", {**facts, "shard_bytes": [path.stat().st_size]})
    # Read at an offset: a member is bytes of this file, whatever it names
    assert shards.open(0).read() == path.read_bytes()[:512]
