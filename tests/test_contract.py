"""The rules of the tree that no single module's test can see: imports, sizes, names, the Makefile, the lock."""

from __future__ import annotations

import ast
import graphlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch import compose

ROOT = Path(__file__).resolve().parent.parent
# Room -> the rooms that it may import. Within a room everything may import everything, without a circle.
ROOMS: dict[str, tuple[str, ...]] = {
    "adamp": (),
    "tasks": ("adamp",),
    "evidence": ("tasks", "adamp"),
    "launch": ("evidence", "tasks", "adamp"),
    "hydra_plugins": ("launch",),
    "benchmarks": ("scripts.options", "scripts.prepare", "launch", "evidence", "tasks", "adamp"),
    "scripts": ("launch", "evidence", "tasks", "adamp"),
}
PACKAGES = (*ROOMS, "tests")


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


def statements(tree: ast.AST, *, loading: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield a file's import statements; with `loading` those alone that run when the file is loaded."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if loading and (later or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))):
            continue
        waiting += ast.iter_child_nodes(node)


def imports(path: Path, *, loading: bool = False) -> set[str]:
    """Return the dotted names a file imports; `from a import b` gives both a and a.b."""
    found: set[str] = set()
    package = list(path.relative_to(ROOT).parent.parts)
    for node in statements(ast.parse(path.read_text()), loading=loading):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def under(found: str, places: tuple[str, ...]) -> bool:
    return any(found == place or found.startswith(f"{place}.") for place in places)


def offences(files: list[Path], bad: tuple[str, ...]) -> list[str]:
    return [f"{name(path)} imports {found}" for path in files for found in sorted(imports(path)) if under(found, bad)]


def test_the_package_imports_torch_and_the_standard_library_alone() -> None:
    allowed = {"torch", "adamp", *sys.stdlib_module_names}

    def may(path: Path) -> set[str]:
        # Triton comes with torch where there are GPUs; these files are imported only by a step that uses it.
        return allowed | ({"triton"} if path.name.startswith("triton_") else set())

    wrong = [f"{name(p)}: {i}" for p in sources("adamp") for i in imports(p) if i.split(".")[0] not in may(p)]
    assert not wrong


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_downward(room: str) -> None:
    allowed = (room, *ROOMS[room])
    # `from scripts import options` gives "scripts" too: what counts is the name below it.
    crossing = {
        (name(path), found)
        for path in sources(room)
        for found in imports(path)
        if under(found, PACKAGES) and not under(found, (*allowed, "hydra_plugins.hydra_submitit_launcher"))
        if not any(place.startswith(f"{found}.") for place in allowed)
    }
    assert not crossing


def test_no_module_imports_itself_in_a_circle() -> None:
    modules = {name(path).removesuffix(".py").removesuffix("/__init__").replace("/", "."): path
               for room in ROOMS for path in sources(room)}  # fmt: skip
    graph = {}
    for module, path in modules.items():
        wanted = imports(path, loading=True)
        # `from package import module` needs the module, not what else the package's own file imports.
        whole = {
            found for found in wanted if not any(other.startswith(f"{found}.") and other in modules for other in wanted)
        }
        graph[module] = (whole & modules.keys()) - {module}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_tests_import_helpers_alone_from_other_tests() -> None:
    shared = [name(path) for path in sources("tests")
              if any(re.search(r"^tests(\.\w+)*\.test_", found) for found in imports(path))]  # fmt: skip
    assert not shared, "move what they share into a file that is not named test_*"


def test_every_file_finds_its_imports_without_a_hand_on_the_path() -> None:
    patched = [
        name(p)
        for r in (*ROOMS, "tests")
        for p in sources(r)
        if re.search(r"sys[.]path[.](in|ap|ex)|noqa[:] E402", p.read_text())
    ]
    assert not patched


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
    rooms = [room for room in ROOMS if room != "launch"]
    assert not [found for room in rooms for found in offences(sources(room), ("hydra",))]


def test_the_package_does_not_import_the_suite() -> None:
    assert not offences(sources("adamp"), ("tasks", "scripts"))


def test_no_file_has_a_name_that_says_nothing() -> None:
    empty = re.compile(r"(utils?|helpers?|misc|managers?|common)$")
    assert not [name(p) for folder in PACKAGES for p in sources(folder) if empty.search(p.stem)]


def make(*words: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(["make", "--no-print-directory", *words], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def makefile_targets() -> set[str]:
    found = set(re.findall(r"^([a-z][\w-]*):.*##", (ROOT / "Makefile").read_text(), re.M))
    for path in [*sources("scripts"), *sources("benchmarks")]:
        if path.parent.name != "prepare" and "\nif __name__ ==" in path.read_text():
            found.add(("benchmark-" * ("benchmarks" in path.parts) + path.stem).replace("_", "-"))
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
    assert "-m scripts.train experiment=imagenet-resnet18 gpus=2" in line
    assert {"opt=sgdp", "opt.weight_decay=1e-5"} <= set(shlex.split(line))
    assert "GPUS=2" not in line


@pytest.mark.parametrize(
    "word", ["tag=sgd,wd=0,lr=0.1", 'tag="a b"', "tag=it's", "tag=${x};&(", "+marks=[{a: 'b'}]", "key=word"]
)
def test_a_value_passes_through_make_letter_by_letter(word: str) -> None:
    line = make("-n", "-o", ".venv/.ready", "imagenet-resnet18", word)
    assert shlex.split(line)[-1] == word


def test_every_printable_character_passes_through_make_as_in_the_direct_command(tmp_path: Path) -> None:
    characters = [chr(code) for code in range(32, 127)]
    words = [f"key{place}=a{each}{each} b{each}" for place, each in enumerate(characters)]
    words += [
        f"key{len(words)}={''.join(characters[1:])}",
        "tag=R&D",
        'opt_groups=[{match: "bias|bn"}]',
        "last=;echo no",
    ]
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
    program.chmod(0o755)
    said = make("-o", ".venv/.ready", f"PY={program}", "imagenet-resnet18", *words)
    assert sorted(word for word in said.split("\0")[4:-1] if not word.startswith("PY=")) == sorted(words)


def test_a_space_that_make_takes_from_the_start_of_a_value_changes_neither_name_nor_configuration() -> None:
    given = ["experiment=imagenet-resnet18", "pictures=false", "+marks.a= {b: 1}", "tag= R"]
    line = make("-n", "-o", ".venv/.ready", *[given[0].split("=")[1], *given[1:]])
    passed = shlex.split(line.strip().splitlines()[-1])[3:]
    found, direct = compose.composed(passed), compose.composed(given)
    assert (found.name, found.config) == (direct.name, direct.config)


def outside_make() -> dict[str, str]:
    """The environment of a person's shell: under `make test` an inner make would announce its folder."""
    return {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["imagenet-resnet18", "opt", "adamp"], "opt is no target of make"),
        (["imagenet-resnet81"], "(did you mean imagenet-resnet18?)"),
        (["verify-result"], "(did you mean verify-results?)"),
    ],
)
def test_a_stray_word_is_refused_before_anything_starts(words: list[str], said: str) -> None:
    command = ["make", f"PYTHON={sys.executable}", *words]
    done = subprocess.run(command, cwd=ROOT, env=outside_make(), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr and len(done.stderr.splitlines()) == 1


def test_make_help_lines_up_and_a_closed_pipe_is_no_error() -> None:
    entries = re.findall(r"^  (\S+ +)\S", make("help"), re.M)
    assert len(set(map(len, entries))) == 1
    done = subprocess.run(
        "make help | head -1", shell=True, cwd=ROOT, env=outside_make(), capture_output=True, text=True
    )
    assert done.stdout.startswith("make NAME") and done.stderr == ""


TARGETS = {
    "report": "scripts.report", "tables": "scripts.tables --page --figures",
    "verify-results": "scripts.verify_results",
    "soak": "tests.reliability.soak", "corpus": "tests.reliability.corpus", "fuzz": "tests.reliability.fuzz",
    "load": "tests.reliability.load", "faults": "tests.reliability.faults", "audit": "scripts.audit",
    "dry-run": "scripts.dry_run", "imagenet-check": "scripts.imagenet_check",
    "benchmark": "benchmarks.engine", "benchmark-optimizers": "benchmarks.optimizers",
    "benchmark-gpu": "benchmarks.gpu_optimizers", "benchmark-audio": "benchmarks.audio", "doctor": "scripts.doctor",
}  # fmt: skip


def test_a_target_starts_the_module_of_its_name() -> None:
    lines = make("-n", "-o", ".venv/.ready", *TARGETS, "key=value").splitlines()
    assert [shlex.split(line.split(" -m ")[1]) for line in lines] == [
        [*said.split(), "key=value"] for said in TARGETS.values()
    ]


def test_a_new_command_is_one_file(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for folder, stem in (("scripts", "new_tool"), ("benchmarks", "new_peer")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
        (tmp_path / folder / f"{stem}.py").write_text(
            f'"""Says {stem}."""\n\nif __name__ == "__main__":\n    print("{stem}")\n'
        )
    listed = dict(re.findall(r"^  (\S+) +(\S.*)$", make("help", cwd=tmp_path), re.M))
    assert (listed["new-tool"], listed["benchmark-new-peer"]) == ("Says new_tool", "Says new_peer")
    (tmp_path / "new-tool").touch()  # phony: a file of its name does not stop it
    said = make("-o", ".venv/.ready", f"PY={sys.executable}", "new-tool", "benchmark-new-peer", cwd=tmp_path)
    assert {"new_tool", "new_peer"} <= set(said.splitlines())


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
