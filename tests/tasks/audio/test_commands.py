"""Commands: a run on the official layout, its pictures and tables, and what wrong input says."""

import json

import pytest

from evidence.runs.run import ReadError
from scripts import filterbank, sweep
from scripts.prepare import speech_commands_tts
from tests import commands
from tests.tasks.audio import layouts


@pytest.fixture(scope="module")
def trained(tmp_path_factory, roots):
    """A finished run of each of two experiments on the fixtures; returns the folder of runs."""
    folder = tmp_path_factory.mktemp("runs")
    cache = tmp_path_factory.mktemp("cache")
    for experiment, name in (("speech-commands", "speech_commands"), ("dcase", "dcase2017_task4")):
        done = commands.call(
            f"experiment={experiment}", "opt=adamp", "scale=full", f"data_root={roots[name]}", f"data.cache={cache}",
            "model.width=0.03125", "model.time_pools=[2,2,2,1,1,1,1]", "task.input_length=2048", "task.chunks=2",
            "train.batch_size=6", "train.epochs=2", "train.num_workers=0", "train.probe_every=1", "train.log_every=1",
            "train.progress=false", "pictures=false", f"paths.runs={folder}/runs", f"paths.reports={folder}/reports",
        )  # fmt: skip
        assert done.code == 0, done.err
        assert "baseline" in done.out
        assert "scale-invariant" in done.out
    return folder / "runs"


def test_a_run_gives_its_filterbank_and_a_table_of_its_words(trained, capsys):
    (folder,) = (trained / "speech-commands").iterdir()
    assert filterbank.main([f"run={folder}"]) == 0
    assert all((folder / "figures" / f"filterbank.{ending}").stat().st_size for ending in ("png", "svg", "csv"))
    assert len((folder / "figures" / "filterbank.csv").read_text().splitlines()) == 769
    rows = (folder / "tags.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["class", "no", "up", "yes"]
    assert "speech_commands_subset, test split" in capsys.readouterr().out


def test_a_run_of_tags_gives_a_row_for_each_of_them(trained):
    (folder,) = (trained / "dcase").iterdir()
    filterbank.main([f"run={folder}", "split=val", "checkpoint=last"])
    text = (folder / "tags.md").read_text()
    assert "Air horn, truck horn" in text
    assert text.count("\n| ") == 17 + 1 + text.count("\n| ---")


def test_the_table_puts_the_papers_numbers_beside_ours(trained, tmp_path, capsys):
    assert sweep.main(["table-3", f"runs={trained}", f"out={tmp_path}"]) == 0
    lines = [line.split(",") for line in (tmp_path / "tables" / "table-3.csv").read_text().splitlines()]
    found = {line[0]: line for line in lines}
    assert "96.89" in found["speech-commands"]
    assert "56.04" in found["dcase"]
    with pytest.raises(ReadError, match="no finished run"):
        sweep.main(["table-3", f"runs={tmp_path}", f"out={tmp_path}/other"])


def test_wrong_words_of_the_scripts_are_refused(trained, tmp_path):
    (folder,) = (trained / "dcase").iterdir()
    for words, said in (
        ([], "run=FOLDER is missing"),
        ([f"run={folder}", "split=train"], "split=train"),
        ([f"run={tmp_path}"], "holds no run.json"),
    ):
        with pytest.raises(ReadError, match=said):
            filterbank.main(words)
    for words, said in (
        ([f"out={folder}"], "new or empty"),
        ([f"out={tmp_path}/a", "set=gtzan"], "set=gtzan"),
        ([f"out={tmp_path}/b", "set=synthetic_events", "clips=3"], "clips=3"),
        ([f"out={tmp_path}/c", "set=synthetic_events", "words=3"], "does not take"),
    ):
        with pytest.raises(ReadError, match=said):
            speech_commands_tts.main(words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["experiment=mtat", "scale=full"], "data_root is not set"),
        (["experiment=dcase", "scale=full", "data_root=/nowhere"], "data_root=/nowhere: does not exist"),
        (["experiment=dcase", "data.options.clips=3"], "data.clips=3: must be at least 170"),
        (["experiment=mtat", "+data.options.pitch=3"], "data.options:"),
    ],
)
def test_a_wrong_value_is_one_line_without_a_traceback(words, said, tmp_path):
    done = commands.call(*words, f"data.cache={tmp_path}", "pictures=false", f"paths.runs={tmp_path}")
    assert done.code == 2
    assert said in done.err
    assert "Traceback" not in done.err


def test_a_missing_split_file_and_too_many_broken_clips_end_the_command_and_name_the_file(tmp_path):
    root = layouts.speech_commands(tmp_path, each=8)
    words = ["experiment=speech-commands", "scale=full", f"data_root={root}", f"data.cache={tmp_path}/cache",
             "pictures=false", f"paths.runs={tmp_path}/runs"]  # fmt: skip
    path = root / "no" / "00000003_nohash_0.wav"
    path.write_bytes(b"RIFF")
    done = commands.call(*words, "data.max_undecodable=0")
    assert (done.code, str(path) in done.err) == (2, True)
    (root / "validation_list.txt").rename(root / "kept.txt")
    (root / "kept.txt").rename(root / "validation_list.txt")
    (root / "testing_list.txt").unlink()
    done = commands.call(*words)
    assert (done.code, "testing_list.txt" in done.err) == (2, True)


@pytest.mark.slow
def test_the_small_keyword_run_learns_eight_times_what_guessing_scores(tmp_path):
    pytest.importorskip("espeakng_loader")
    done = commands.call(
        "experiment=speech-commands", "opt=adamp", f"data.cache={tmp_path}/cache", "pictures=false",
        "train.progress=false", f"paths.runs={tmp_path}/runs",
    )  # fmt: skip
    assert done.code == 0, done.err
    (record,) = (tmp_path / "runs").rglob("run.json")
    assert json.loads(record.read_text())["scores"]["test/top1"] >= 8 * 100 / 35
