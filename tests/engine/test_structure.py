"""The structure of the engine: directions of imports, and a train state that is what a checkpoint holds."""

import ast
import dataclasses
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import tasks.engine
from tasks.engine import checkpoint, loggers, wandb_sink
from tasks.engine.train_state import TrainState
from tests.engine import toys

FOLDER = Path(tasks.engine.__file__).parent
MODULES = {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}
# Field of TrainState -> key of last.pt, whose names are older
SAVED_AS = {
    "modules": "networks", "averages": "averages", "scaler": "scaler", "non_finite": "guard", "loop_states": "carry",
    "optimizers": "optimizers", "probes": "probes", "meter": "meter", "progress": "at", "best": "best",
    "scores": "scores",
}  # fmt: skip


def engine_imports(module: str) -> set[str]:
    """Return the modules of the engine that one imports anywhere, under TYPE_CHECKING or in functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((FOLDER / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "tasks.engine":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tasks.engine."):
            names.add((node.module or "").removeprefix("tasks.engine."))
    return names & MODULES


def test_imports_of_the_engine_have_no_circle() -> None:
    graph = {module: engine_imports(module) for module in MODULES}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)  # raises CycleError


def test_only_what_makes_runs_knows_the_trainer() -> None:
    assert {module for module in MODULES if "trainer" in engine_imports(module)} == {"run", "many"}


def test_what_answers_a_command_line_needs_no_torch() -> None:
    names = ("config", "errors", "loggers", "processes", "record_schema", "run_spec", "signals")
    code = f"import sys; import {', '.join(f'tasks.engine.{name}' for name in names)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_checkpoint_holds_exactly_the_train_state(tmp_path: Path) -> None:
    made = toys.trainer(toys.Memory(), tmp_path, nonfinite="skip", max_steps=2)
    made.fit()
    toys.close(made)
    contents = checkpoint.load(tmp_path / "checkpoints" / "last.pt", run="toys/toy")
    (process,) = contents.pop("processes")
    beside = {"format", "run", "step", "metrics_offset", "generators", "buffers", "faulty_examples"}
    assert (contents.keys() | process.keys()) - beside == set(SAVED_AS.values())
    assert {field.name for field in dataclasses.fields(TrainState)} == SAVED_AS.keys()


def test_the_old_target_of_the_wandb_logger_loads() -> None:
    assert wandb_sink.WandbSink is loggers.WandbLogger
