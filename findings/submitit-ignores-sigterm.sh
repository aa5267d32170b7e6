#!/usr/bin/env bash
# A function that submitit runs does not end on SIGTERM; the same function in a plain process does
#
# Guess: kill PID, scancel or the shutdown of a node ends the job's Python process at once, as it ends every program.
# Happens: submitit installs handlers for SIGTERM and SIGCONT that log the signal and return; only its own signal,
#   USR2, does more. The function runs on to its end and its result counts as a success. Programs that it starts die
#   of SIGTERM as usual.
# Matters: scancel waits for KillWait and then kills without a checkpoint; what was to be stopped by hand goes on and
#   holds its GPU.
# Instead: Install a handler of your own inside the function that saves and exits; tell SLURM's signals apart by USR2.
# Versions: submitit 1.5.4, Python 3.11.7
# Date: 2026-11-30
# Guard: tasks/engine/signals.py listens anew; tests/scripts/test_slurm.py stops runs
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
packages=(submitit==1.5.4)
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q uv==0.13.9
"$folder/venv/bin/uv" pip install -q --python "$folder/venv/bin/python" "${packages[@]}" ||
  "$folder/venv/bin/pip" install -q "${packages[@]}"
cat >"$folder/finding.py" <<'PY'
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import submitit


def work(mark):
    time.sleep(0.1)
    Path(mark).write_text(str(os.getpid()))
    time.sleep(5)
    return "ran to its end"


def pid_of(mark):
    deadline = time.monotonic() + 60
    while not (mark.exists() and mark.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return int(mark.read_text())


folder = Path(__file__).parent
if len(sys.argv) > 1:
    work(sys.argv[1])
    sys.exit()
plain = subprocess.Popen([sys.executable, __file__, str(folder / "plain")])
os.kill(pid_of(folder / "plain"), signal.SIGTERM)
executor = submitit.AutoExecutor(folder / "logs", cluster="local")
executor.update_parameters(timeout_min=5)
job = executor.submit(work, str(folder / "job"))
os.kill(pid_of(folder / "job"), signal.SIGTERM)
saw = {"plain process": plain.wait(), "submitit": job.result()}
print(saw)
expected = {"plain process": -signal.SIGTERM, "submitit": "ran to its end"}
if saw != expected:
    sys.exit(f"changed: expected {expected}; saw {saw}")
PY
"$folder/venv/bin/python" -W ignore "$folder/finding.py"
