#!/usr/bin/env bash
# In a Ray task SIGINT is blocked, and a program that the task starts inherits that: Ctrl-C does not reach it
#
# Guess: A training script started with subprocess from a Ray task gets SIGINT like anywhere else and saves its
#   checkpoint.
# Happens: Workers start with SIGINT in the blocked mask. Python's handler is installed and looks right, the signal
#   stays pending, in the task and in every process below it. SIGTERM passes.
# Matters: Launchers that interrupt runs so that they save wait for nothing, then kill them; steps since the last
#   checkpoint are lost.
# Instead: Call signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT}) at the start of the program, or send
#   SIGTERM.
# Versions: ray 2.60.0, Python 3.11.7
# Date: 2026-11-30
# Guard: tasks/engine/signals.py unblocks SIGINT; tests/scripts/test_ray.py
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
packages=(ray==2.60.0)
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q uv==0.13.9
"$folder/venv/bin/uv" pip install -q --python "$folder/venv/bin/python" "${packages[@]}" ||
  "$folder/venv/bin/pip" install -q "${packages[@]}"
cat >"$folder/finding.py" <<'PY'
import signal
import subprocess
import sys
import time

import ray

WAITING = "print('ready', flush=True); import time; time.sleep(60)"


def ends(number):
    process = subprocess.Popen([sys.executable, "-c", WAITING], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    process.stdout.readline()
    process.send_signal(number)
    deadline = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    ended = process.poll() is not None
    process.kill()
    process.wait()
    return ended


@ray.remote
def task():
    blocked = sorted(s.name for s in signal.pthread_sigmask(signal.SIG_BLOCK, []))
    return {"blocked": blocked, "SIGINT ends a child": ends(signal.SIGINT), "SIGTERM ends a child": ends(signal.SIGTERM)}


here = ends(signal.SIGINT)
ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
saw = {"outside Ray SIGINT ends a child": here, **ray.get(task.remote())}
ray.shutdown()
print(saw)
expected = {
    "outside Ray SIGINT ends a child": True,
    "blocked": ["SIGINT"],
    "SIGINT ends a child": False,
    "SIGTERM ends a child": True,
}
if saw != expected:
    sys.exit(f"changed: expected {expected}; saw {saw}")
PY
HOME="$folder" RAY_USAGE_STATS_ENABLED=0 "$folder/venv/bin/python" -W ignore "$folder/finding.py"
