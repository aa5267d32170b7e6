"""A SLURM cluster of one node on this machine: munge, slurmctld and slurmd, all their files in one folder."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={root}/munge/munge.sock,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
ReturnToService=2
KillWait=5
MailProg=/bin/true
MinJobAge=300
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory} State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=120
PartitionName=high Nodes={host} MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str:
    """Return why no cluster can be started here, empty when one can.

    With ADAMP_INSTALL_SLURM=1, as CI sets it, root may install Debian's packages for it.
    """
    if os.environ.get("ADAMP_INSTALL_SLURM") == "1" and os.geteuid() == 0 and not all(map(which, NEEDED)):
        _install()
    if absent := [name for name in NEEDED if which(name) is None]:
        return f"{absent[0]} is not installed: apt-get install slurm-wlm munge, or ADAMP_INSTALL_SLURM=1 as root"
    if os.geteuid() != 0:
        return "slurmctld and slurmd of one machine are started as root, and this user is not"
    return "" if (os.cpu_count() or 1) >= 2 else "a run of two processes needs two cores"


def _install() -> None:
    for words in (["update"], ["install", "-y", "--no-install-recommends", "slurm-wlm", "munge"]):
        with suppress(OSError, subprocess.TimeoutExpired):  # what is still missing then is the reason to skip
            env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            subprocess.run(["apt-get", "-q", *words], env=env, capture_output=True, timeout=300)


def which(name: str) -> str | None:
    """Return where a command is; daemons lie outside many users' PATH."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """Run a cluster with the partitions debug and high, which preempts debug, and yield the variables that name it."""
    root = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # a short path: sockets have at most 107 letters
    env = {"SLURM_CONF": str(root / "slurm.conf")}
    try:
        _configure(root)
        _start(root, env)
        yield env
    finally:
        _stop(root, env)
        shutil.rmtree(root, ignore_errors=True)


def ask(env: dict[str, str], *words: str) -> str:
    """Return what a command of the cluster prints."""
    done = subprocess.run(words, env={**os.environ, **env}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout.strip()


def _configure(root: Path) -> None:
    for name in ("munge", "state", "spool", "log"):
        (root / name).mkdir()
    (root / "munge").chmod(0o700)
    key = root / "munge" / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    ports = []
    with free_ports(2) as sockets:
        ports = [each.getsockname()[1] for each in sockets]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 - 1024
    text = CONFIG.format(
        root=root, host=socket.gethostname().split(".")[0], port=ports[0], node_port=ports[1],
        cores=os.cpu_count(), memory=memory,
    )  # fmt: skip
    (root / "slurm.conf").write_text(text)


@contextmanager
def free_ports(number: int) -> Iterator[list[socket.socket]]:
    """Hold free ports while their numbers are written down."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        yield sockets
    finally:
        for each in sockets:
            each.close()


def _start(root: Path, env: dict[str, str]) -> None:
    munge = root / "munge"
    names = {"key-file": "munge.key", "socket": "munge.sock", "pid-file": "munged.pid", "seed-file": "munged.seed"}
    places = [f"--{option}={munge / name}" for option, name in names.items()]
    commands = [
        [which("munged"), "--force", *places, f"--log-file={root}/log/munged.log"],
        [which("slurmctld"), "-f", env["SLURM_CONF"]],
        [which("slurmd"), "-f", env["SLURM_CONF"]],
    ]
    for words in commands:
        with (root / "log" / "start.log").open("ab") as out:  # the daemons keep it open: a pipe would never end
            subprocess.run([str(word) for word in words], env={**os.environ, **env}, stdout=out, stderr=out, check=True)
    deadline = time.monotonic() + 60
    while ask(env, "sinfo", "-h", "-p", "debug", "-o", "%T") != "idle":
        assert time.monotonic() < deadline, (root / "log" / "slurmctld.log").read_text()[-2000:]
        time.sleep(0.2)


def _stop(root: Path, env: dict[str, str]) -> None:
    with suppress(AssertionError, subprocess.TimeoutExpired, OSError):
        ask(env, "scancel", "-u", "root")
        deadline = time.monotonic() + 20
        while ask(env, "squeue", "-h") and time.monotonic() < deadline:
            time.sleep(0.5)
    for name in ("slurmd.pid", "slurmctld.pid", "munge/munged.pid"):
        with suppress(OSError, ValueError):
            os.kill(int((root / name).read_text()), signal.SIGTERM)
    time.sleep(0.5)
