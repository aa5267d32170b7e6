"""One file that names the place of every data set: read by runs, sweeps and doctor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evidence import sweeps
from launch.compose import CONFIGS, composed
from launch.data_places import NAMES, listed_place, place_of, read_places
from scripts import doctor
from tests import commands
from tests.tasks.rebias.sets import write_clusters, write_imagenet9, write_mnist


def write(folder: Path, text: str) -> Path:
    file = folder / "paths.yaml"
    file.write_text(text)
    return file


def test_a_folder_is_the_place_of_every_set_and_a_file_that_of_those_it_names(tmp_path: Path) -> None:
    file = write(tmp_path, '# this machine\nimagenet: /data/imagenet  # 148 GB\n\nmnist: "digits"\n')
    assert read_places(file) == {"imagenet": Path("/data/imagenet"), "mnist": tmp_path / "digits"}
    assert place_of(str(file), "imagenet") == "/data/imagenet"
    assert place_of(str(file), "coco") is None
    assert place_of("/data/coco", "coco") == "/data/coco"
    assert place_of(None, "coco") is None
    assert listed_place("/data/imagenet", "imagenet_a") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "imagnet: /data",
            r"line 1 names imagnet, which is no set \(did you mean imagenet\?\); choose among imagenet, ",
        ),
        ("coco: /a\ncoco: /b", "line 2 names coco a second time"),
        ("coco", r"line 1 is 'coco'; it must be NAME: PATH"),
        ("coco:", r"line 1 is 'coco:'; it must be NAME: PATH"),
    ],
)
def test_a_line_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_places(write(tmp_path, text))


def test_every_set_of_the_users_own_has_a_name() -> None:
    texts = [path.read_text() for path in (CONFIGS / "data").glob("*.yaml")]
    assert "root: ${data_root}" not in "".join(texts)
    named = {part.split("}")[0] for text in texts for part in text.split("place:${data_root},")[1:]}
    assert {name for name in named if not name.startswith("${")} <= set(NAMES)


def test_both_tasks_of_table_d2_read_their_sets_from_one_file(tmp_path: Path) -> None:
    names = {"imagenet": "imagenet", "imagenet_a": "hard", "imagenet9_clusters": "clusters.csv", "mnist": "digits"}
    file = write(tmp_path, "".join(f"{name}: {place}\n" for name, place in names.items()))
    found = {}
    for _, cell in sweeps.cells("table-d2", "full", {"train.seed": "0", "opt": "adam"}):
        words = ["sweep=table-d2", "scale=full", f"data_root={file}", *(f"{k}={v}" for k, v in cell.items())]
        found[cell["experiment"]] = composed(words).config["data"]
    assert found["biased-mnist"]["root"] == f"{tmp_path}/digits"
    keys = ("root", "clusters", "imagenet_a")
    assert [found["imagenet9"][key] for key in keys] == [
        f"{tmp_path}/{p}" for p in ("imagenet", "clusters.csv", "hard")
    ]


@pytest.mark.slow
def test_table_d2_runs_both_tasks_at_full_size_in_one_command(tmp_path: Path) -> None:
    root = write_imagenet9(tmp_path / "imagenet", train=1, val=2)
    write_mnist(tmp_path / "digits", train=32, test=20)
    clusters = write_clusters(tmp_path / "clusters.csv", root)
    head, *rows = clusters.read_text().splitlines()  # one cell a class: ten pictures are needed in one
    clusters.write_text("\n".join([head, *(",".join([*row.split(",")[:2], "0", "0", "0"]) for row in rows)]) + "\n")
    names = {"imagenet": "imagenet", "imagenet9_clusters": "clusters.csv", "mnist": "digits"}
    file = write(tmp_path, "".join(f"{name}: {place}\n" for name, place in names.items()))
    words = ["sweep=table-d2", "hydra.mode=MULTIRUN", "scale=full", f"data_root={file}", "train.seed=0", "opt=adam"]
    words += ["train.max_steps=1", "train.batch_size=16", "train.num_workers=0", "train.progress=false"]
    done = commands.call(*words, f"paths.runs={tmp_path}/runs", f"paths.reports={tmp_path}/reports")
    assert done.code == 0, done.err
    statuses = [json.loads(path.read_text())["status"] for path in tmp_path.glob("runs/*/*/run.json")]
    assert statuses == ["finished"] * 5


def test_what_is_wrong_with_a_file_is_said_in_one_line(tmp_path: Path) -> None:
    file = write(tmp_path, "imagnet: /data\n")
    said = commands.call("experiment=imagenet-resnet18", "scale=full", f"data_root={file}")
    assert said.err.startswith(f"error: data_root={file}: line 1 names imagnet") and said.err.count("\n") == 1
    file = write(tmp_path, "mnist: digits\n")
    said = commands.call("experiment=coco-centernet", "scale=full", f"data_root={file}")
    assert (said.code, said.err.strip()) == (
        2,
        f"error: data_root={file} names no coco; add a line coco: /path/to/coco",
    )
    file = write(tmp_path, "coco: nowhere\n")
    said = commands.call("experiment=coco-centernet", "scale=full", f"data_root={file}")
    assert said.err.strip() == f"error: data_root={file} names {tmp_path}/nowhere, which does not exist"


def test_the_doctor_looks_at_each_place(tmp_path: Path) -> None:
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    file = write(tmp_path, "coco: coco\nmtat: nowhere\n")
    said: list[str] = []
    assert doctor.main([f"results={tmp_path}/results", f"data_root={file}", "processes=0"], say=said.append) == 1
    text = "\n".join(said)
    assert f"ok   coco           {tmp_path}/coco: annotations" in text
    assert "BAD  mtat" in text and "correct its line in" in text
