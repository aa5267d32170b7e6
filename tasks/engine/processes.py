"""Starting the processes of a run on this machine. Free of torch."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from tasks.engine.signals import begin_child


def free_port() -> int:
    """Return a TCP port that is free on this machine now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


CAUSE_SECONDS = 5.0  # that a process which another's failure ended waits for that one's exit code


def spawn(command: Sequence[str], processes: int, *, grace_seconds: float = 10.0) -> int:
    """Run `processes` copies of a command as one group on this machine and return the first failing exit code.

    torchrun would print a page of traceback around a one-line error. A command under torchrun or submitit works too,
    since only their variables are read.

    Signals sent to this process are forwarded to every copy; when it is killed, they save and stop. When one copy
    fails, the others get SIGTERM, and SIGKILL after `grace_seconds`.
    """
    port = free_port()
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    children = []
    begin = partial(begin_child, os.getpid())
    for rank in range(processes):
        place = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": processes,
            "LOCAL_WORLD_SIZE": processes,
            "MASTER_PORT": port,
        }
        env = {"OMP_NUM_THREADS": threads, **os.environ, "MASTER_ADDR": "127.0.0.1"}
        env |= {key: str(value) for key, value in place.items()}
        # A session of its own: Ctrl-C then reaches the copies once, forwarded by this process
        children.append(subprocess.Popen(command, env=env, start_new_session=True, preexec_fn=begin))

    def forward(number: int, frame: Any) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    forwarded = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        forwarded.append(signal.SIGHUP)
    previous = {number: signal.signal(number, forward) for number in forwarded}
    try:
        return _wait(children, grace_seconds)
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait(children: list[subprocess.Popen[bytes]], grace_seconds: float) -> int:
    failed, told, deadline = 0, 0.0, float("inf")
    while any(child.poll() is None for child in children):
        codes = [child.poll() for child in children]
        if not failed and (codes_of_failed := [code for code in codes if code]):
            told = told or time.monotonic()
            # Code 1 may only tell of another process's failure, which takes its time to end
            causes = [code for code in codes_of_failed if code != 1]
            if causes or time.monotonic() - told > CAUSE_SECONDS:
                failed = (causes or codes_of_failed)[0]
                deadline = time.monotonic() + grace_seconds
                for rank, child in enumerate(children):
                    if child.poll() is None:
                        print(
                            f"process {codes.index(failed)} ended with code {failed}; stopping {rank}",
                            file=sys.stderr,
                        )
                        child.terminate()
        if time.monotonic() > deadline:
            for child in children:
                child.kill()
        time.sleep(0.05)
    if not failed:
        codes_of_failed = [code for code in (child.poll() for child in children) if code]
        failed = next((code for code in codes_of_failed if code != 1), next(iter(codes_of_failed), 0))
    # A copy killed by signal n has returncode -n; shells use 128 + n
    return 128 - failed if failed < 0 else failed
