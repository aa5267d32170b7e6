"""Kill runs of every task at kills=100 random moments; each must end as the undisturbed one.

usage: python tests/reliability/soak.py kills=100

Options: kills=N signals in all; tasks=a,b (all); processes=1,2; seed=0; folder=DIR to work in (a temporary one);
minutes=M, after which no other signal is sent; out=results/soak.json; more=true adds to what it holds; page=FILE, where
a table of it goes between two marks. A sweep on Ray or SLURM is left out where it is not installed.

Signals are SIGKILL, SIGTERM, SIGINT and SIGUSR1 (save and go on); a quarter falls at a random time, the others in a
stage that the run is known to be in: training, writing a checkpoint, evaluating, building a cache. Every run must end
as the one that was never disturbed: the same weights, best weights and metrics bit for bit, each cell of a sweep once,
nothing half-written left behind. Exit code 1 if one does not.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from launch.checkout import ROOT, TRAIN, python_path
from scripts import options
from tests.reliability import soak_runs
from tests.reliability.faults import write_page

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
STAGES = ("training", "checkpoint", "evaluation", "cache")
AIMED = 0.75  # share of the signals that wait for a stage: loading libraries takes most of so small a run
COUNTED = ("number", "stage", "processes", "task", "whom")  # what the summary counts kills by
LATE = 4.0  # an aimed signal waits for its stage this many times the length of the undisturbed run, then falls anyway
PATIENCE = 600.0  # seconds that a small run may take on a busy machine
# Started by Python in every process of a run: a thread that looks every 2 ms where the main thread is, and says so in
# a file. It changes nothing in the program that is watched.
WATCHER = """
import os, sys, threading, time
def _stage(frame):
    while frame is not None:
        place = frame.f_code.co_filename.replace(os.sep, "/"), frame.f_code.co_name
        if place[0].endswith("engine/checkpoint.py") and place[1] == "save": return "checkpoint"
        if place[0].endswith("engine/evaluate.py") and place[1] == "evaluate": return "evaluation"
        caches = place[0].endswith(("language/text.py", "audio/cache.py"))
        if caches and place[1] in ("_build", "decode_all"): return "cache"
        if place[0].endswith("engine/many.py") and place[1] == "_evaluate": return "evaluation"
        trainers = place[0].endswith(("engine/trainer.py", "engine/many.py"))
        if trainers and place[1] == "_train_epoch": return "training"
        frame = frame.f_back
    return "start"
def _watch():
    main, last = threading.main_thread().ident, ""
    while True:
        time.sleep(0.002)
        now = _stage(sys._current_frames().get(main))
        if now != last:
            last = now
            with open(os.environ["SOAK_STAGE"], "w") as file: file.write(now)
if os.environ.get("SOAK_STAGE") and os.environ.get("RANK", "0") == "0":
    threading.Thread(target=_watch, daemon=True).start()
"""


@dataclass
class Kill:
    """One signal.

    Attributes:
        task: Whose run.
        processes: Of the run.
        number: The signal's name.
        stage: Where the run was, as far as it said.
        after_s: Seconds after its start.
        whom: "launcher", "one process" or "all".
    """

    task: str
    processes: int
    number: str
    stage: str
    after_s: float
    whom: str


@dataclass
class Soak:
    """The state of the whole: where it works, what it did, what went wrong.

    Of the undisturbed run of each task and number of processes it knows how long it took and which stages it said.
    """

    folder: Path
    draw: random.Random
    kills: list[Kill] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)  # of a cluster
    stages: dict[str, set[str]] = field(default_factory=dict)

    @property
    def stage_file(self) -> Path:
        """Where the watched process says its stage."""
        return self.folder / "stage"

    def stage(self) -> str:
        """Return the last stage said."""
        with contextlib.suppress(OSError):
            return self.stage_file.read_text() or "start"
        return "start"


def start(soak: Soak, words: Sequence[str], place: Path) -> subprocess.Popen[str]:
    """Start a run in a session of its own, with the watcher."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("ADAMP_", "WANDB_", "RANK", "WORLD_SIZE"))}
    path = os.pathsep.join([str(soak.folder / "watcher"), python_path()])
    env |= {**soak.env, "PYTHONPATH": path, "SOAK_STAGE": str(soak.stage_file), "SOAK_PLACE": str(place),
            "OMP_NUM_THREADS": "1",
            "ADAMP_DATA": str(place / "cache"), "ADAMP_RESULTS": str(place), "WANDB_MODE": "disabled"}  # fmt: skip
    soak.stage_file.unlink(missing_ok=True)
    with (place / "log.txt").open("a") as log:
        return subprocess.Popen(
            [sys.executable, str(TRAIN), *words], env=env, text=True, cwd=place,
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def processes_of(place: Path) -> list[int]:
    """Return the processes whose environment says that they belong to a run."""
    mark, found = f"SOAK_PLACE={place}\0".encode(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes() + b"\0":
                    found.append(int(entry.name))
    return sorted(found)


def in_queue(soak: Soak) -> bool:
    """Whether SLURM still holds jobs, which outlive their launcher."""
    if not soak.env:
        return False
    from tests.scripts import slurm_cluster

    return bool(slurm_cluster.ask(soak.env, "squeue", "-h"))


def wait_for_end(soak: Soak, place: Path) -> None:
    """Wait until no process of a run is left: those whose launcher was killed save before they go."""
    deadline = time.monotonic() + PATIENCE
    while (left := processes_of(place)) or in_queue(soak):
        if time.monotonic() > deadline:
            for number in left:
                with contextlib.suppress(OSError):
                    os.kill(number, signal.SIGKILL)
            raise RuntimeError(f"processes {left} of {place} did not end")
        time.sleep(0.05)


def cells_of(place: Path, launcher: int) -> list[int]:
    """Return the processes of a sweep that train, without its launcher and the daemons of a cluster."""
    cells = []
    for number in processes_of(place):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{number}/cmdline").read_bytes()
            if number != launcher and (b"submitit" in words or TRAIN.name.encode() in words):
                cells.append(number)
    return cells


def disturb(soak: Soak, process: subprocess.Popen[str], *, task: str, processes: int, place: Path) -> Kill | None:
    """Wait for a moment and send a signal; None if the run ended before."""
    number, key = soak.draw.choice(SIGNALS), f"{task} {processes}"
    known = [stage for stage in STAGES if stage in soak.stages[key]]
    aim = soak.draw.choice(known) if known and soak.draw.random() < AIMED else None
    begun = time.monotonic()
    until = begun + (soak.draw.random() if aim is None else LATE) * soak.seconds[key]
    while process.poll() is None and time.monotonic() < until:
        if aim is not None and soak.stage() == aim:
            time.sleep(soak.draw.uniform(0, 1.0) if aim == "training" else 0.0)
            break
        time.sleep(0.001)
    if process.poll() is not None:
        return None
    whom, targets = "launcher", [process.pid]
    if task in ("ray", "slurm") and number != signal.SIGUSR1 and (cells := cells_of(place, process.pid)):
        if number == signal.SIGKILL or task == "slurm":  # SLURM's jobs go on without their launcher
            whom, targets = "one process", [soak.draw.choice(cells)]
    elif number == signal.SIGKILL and processes > 1:
        whom = soak.draw.choice(("launcher", "one process", "all"))
        everyone = processes_of(place)
        copies = [each for each in everyone if each != process.pid]
        targets = {
            "launcher": targets,
            "one process": [soak.draw.choice(copies)] if copies else targets,
            "all": everyone,
        }[whom]
    kill = Kill(task, processes, number.name, soak.stage(), round(time.monotonic() - begun, 2), whom)
    for target in targets:
        with contextlib.suppress(ProcessLookupError):
            os.kill(target, number)
    return kill


def disturbed(soak: Soak, task: str, processes: int, *, times: int) -> Path:
    """Run a task to its end through so many signals, and return its place."""
    place = Path(tempfile.mkdtemp(prefix="run-", dir=soak.folder))
    base = soak_runs.words(task, data=soak.folder / "data", place=place, processes=processes)
    done = 0
    while done < times:
        often = soak.draw.choice(("0", "0", "0.01", "1000"))
        process = start(soak, [*base, f"train.checkpoint_minutes={often}"], place)
        while done < times:
            kill = disturb(soak, process, task=task, processes=processes, place=place)
            if kill is None:
                break
            done += 1
            soak.kills.append(kill)
            print(
                f"{len(soak.kills):4} {kill.number:8} {kill.task} x{processes}, {kill.stage}, {kill.whom}", flush=True
            )
            if kill.number != "SIGUSR1":
                break
        finished = process.poll() == 0
        process.wait(timeout=PATIENCE)
        wait_for_end(soak, place)
        if finished:
            break
    return place


def finish(soak: Soak, task: str, processes: int, place: Path) -> bool:
    """Run to the end undisturbed; say so if it does not end well."""
    words = soak_runs.words(task, data=soak.folder / "data", place=place, processes=processes)
    key, begun = f"{task} {processes}", time.monotonic()
    process = start(soak, [*words, "train.checkpoint_minutes=1000"], place)
    seen: set[str] = set()
    while (code := process.poll()) is None and time.monotonic() - begun < PATIENCE:
        seen.add(soak.stage())
        time.sleep(0.005)
    code = process.wait(timeout=1) if code is None else code
    wait_for_end(soak, place)
    soak.seconds.setdefault(key, time.monotonic() - begun)
    soak.stages.setdefault(key, seen)
    if code:
        tail = " | ".join((place / "log.txt").read_text().strip().splitlines()[-3:])
        soak.faults.append(f"{task} x{processes}: ended with {code}: {tail[:600]}")
    return code == 0


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what is nested in a checkpoint, by a dotted name."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flat(inner, f"{name}.{key}")
    else:
        yield name, value


def differences(one: Path, other: Path) -> Iterator[str]:
    """Yield how a disturbed place differs from the undisturbed one; it must not."""
    import torch

    runs = {path.relative_to(one / "runs").parent for path in one.glob("runs/*/*/run.json")}
    found = {path.relative_to(other / "runs").parent for path in other.glob("runs/*/*/run.json")}
    if runs != found:
        yield f"runs differ: {sorted(map(str, runs ^ found))}"
    for run in sorted(runs & found):
        a, b = one / "runs" / run, other / "runs" / run
        record = json.loads((b / "run.json").read_text())
        if record["status"] != "finished":
            yield f"{run}: status {record['status']}"
        if (a / "metrics.jsonl").read_bytes() != (b / "metrics.jsonl").read_bytes():
            yield f"{run}: metrics.jsonl differs"
        if json.loads((a / "run.json").read_text())["scores"] != record["scores"]:
            yield f"{run}: scores differ"
        for name in ("last.pt", "best.pt"):
            if (a / "checkpoints" / name).exists() != (b / "checkpoints" / name).exists():
                yield f"{run}: only one has {name}"
            elif (a / "checkpoints" / name).exists():
                states = [torch.load(x / "checkpoints" / name, weights_only=True) for x in (a, b)]
                left, right = (dict(flat(state["networks"])) for state in states)
                same = left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
                if not same or states[0]["step"] != states[1]["step"]:
                    yield f"{run}: {name} differs"
        if rest := [str(path) for path in b.rglob("*.tmp")]:
            yield f"{run}: left behind {rest}"


def soaked(soak: Soak, pairs: Sequence[tuple[str, int]], *, kills: int, minutes: float) -> None:
    """Go round the tasks until there were so many signals, or the time is over."""
    deadline = time.monotonic() + 60 * minutes
    whole: dict[tuple[str, int], Path] = {}
    for task, processes in pairs:
        place = Path(tempfile.mkdtemp(prefix="whole-", dir=soak.folder))
        if finish(soak, task, processes, place):
            whole[task, processes] = place
            print(f"     whole    {task} x{processes}, {soak.seconds[f'{task} {processes}']:.1f} s", flush=True)
    while whole and len(soak.kills) < kills and time.monotonic() < deadline:
        for (task, processes), reference in list(whole.items()):
            if len(soak.kills) >= kills or time.monotonic() > deadline:
                break
            place = disturbed(soak, task, processes, times=min(4, kills - len(soak.kills)))
            if finish(soak, task, processes, place):
                soak.faults += [f"{task} x{processes}: {line} ({place})" for line in differences(reference, place)]


def summary(kills: Sequence[Mapping[str, Any]], faults: Sequence[str], **facts: Any) -> dict[str, Any]:
    """Return the figures of a soak, and how many kills there were of each kind."""
    counts = {key: dict(Counter(str(kill[key]) for kill in kills)) for key in COUNTED}
    return {**facts, "kills": len(kills), "faults": list(faults), **counts}


def table(figures: Mapping[str, Any]) -> str:
    """Return the page's table: tasks, and how many signals their runs went through."""
    lost = Counter(next(task for task in figures["task"] if line.startswith(task)) for line in figures["faults"])
    rows = [("Runs of", "signals", "runs that ended otherwise"), ("---", "---", "---")]
    rows += [(task, str(count), str(lost[task])) for task, count in figures["task"].items()]
    rows += [("**all**", f"**{figures['kills']}**", f"**{len(figures['faults'])}**")]
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    spread = [", ".join(f"{count} {name}" for name, count in figures[key].items()) for key in ("number", "stage")]
    where = "; ".join(figures["where"])
    return f"{text}\n\nSignals: {spread[0]}. Stages: {spread[1]}. {figures['seconds'] // 60} minutes in all; {where}."


def main(argv: Sequence[str]) -> int:
    """Soak, write what was done, print a summary, and return the exit code."""
    defaults = {"kills": "100", "tasks": "", "processes": "1,2", "seed": "0", "folder": "", "minutes": "100000",
                "out": options.results("soak.json"), "more": "false", "page": ""}  # fmt: skip
    values = options.parse(argv, options=defaults)
    known = [*soak_runs.RUNS, *soak_runs.SWEEPS]
    tasks = [word for word in values["tasks"].split(",") if word] or known
    if unknown := [task for task in tasks if task not in known]:
        raise options.ReadError(f"tasks={unknown[0]} is not known; choose among: {', '.join(known)}")
    counts = values["processes"].split(",")
    if not all(word in ("1", "2") for word in counts) or not values["kills"].isdigit():
        raise options.ReadError("processes is 1, 2 or 1,2, and kills a number")
    if values["more"] not in ("true", "false") or not values["minutes"].isdigit():
        raise options.ReadError("more is true or false, and minutes a whole number")
    for task in tasks:
        if reason := soak_runs.unavailable(task):
            print(f"     left out {task}: {reason}", flush=True)
    tasks = [task for task in tasks if not soak_runs.unavailable(task)]
    pairs = [(t, int(count)) for count in counts for t in tasks if not (t in soak_runs.SWEEPS and count == "2")]
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        place = values["folder"] or stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-"))
        soak = Soak(Path(place).absolute(), random.Random(int(values["seed"])))
        if "slurm" in tasks:
            from tests.scripts import slurm_cluster

            soak.env = stack.enter_context(slurm_cluster.cluster())
        (soak.folder / "watcher").mkdir(parents=True)
        (soak.folder / "watcher" / "sitecustomize.py").write_text(WATCHER)
        soak_runs.prepare(soak.folder / "data")
        soaked(soak, pairs, kills=int(values["kills"]), minutes=float(values["minutes"]))
    from tasks.engine.provenance import provenance

    out, kills = Path(values["out"]), [asdict(kill) for kill in soak.kills]
    before: dict[str, Any] = {"list": [], "faults": [], "seconds": 0, "where": []}
    if values["more"] == "true" and out.is_file():
        before = json.loads(out.read_text(encoding="utf-8"))
    figures = summary(
        [*before["list"], *kills], [*before["faults"], *soak.faults], where=[*before["where"], provenance(ROOT)],
        seconds=before["seconds"] + round(time.monotonic() - begun),
    )  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**figures, "list": [*before["list"], *kills]}, indent=1) + "\n")
    if values["page"]:
        write_page(Path(values["page"]), table(figures), command="soak")
    print(json.dumps(figures, indent=1))
    return int(bool(soak.faults) or len(soak.kills) < int(values["kills"]))


if __name__ == "__main__":
    sys.exit(options.command(main, __doc__ or ""))
