import warnings
from pathlib import Path

import numpy as np
import pytest

from tasks.audio import official, official_set
from tasks.audio.official import DCASE_LISTS, EVENTS, dcase, fsdd, mtat, published_draw, speech_commands
from tasks.base import InputError
from tests.tasks.audio import layouts


def names(listing, split):
    return [clip.path.name for clip in listing.clips[split]]


def test_speech_commands_splits_are_the_lists_and_the_rest(roots):
    listing = speech_commands(roots["speech_commands"])
    assert listing.classes == ("no", "up", "yes")
    assert not listing.multi_label
    assert {split: len(clips) for split, clips in listing.clips.items()} == {"train": 18, "val": 3, "test": 3}
    assert names(listing, "test") == ["00000007_nohash_0.wav"] * 3
    assert [clip.labels for clip in listing.clips["val"]] == [(0,), (1,), (2,)]
    assert speech_commands(roots["speech_commands"].parent.parent).clips == listing.clips


def test_speech_commands_splits_are_those_of_torchaudio(roots):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchaudio.datasets import SPEECHCOMMANDS

    root = roots["speech_commands"].parent.parent
    listing = speech_commands(root)
    for ours, theirs in (("train", "training"), ("val", "validation"), ("test", "testing")):
        data = SPEECHCOMMANDS(root, subset=theirs, download=False)
        facts = [data.get_metadata(i) for i in range(len(data))]
        found = {(Path(fact[0]).name, fact[2]) for fact in facts}
        own = {(clip.path.name, listing.classes[clip.labels[0]]) for clip in listing.clips[ours]}
        assert own == found


def test_speech_commands_without_a_list_or_a_listed_file_is_refused_by_name(tmp_path):
    root = layouts.speech_commands(tmp_path, each=3)
    (root / "yes" / "00000002_nohash_0.wav").unlink()
    with pytest.raises(
        InputError, match=r"1 files of the lists are missing, first 'yes/00000002_nohash_0\.wav' of testing_list"
    ):
        speech_commands(root)
    (root / "testing_list.txt").unlink()
    with pytest.raises(InputError, match=r"testing_list\.txt: the list of the test split is missing"):
        speech_commands(root)


def test_version_1_of_speech_commands_is_found_in_its_parent_under_its_own_name(tmp_path, monkeypatch):
    root = layouts.speech_commands(tmp_path, each=3)
    older = root.rename(root.with_name("speech_commands_v0.01"))
    for parent in (tmp_path, older.parent, older):
        assert speech_commands(parent).root == older
    counts = {"speech_commands": {"clips": 9, "words": 4}, "speech_commands_v0.01": {"clips": 9, "words": 3}}
    monkeypatch.setattr(official, "SPEECH_COMMANDS", counts)
    assert speech_commands(tmp_path).name == "speech_commands_v0.01"
    (older / "yes" / "00000000_nohash_0.wav").unlink()
    assert speech_commands(tmp_path).name == "speech_commands_subset"


def test_files_that_macos_adds_are_no_clips(tmp_path):
    root = layouts.speech_commands(tmp_path, each=3)
    before = speech_commands(root).clips
    (root / "yes" / "._00000000_nohash_0.wav").write_bytes(b"Mac OS X")
    assert speech_commands(root).clips == before


def test_no_speaker_of_the_digits_is_in_two_splits(tmp_path):
    root = layouts.fsdd(tmp_path, speakers=("george", "lucas", "theo", "yweweler"))
    listing = fsdd(root)
    speakers = {split: {name.split("_")[1] for name in names(listing, split)} for split in listing.clips}
    assert speakers == {"train": {"george", "lucas"}, "val": {"theo"}, "test": {"yweweler"}}
    assert {split: len(clips) for split, clips in listing.clips.items()} == {"train": 40, "val": 20, "test": 20}
    assert listing.classes == tuple("0123456789")
    assert all(clip.labels == (int(clip.path.name[0]),) for clips in listing.clips.values() for clip in clips)
    assert (listing.name, listing.licence) == ("fsdd_subset", "CC BY-SA 4.0 (Free Spoken Digit Dataset)")
    assert fsdd(root / "recordings").clips == fsdd(tmp_path).clips == listing.clips


def test_a_recording_of_digits_under_another_name_is_refused(tmp_path):
    root = layouts.fsdd(tmp_path, each=1)
    layouts.write(root / "recordings" / "ten_theo_0.wav", layouts.tone(1, 0.1))
    with pytest.raises(InputError, match=r"'ten_theo_0\.wav' is not named <digit>_<speaker>_<number>\.wav"):
        fsdd(root)


def test_every_digit_has_the_same_peak_whatever_its_recording_had(tmp_path):
    root = layouts.fsdd(tmp_path)
    layouts.write(root / "recordings" / "0_theo_0.wav", 0.01 * layouts.tone(0, 0.3, rate=8_000), rate=8_000)
    layouts.write(root / "recordings" / "1_theo_0.wav", np.zeros(800), rate=8_000)
    data = official_set("fsdd", str(root), cache=str(tmp_path / "cache"))
    waves = [data.samples("val", index) for index in range(data.num("val"))]
    peaks = {clip.path.name: np.abs(wave).max() for clip, wave in zip(data.clips["val"], waves, strict=True)}
    assert peaks.pop("1_theo_0.wav") == 0
    assert set(peaks.values()) == {1}
    assert np.array_equal(data.samples("val", 0, 10, 20), waves[0][10:20])


def test_digits_are_resampled_into_the_cache(tmp_path):
    data = official_set("fsdd", str(layouts.fsdd(tmp_path)), cache=str(tmp_path / "cache"))
    assert data.sample_rate == 16_000
    assert [data.length("val", index) for index in range(2)] == [4_800, 6_400]  # 0.3 and 0.4 s
    with pytest.raises(InputError, match="has 8000 Hz, not 16000"):
        official_set("fsdd", str(tmp_path), cache=str(tmp_path / "cache"), resample=False)


def test_mtat_takes_the_most_frequent_tags_and_splits_by_the_first_digit(roots):
    listing = mtat(roots["mtat"], num_tags=5)
    # Clips 0 to 31 without every eighth: tag i % 3 and tag 3 + i % 2; ties by column.
    assert listing.classes == ("tag 003", "tag 004", "tag 000", "tag 001", "tag 002")
    assert listing.notes == {"clips_without_a_top_tag": 4}
    digits = {split: {clip.path.parent.name for clip in clips} for split, clips in listing.clips.items()}
    assert digits["train"] == set("012345689ab")  # 7 and f hold the clips without tags
    assert digits["val"] == {"c"}
    assert digits["test"] == {"d", "e"}
    first = listing.clips["train"][0]
    assert (first.path.name, first.labels) == ("clip-000.mp3", (0, 2))


def test_a_tag_that_ties_is_chosen_by_its_column(roots):
    assert mtat(roots["mtat"], num_tags=7).classes[5:] == ("tag 187", "tag 005")  # one clip; none, the first column


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: "\n".join(text.split("\n")[1:]), "its first line is not clip_id"),
        (lambda text: text.replace('"0/clip-000.mp3"', '"x/clip-000.mp3"'), "does not begin with a folder 0 to f"),
        (lambda text: text.replace('"1"\t', '"one"\t'), "not 188 numbers"),
        (lambda text: "", "its first line is not clip_id"),
    ],
)
def test_a_broken_table_of_mtat_is_refused(tmp_path, change, said):
    path = layouts.mtat(tmp_path, seconds=0.05) / "annotations_final.csv"
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=r"annotations_final\.csv") as error:
        mtat(tmp_path)
    assert said in str(error.value)


def test_dcase_joins_lists_and_labels_and_lets_no_test_clip_into_training(roots):
    listing = dcase(roots["dcase2017_task4"].parent.parent)
    assert listing.classes == EVENTS
    assert len(EVENTS) == 17
    stems = {split: {name[1:].split("_")[0] for name in names(listing, split)} for split in listing.clips}
    assert stems["test"] == {"eval00", "eval01", "leaked"}
    assert not (stems["train"] & stems["val"])
    assert stems["train"] | stems["val"] == {
        *(f"train{i:02d}" for i in range(8)), *(f"horn{i:02d}" for i in range(8)), "both", "shared", "bus00", "bus01",
    }  # fmt: skip
    assert listing.notes == {"training_clips_in_the_test_list": 1}
    labels = {
        clip.path.name[1:].split("_")[0]: {EVENTS[i] for i in clip.labels}
        for clips in listing.clips.values()
        for clip in clips
    }
    assert labels["both"] == {"Train", "Bicycle"}
    assert labels["shared"] == {"Car", "Bus"}  # in two lists; its recording is the first list's
    assert labels["horn00"] == {"Air horn, truck horn"}
    (path,) = {clip.path for clips in listing.clips.values() for clip in clips if "shared" in clip.path.name}
    assert path.parent.name == DCASE_LISTS["training"]


# Rows of a class -> what pandas 3.0's DataFrame.sample(frac=0.1, random_state=123) takes of them, computed once.
PANDAS_SAMPLES = {4: [], 5: [], 6: [1], 15: [7, 10], 16: [7, 10], 25: [5, 21], 40: [6, 10, 12, 38]}


def test_the_published_draw_is_that_of_pandas_in_the_order_of_the_lists():
    sizes = list(PANDAS_SAMPLES)
    rows = [(f"{number}-{place}", number) for place in range(40) for number, n in enumerate(sizes) if place < n]
    expected = {f"{sizes.index(n)}-{place}" for n, places in PANDAS_SAMPLES.items() for place in places}
    assert published_draw(rows) == expected


def test_the_published_draw_takes_training_before_testing_rows(roots, tmp_path):
    root = tmp_path / "raw"
    for which, rows in {"training": range(12), "testing": range(12, 25), "evaluation": [21]}.items():
        lines = "".join(f"{99 - i:02d}.wav\t0\t10\tBus\n" for i in rows)
        root.mkdir(exist_ok=True)
        (root / f"groundtruth_weak_label_{which}_set.csv").write_text(lines)
    listing = dcase(root)
    assert names(listing, "val") == ["Y94.wav"]  # places 5 and 21 of 25; the latter is on the evaluation list
    assert listing.name == "dcase2017_task4_subset"
    assert dcase(root, draw="sorted").name == "dcase2017_task4_subset_sorted_draw"
    with pytest.raises(InputError, match=r"data\.draw=other: must be one of published, sorted"):
        dcase(root, draw="other")


def test_the_sorted_draw_holds_out_files_of_each_class_always_the_same(roots):
    a, b = (dcase(roots["dcase2017_task4"], draw="sorted") for _ in range(2))
    assert a.clips == b.clips
    held = {label for clip in a.clips["val"] for label in clip.labels}
    assert {EVENTS.index("Train"), EVENTS.index("Air horn, truck horn"), EVENTS.index("Bus")} <= held
    assert len(a.clips["val"]) <= 4


def test_a_missing_list_and_an_unknown_label_of_dcase_are_refused_by_name(tmp_path):
    root = layouts.dcase(tmp_path, seconds=0.05)
    path = root / "groundtruth_weak_label_testing_set.csv"
    path.write_text("a.wav\t0\t10\tBus\nb.wav\t0\t10\tTram\n")
    with pytest.raises(InputError, match=r"testing_set\.csv: line 2 is not"):
        dcase(root)
    path.unlink()
    with pytest.raises(InputError, match=r"testing_set\.csv: the list is missing"):
        dcase(root)


@pytest.mark.parametrize("name", ["speech_commands", "fsdd", "mtat", "dcase2017_task4"])
def test_a_folder_that_is_not_given_or_does_not_exist_or_holds_no_set_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="data_root is not set"):
        official_set(name, None)
    with pytest.raises(InputError, match=r"data_root=/nowhere: does not exist"):
        official_set(name, "/nowhere")
    with pytest.raises(InputError, match=r"no \S+\.(txt|csv|wav) there"):
        official_set(name, str(tmp_path))


def test_unknown_names_and_tags_of_a_set_without_tags_are_refused(roots):
    with pytest.raises(InputError, match=r"data\.name=gtzan"):
        official_set("gtzan", "/nowhere")
    with pytest.raises(InputError, match=r"data\.num_tags"):
        official_set("speech_commands", str(roots["speech_commands"]), num_tags=3)
    with pytest.raises(InputError, match=r"data\.num_tags=0"):
        official_set("mtat", str(roots["mtat"]), num_tags=0)


def test_an_empty_file_is_left_out_and_counted(music, roots, cache):
    assert [path.name for path in music.undecodable] == ["clip-001.mp3"]
    assert "is empty" in next(iter(music.undecodable.values()))
    assert "clip-001.mp3" not in {clip.path.name for clip in music.clips["train"]}
    with pytest.raises(
        InputError, match=r"1 of 28 clips cannot be decoded.*max_undecodable allows \(0\).*clip-001\.mp3"
    ):
        official_set("mtat", str(roots["mtat"]), cache=cache, num_tags=5, max_undecodable=0)


def test_targets_are_numbers_or_rows_of_marks(keyword, music):
    assert keyword.targets("val", [2, 0]).tolist() == [2, 0]
    assert music.targets("train", [0]).tolist() == [[1, 0, 1, 0, 0]]
    assert keyword.describe()["name"] == "speech_commands_subset"
    assert music.describe()["name"] == "mtat_subset_top5"
    assert music.describe()["train_examples"] == music.num("train")
