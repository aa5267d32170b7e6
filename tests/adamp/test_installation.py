"""Two distributions with one import name, and what a package index shows of this one."""

import os
import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest

import adamp
from adamp.installation import DISTRIBUTION, check_installation

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED_FILES = ("adamp/__init__.py", "adamp/adamp.py", "adamp/sgdp.py")


def install(site, name, version, files):
    """Write what pip records of a distribution: its name, version and list of files."""
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def test_the_published_package_in_the_same_folder_is_refused_by_name(tmp_path):
    install(tmp_path, "adamp", "0.3.0", PUBLISHED_FILES)
    with pytest.raises(ImportError, match=rf"adamp 0\.3\.0 and adamp-optimizers are both installed in {tmp_path}"):
        check_installation(tmp_path / "adamp", path=[str(tmp_path)])


def test_the_published_package_elsewhere_on_the_path_is_a_warning(tmp_path):
    install(tmp_path, "adamp", "0.3.0", PUBLISHED_FILES)
    with pytest.warns(RuntimeWarning, match=r"adamp 0\.3\.0 in .* same import name"):
        check_installation(tmp_path / "other" / "adamp", path=[str(tmp_path)])


@pytest.mark.parametrize(
    ("name", "files"),
    [("adamp", ["__editable__.adamp-0.1.0.pth"]), ("adamp_optimizers", PUBLISHED_FILES), ("adamp_tools", ["x.py"])],
    ids=["editable", "this", "longer name"],
)
def test_other_distributions_are_no_mixture(tmp_path, name, files):
    install(tmp_path, name, "0.1.0", files)
    with warnings.catch_warnings(action="error"):
        check_installation(tmp_path / "adamp", path=[str(tmp_path)])


def test_parts_that_the_published_package_has_not_overwritten_are_refused_too(tmp_path):
    install(tmp_path, "adamp", "0.3.0", PUBLISHED_FILES)
    for file in ("installation.py", "step/__init__.py"):
        (tmp_path / "adamp" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "adamp" / file).write_text((ROOT / "adamp" / file).read_text())
    (tmp_path / "adamp" / "__init__.py").write_text("")  # the published one imports none of ours
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", "import adamp.step"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"ImportError: the distribution adamp 0.3.0 and {DISTRIBUTION} are both installed" in done.stderr


def test_the_version_is_newer_than_the_published_ones_and_the_same_in_every_file():
    assert tuple(int(part) for part in adamp.__version__.split(".")[:2]) > (0, 3)
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = (ROOT / "CITATION.cff").read_text()
    assert released[0][0] == adamp.__version__
    assert (f"version: {released[0][0]}\n" in citation) and (f'date-released: "{released[0][1]}"' in citation)


def test_the_long_description_has_absolute_links_alone():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == DISTRIBUTION
    text = (ROOT / project["readme"]).read_text()
    links = re.findall(r"\]\(([^)]+)\)", text) + list(project["urls"].values())
    assert links and all(link.startswith("https://") for link in links)
