#!/usr/bin/env bash
# A Hydra sweep keeps the configuration and the returned value of every job until the last one has ended
#
# Guess: The basic launcher runs jobs one after the other and keeps their numbers; what a job built can be freed.
# Happens: After 20 jobs the 19 earlier return values are still alive, and so are their configurations: the sweeper
#   collects a JobReturn for each. A function that returns its network or history keeps all of them in memory; with
#   empty configurations it is 0.1 MiB a job.
# Matters: A grid of 1,000 cells on one machine runs out of memory in its second half, in a run that alone is small.
# Instead: Return a number or None from the decorated function; run large grids in a process for each job.
# Versions: hydra-core 1.3.8, omegaconf 2.3.1, Python 3.11.7
# Date: 2026-11-30
# Guard: none needed: launch/train.py returns a number or a RunOutcome
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
packages=(hydra-core==1.3.8 omegaconf==2.3.1)
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q uv==0.13.9
"$folder/venv/bin/uv" pip install -q --python "$folder/venv/bin/python" "${packages[@]}" ||
  "$folder/venv/bin/pip" install -q "${packages[@]}"
cat >"$folder/finding.py" <<'PY'
import os
import sys
import weakref

import hydra

JOBS = 20
results, configurations = [], []


class Network:
    weights = None


@hydra.main(version_base=None, config_path=None)
def main(cfg):
    global saw
    alive = {
        "returned": sum(ref() is not None for ref in results),
        "configurations": sum(ref() is not None for ref in configurations),
    }
    if len(results) == JOBS - 1:
        saw = alive
    network = Network()
    results.append(weakref.ref(network))
    configurations.append(weakref.ref(cfg))
    return network


saw = None
jobs = ",".join(map(str, range(JOBS)))
sys.argv = [sys.argv[0], "-m", f"+cell={jobs}", f"hydra.sweep.dir={os.path.dirname(__file__)}/sweep", "hydra/job_logging=none"]
main()
print("of 19 earlier jobs still alive:", saw)
expected = {"returned": JOBS - 1, "configurations": JOBS - 1}
if saw != expected:
    sys.exit(f"changed: expected {expected}; saw {saw}")
PY
cd "$folder" && "$folder/venv/bin/python" -W ignore "$folder/finding.py"
