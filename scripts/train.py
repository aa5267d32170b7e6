"""Train one network with one optimizer: `python scripts/train.py experiment=imagenet-resnet18 opt=sgdp`.

It turns a configuration into a `RunSpec` and hands that to the engine; `launch/` holds the sweeper and the
launchers. Exit codes: 0 done or done before, 1 the run failed, 2 wrong input, 128 + n stopped by signal n (130 for
Ctrl-C) with a checkpoint saved.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # `python scripts/train.py` puts scripts/ there, not the root
    sys.path.insert(0, str(ROOT))
# Threads that wait for each other sleep instead of spinning: on cores that other work shares, a run is otherwise
# several times slower. It changes no number, and must be said before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let errors reach `main`, which says them in a line or two
if __name__ == "__main__":  # it asks for a checkpoint; before there is anything to save, it must not end the run
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)

import hydra  # noqa: E402
from hydra.core.config_store import ConfigStore  # noqa: E402
from hydra.core.hydra_config import HydraConfig  # noqa: E402
from hydra.errors import HydraException  # noqa: E402
from hydra.types import RunMode  # noqa: E402
from omegaconf import DictConfig, OmegaConf  # noqa: E402
from omegaconf.errors import OmegaConfBaseException  # noqa: E402

from evidence import sweeps as grids  # noqa: E402
from tasks.base import InputError  # noqa: E402
from tasks.engine.config import Train, check_division  # noqa: E402
from tasks.engine.errors import Diverged, RunFailed, Stopped  # noqa: E402
from tasks.engine.neutral_keys import NAMED, is_neutral_override  # noqa: E402
from tasks.engine.run_spec import RunSpec  # noqa: E402

if TYPE_CHECKING:  # torch is loaded only by a run that has something left to do
    from tasks.engine.phases import Phase

ConfigStore.instance().store(group="train", name="options", node=Train)

# What a launcher needs besides the suite, and the extra that brings it.
LAUNCHERS = {"slurm": ("submitit", "slurm"), "ray": ("ray", "ray")}

DRAWN: set[tuple[Path, str, Path]] = set()  # (runs, experiment, reports) of the runs that ended in this process
CODES: list[int] = []  # exit codes of this process's runs, and of the cells that its launcher started


def run_name(config: Mapping[str, Any], overrides: Sequence[str]) -> str:
    """Return a run's name from its configuration alone: no time, so that the same command finds the same run.

    Examples:
        >>> config = {"opt_name": "sgd", "opt": {"lr": 0.1, "weight_decay": 0}, "scale_name": "mini",
        ...           "train": {"seed": 0}, "tag": None}
        >>> run_name(config, ["experiment=imagenet-resnet18", "opt=sgd", "train.epochs=2", "gpus=2"])
        'sgd,wd=0,lr=0.1,mini,seed=0,train.epochs=2'
    """
    opt = config["opt"]
    words = [
        str(config["opt_name"]), f"wd={_number(opt, 'weight_decay')}", f"lr={_number(opt, 'lr')}",
        str(config["scale_name"]), f"seed={config['train']['seed']}",
    ]  # fmt: skip
    for override in sorted(overrides):
        key = override.split("=", 1)[0].lstrip("+~")
        if key not in NAMED and not is_neutral_override(key):
            words.append(override.lstrip("+"))
    if config.get("tag"):
        words.append(str(config["tag"]))
    name = re.sub(r"[^\w.,=+-]+", "_", ",".join(words))
    if len(name) <= 200:
        return name
    # File systems end at 255 bytes. What is cut off must still tell two runs apart, a tag above all.
    return f"{name[:189]}-{hashlib.sha256(name.encode()).hexdigest()[:10]}"


def _number(opt: Mapping[str, Any], key: str) -> str:
    value = opt.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"opt.{key} is {value!r}; it must be a number")
    return f"{value:.12g}"


def plan(cfg: DictConfig, overrides: Sequence[str]) -> RunSpec:
    """Turn a composed configuration into a plan; nothing is built yet.

    Raises:
        InputError: The configuration names no experiment, or a value is out of its range.
    """
    if cfg.experiment_name is None:
        known = ", ".join(sorted(path.stem for path in (ROOT / "configs" / "experiment").glob("*.yaml")))
        raise InputError(f"no experiment is named; add experiment=NAME, one of: {known}")
    if not isinstance(cfg.gpus, int) or not cfg.gpus >= 1:
        raise InputError(f"gpus is {cfg.gpus}; it must be a whole number of processes, at least 1")
    train: Train = OmegaConf.to_object(cfg.train)  # type: ignore[assignment]
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    config.pop("sweep", None)  # which table asked for a run is no part of the run: tables share runs
    name = run_name(config, overrides)

    def make(node: Any) -> Any:
        # Plain containers: optimizers would hold OmegaConf lists, which a weights-only load refuses.
        return hydra.utils.instantiate(node, _convert_="all")

    def make_phases() -> list[Phase]:
        from tasks.engine.phases import Phase

        given = [dict(phase) for phase in cfg.phases] or [{"epochs": train.epochs}]
        return [
            Phase(
                epochs=phase["epochs"], trainable=phase.get("trainable", ""),
                start_from=phase.get("start_from", "last"),
                opt=make(phase["opt"]) if phase.get("opt") else (make(cfg.opt) if i == 0 else None),
                schedule=make(phase.get("schedule") or cfg.schedule),
            )
            for i, phase in enumerate(given)
        ]  # fmt: skip

    def draw(folder: Path) -> Path:
        from scripts.report import write_run_report  # matplotlib is imported only by a run that draws

        DRAWN.add((Path(cfg.paths.runs), cfg.experiment_name, Path(cfg.paths.reports)))
        ended = json.loads((folder / "run.json").read_text(encoding="utf-8"))["status"] == "finished"
        for name in cfg.figures if ended else []:  # a run that is told to stop has no time for them
            try:
                hydra.utils.get_method(name)(folder)
            except Exception as trouble:  # one picture less; the run and its page stand
                logging.getLogger(__name__).warning("%s could not draw %s: %s", name, folder, trouble)
        return write_run_report(folder)

    return RunSpec(
        experiment=cfg.experiment_name, name=name, folder=Path(cfg.paths.runs) / cfg.experiment_name / name,
        config=config, train=train, rules=config["opt_groups"], make_task=lambda: make(cfg.task),
        make_phases=make_phases, make_loggers=lambda: list(make(cfg.get("logger") or {}).values()),
        write_report=draw if cfg.pictures else None, overrides_by_property=config["marks"],
        normalise=config["normalise"], normalise_eps=config["normalise_eps"], argv=(*places(), *overrides),
    )  # fmt: skip


def places() -> list[str]:
    """Return the words of the command line that name further folders of configurations."""
    if not HydraConfig.initialized():
        return []
    config = HydraConfig.get()
    folders = [
        f"--config-dir={source.path}" for source in config.runtime.config_sources if source.provider == "command-line"
    ]
    return folders + [word for word in config.overrides.hydra if word.startswith("hydra.searchpath=")]


def run_config(cfg: DictConfig) -> int:
    """Run one configuration here, or start its processes, and return the exit code."""
    join_cluster()
    overrides = list(HydraConfig.get().overrides.task)
    planned = plan(cfg, overrides)
    if (record := planned.finished()) is not None:
        if record["status"] != "finished":
            raise Diverged.recorded(record["error"], planned.folder)
        if speaks():
            planned.print_summary(record, "was finished before")
        return 0
    if cfg.gpus > 1 and "RANK" not in os.environ:
        from tasks.engine.processes import spawn

        check_division(planned.train, cfg.gpus)
        # A sweep's name among the words must not make a grid of each process.
        code = spawn([sys.executable, str(Path(__file__).resolve()), *planned.argv, "hydra.mode=RUN"], cfg.gpus)
        diverged = code == 1 and sweeping() and planned.finished() is not None
        return 0 if diverged else code
    from tasks.engine.run import run

    run(planned)
    return 0


def join_cluster() -> None:
    """In a process that submitit started, take rank and address of the others, and the log, from the cluster."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return
    from submitit.helpers import JobEnvironment, TorchDistributedEnvironment

    job = JobEnvironment()
    os.environ["ADAMP_LOG"] = str(job.paths.stdout).replace(f"_{job.global_rank}_log", "_0_log")
    TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)


def explain(error: BaseException) -> str:
    """Return a configuration error in one or two lines: what was given, what is known."""
    cause: BaseException | None = error
    while cause is not None:  # Hydra wraps what a constructor raised
        if isinstance(cause, InputError):
            return str(cause)
        cause = cause.__cause__
    if isinstance(error.__cause__, OmegaConfBaseException):  # the wrapper repeats the override, the cause says why
        error = error.__cause__
    text = re.sub(r"\s*\n\s*", " ", str(error)).strip()
    if found := re.search(r"Could not find '(\w+)/([^']+)' Available options in '\w+': (.+?) Config search path", text):
        group, value, known = found.groups()
        return f"{group}={value} is not known; choose one of: {', '.join(known.split())}"
    if found := re.search(r"Could not override '([^']+)'", text):
        return f"{found[1]} is no option here; see the names with --cfg job, or the choices with --help"
    if found := re.search(r"(.*?) full_key: (\S+)", text):
        return f"{found[2]}: {found[1]}"
    if found := re.search(r"(.*) See https://hydra\.cc/\S*override_grammar", text):
        return f"an argument cannot be read as key=value: {found[1]}"
    return text[:400]


def guarded(call: Callable[[], int]) -> int:
    """Call, say an expected error in a line or two on standard error, and return the exit code it stands for.

    Stopping by signal is passed on as SystemExit: it ends a sweep too, where a failed cell does not. In a cluster's job
    SIGUSR2 ends the process and queues the job again; any other signal is an exit code for whoever waits for the job.
    """
    try:
        code = call()
    except (InputError, HydraException, OmegaConfBaseException) as error:
        _say(f"error: {explain(error)}")
        return 2
    except ValueError as error:
        if not str(error).startswith("Config group override"):  # how Hydra takes a word without a key, such as `=3`
            raise
        _say(f"error: an argument is not key=value: {error}")
        return 2
    except RunFailed as error:
        _say(f"failed: {error}")
        # In a table a run that diverged is a cell that says so.
        return 0 if isinstance(error, Diverged) and sweeping() else 1
    except Stopped as error:
        _say(f"{error}; a checkpoint is saved, the same command goes on from it")
        if "SUBMITIT_EXECUTOR" in os.environ:
            if error.code == 128 + signal.SIGUSR2:
                queue_again()
            return error.code
        raise SystemExit(error.code) from None
    except KeyboardInterrupt:
        _say("stopped; the same command goes on from the last checkpoint")
        raise SystemExit(130) from None
    if code > 128:  # the processes of this run were stopped by a signal
        raise SystemExit(code)
    return code


def queue_again() -> NoReturn:
    """Hand SIGUSR2 to submitit, whose handler stood here before the run's: it queues the job again and ends rank 0."""
    handler = signal.getsignal(signal.SIGUSR2)
    if callable(handler):
        handler(signal.SIGUSR2, None)
    raise SystemExit(0)  # the other ranks: one that stays would hold up the job


def sweeping() -> bool:
    """Whether this run is a cell of a grid."""
    if "ADAMP_CELL" in os.environ or "SUBMITIT_EXECUTOR" in os.environ:
        return True
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def composed(overrides: Sequence[str]) -> RunSpec:
    """Return the plan of the run that overrides stand for, without running it; made before the next is composed."""
    with hydra.initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = hydra.compose("train", list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)  # what asks for the choices of groups asks it
    own = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    return plan(own, overrides)


def identify(overrides: Sequence[str], seeds: Sequence[int]) -> tuple[str, list[str]]:
    """Return the experiment and, for each seed, the name of the run that overrides stand for, without running it.

    Composing takes half a second, and is the same for all seeds.
    """
    planned = composed([*overrides, f"train.seed={seeds[0]}"])
    config = planned.config
    return planned.experiment, [run_name({**config, "train": {**config["train"], "seed": s}}, overrides) for s in seeds]


def compare() -> None:
    """Draw the page that compares all runs of each experiment that ran, once even after a sweep of many cells."""
    if "ADAMP_CELL" in os.environ:
        return  # the launcher draws it when all cells have ended
    for runs, experiment, reports in sorted(DRAWN):
        from scripts.report import write_experiment_report

        try:
            print(f"compare     {write_experiment_report(runs, experiment, reports)}", flush=True)
        except Exception as trouble:  # the runs are done and recorded; `make report` draws again
            logging.getLogger(__name__).warning("the page that compares the runs could not be drawn: %s", trouble)


def speaks() -> bool:
    """Whether this process is the one of its run that speaks to the user."""
    return os.environ.get("RANK", "0") == "0"


def _say(message: str) -> None:
    if speaks():
        print(message, file=sys.stderr, flush=True)


def main() -> int:
    """Run the command line and return the exit code: the highest of a sweep's cells."""
    level = logging.INFO if speaks() else logging.ERROR
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s", stream=sys.stderr)
    for noisy in ("matplotlib", "PIL", "torch", "urllib3", "fontTools"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    CODES.clear()

    def whole() -> int:
        given = sys.argv
        try:
            sys.argv = [given[0], *launched(given[1:])]
            hydra_main()
        finally:
            sys.argv = given
        return max(CODES, default=0)

    code = guarded(whole)
    compare()
    return code


def launched(words: Sequence[str]) -> list[str]:
    """Return a command line as Hydra needs it: with launchers it bothers in grids alone, so a single run becomes one.

    Raises:
        InputError: The launcher's package is missing.
    """
    launcher = grids.chosen(words, "launcher", "local")
    check_launcher(launcher)
    grid = any(word in ("-m", "--multirun") or word.startswith("hydra.mode=") for word in words)
    return [*words, *([] if grid or launcher == "local" else ["hydra.mode=MULTIRUN"])]


@hydra.main(version_base="1.3", config_path=str(ROOT / "configs"), config_name="train")
def hydra_main(cfg: DictConfig) -> int:
    """Run one configuration, here or in the process that a launcher chose, and return its exit code."""
    code = guarded(lambda: run_config(cfg))  # errors end here: Hydra would print its own report around them
    CODES.append(code)
    return code


def check_launcher(name: str) -> None:
    """Refuse a launcher whose package is not installed.

    Raises:
        InputError: It is missing.
    """
    module, extra = LAUNCHERS.get(name, ("os", ""))
    if importlib.util.find_spec(module) is None:
        raise InputError(f"launcher={name} needs the package {module}: pip install '.[{extra}]' in this folder")


if __name__ == "__main__":
    # By its own name: what a launcher sends to another process names its functions, and `__main__` is another there.
    from scripts.train import main as start

    sys.exit(start())
