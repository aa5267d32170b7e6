"""The rules of the tree that no single module's test can see: imports, sizes, names, the Makefile, the lock."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("adamp", "tasks", "evidence", "launch", "scripts", "benchmarks", "tests")
# Files that may pass 400 lines, and how far. Keep it short.
LONG_FILES: dict[str, int] = {}


def tracked() -> list[Path]:
    """Return the files of the commit and of the work on top of it; outside a checkout, what the packages hold."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    return [path for name in done.stdout.splitlines() if (path := ROOT / name).is_file()]


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> set[str]:
    """Return the dotted names a file imports anywhere in it; `from a import b` gives both a and a.b."""
    found: set[str] = set()
    package = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def offences(files: list[Path], bad: tuple[str, ...]) -> list[str]:
    return [
        f"{name(path)} imports {found}"
        for path in files
        for found in sorted(imports(path))
        if any(found == b or found.startswith(f"{b}.") for b in bad)
    ]


def test_the_package_imports_torch_and_the_standard_library_alone() -> None:
    allowed = {"torch", "adamp", *sys.stdlib_module_names}

    def may(path: Path) -> set[str]:
        # Triton comes with torch where there are GPUs; these files are imported only by a step that uses it.
        return allowed | ({"triton"} if path.name.startswith("triton_") else set())

    wrong = [f"{name(p)}: {i}" for p in sources("adamp") for i in imports(p) if i.split(".")[0] not in may(p)]
    assert not wrong


def test_no_task_imports_the_engine_or_what_only_the_engine_may_know() -> None:
    tasks = [path for path in sources("tasks") if "engine" not in path.relative_to(ROOT).parts]
    assert len(tasks) > 5
    assert not offences(tasks, ("tasks.engine", "torch.distributed", "hydra", "omegaconf", "wandb", "scripts"))


def test_the_interface_between_tasks_and_engine_imports_neither() -> None:
    assert not offences([ROOT / "tasks" / "base.py"], ("tasks", "scripts", "adamp"))


def test_the_engine_knows_tasks_through_their_interface_alone() -> None:
    for path in sources("tasks/engine"):
        own = {i for i in imports(path) if i == "tasks" or i.startswith("tasks.")}
        wrong = {i for i in own if not (i + ".").startswith(("tasks.base.", "tasks.engine."))} - {"tasks"}
        assert not wrong, f"{name(path)}: {wrong}"
    assert not offences(sources("tasks/engine"), ("hydra", "omegaconf", "scripts"))


def test_hydra_stays_in_the_front_end() -> None:
    assert [name(p) for p in sources("scripts") if "hydra" in imports(p)] == ["scripts/train.py"]
    decorated = [
        name(p) for p in tracked() if p.suffix == ".py" and re.search(r"^\s*@hydra\.main", p.read_text(), re.M)
    ]
    assert decorated == ["scripts/train.py"]


def test_the_package_does_not_import_the_suite() -> None:
    assert not offences(sources("adamp"), ("tasks", "scripts"))


def test_no_file_has_a_name_that_says_nothing() -> None:
    empty = re.compile(r"(utils?|helpers?|misc|managers?|common)$")
    assert not [name(p) for folder in PACKAGES for p in sources(folder) if empty.search(p.stem)]


def test_files_stay_under_400_lines() -> None:
    lengths = {name(p): len(p.read_text().splitlines()) for folder in PACKAGES for p in sources(folder)}
    assert not {file: n for file, n in lengths.items() if n >= LONG_FILES.get(file, 400)}
    assert not [file for file in LONG_FILES if lengths.get(file, 0) < 400], "no longer long: take it off the list"


def make(*words: str) -> str:
    done = subprocess.run(["make", "--no-print-directory", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def makefile_targets() -> set[str]:
    found = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.M))
    for group in ("experiment", "sweep"):
        found |= {path.stem for path in (ROOT / "configs" / group).glob("*.yaml")}
    return found


def test_make_help_lists_every_target_with_a_word_about_it() -> None:
    listed = dict(re.findall(r"^  (\S+) +(\S.*)$", make("help"), re.M))
    assert makefile_targets() <= listed.keys()
    assert make() == make("help")  # the default


def test_what_is_typed_as_key_value_reaches_the_program_and_gpus_becomes_its_option() -> None:
    line = make("-n", "-o", ".venv/.ready", "imagenet-resnet18", "opt=sgdp", "opt.weight_decay=1e-5", "GPUS=2")
    line = line.strip().splitlines()[-1]
    assert "scripts/train.py experiment=imagenet-resnet18 gpus=2" in line
    assert {"opt=sgdp", "opt.weight_decay=1e-5"} <= set(line.split())
    assert "GPUS=2" not in line


def test_every_script_that_the_makefile_calls_exists() -> None:
    called = set(re.findall(r"\$\(PY\) ((?:scripts|benchmarks)/\S+\.py)", (ROOT / "Makefile").read_text()))
    assert called
    assert not [file for file in called if not (ROOT / file).exists()]


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "docs"])
def test_documents_name_make_targets_that_exist(document: str) -> None:
    path = ROOT / document
    pages = sorted(path.rglob("*.md")) if path.is_dir() else [path] if path.exists() else []
    targets = makefile_targets()
    for page in pages:
        for block in re.findall(r"^```[a-z]*\n(.*?)^```", page.read_text(), re.M | re.S):
            for target in re.findall(r"^(?:\$ )?make +([a-z][\w-]*)(?![\w-]*=)", block, re.M):
                assert target in targets, f"{name(page)}: make {target}"


def test_links_in_documents_lead_somewhere() -> None:
    for page in [p for p in tracked() if p.suffix == ".md"]:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{name(page)}: {link}"


def test_the_lock_pins_every_package_by_hash_and_names_no_host() -> None:
    text = (ROOT / "requirements.lock").read_text()
    pin = r"[A-Za-z0-9._-]+(\[[\w,-]+\])?==[\w.!+-]+( ; [\w .'<>=!()]+)? \\"
    for line in text.splitlines():  # the whole grammar: no place for an address or an option of pip
        assert re.fullmatch(rf"{pin}|    --hash=sha256:[0-9a-f]{{64}}( \\)?", line), line
    entries = [e for e in re.split(r"\n(?=[A-Za-z0-9])", text.strip()) if not e.startswith("#")]
    assert len(entries) > 30
    for entry in entries:
        assert re.match(r"[A-Za-z0-9._-]+(\[[\w,-]+\])?==[^\s;\\]+", entry), entry.splitlines()[0]
        assert "--hash=sha256:" in entry, entry.splitlines()[0]


def test_no_tracked_file_is_large_and_the_embedded_data_is_small() -> None:
    sizes = {name(path): path.stat().st_size for path in tracked()}
    assert not {file: size for file, size in sizes.items() if size > 5 * 2**20}
    assert sum(size for file, size in sizes.items() if file.startswith("data/")) < 12 * 2**20


def test_no_text_names_a_path_of_one_machine() -> None:
    places = "|".join(["work", "home", "root", "Users", "mnt", "scratch"])
    machine = re.compile(rf"(?<![\w.$~}})*/-])/(?:{places})/[\w.-]")
    for path in tracked():
        data = path.read_bytes()
        if b"\0" not in data[:8192]:
            found = machine.search(data.decode(errors="replace"))
            assert not found, f"{name(path)}: {found and found[0]}"
