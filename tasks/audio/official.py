"""Readers of the published sets in the folders of their authors, with their official splits where they have any.

They look at names and lists alone; decoding is for `tasks.audio.cache`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tasks.audio.clips import Clip, Listing
from tasks.base import InputError
from tasks.data.files import is_macos_junk, quoted, read_text, stays_inside
from tasks.data.published import verified_name

# DCASE 2017 task 4, in the order of the reference code.
EVENTS = (
    "Train horn",
    "Air horn, truck horn",
    "Car alarm",
    "Reversing beeps",
    "Ambulance (siren)",
    "Police car (siren)",
    "Fire engine, fire truck (siren)",
    "Civil defense siren",
    "Screaming",
    "Bicycle",
    "Skateboard",
    "Car",
    "Car passing by",
    "Bus",
    "Truck",
    "Motorcycle",
    "Train",
)
# List -> the folder of its recordings.
DCASE_LISTS = {
    "training": "unbalanced_train_segments_training_set_audio_formatted_and_segmented_downloads",
    "testing": "unbalanced_train_segments_testing_set_audio_formatted_and_segmented_downloads",
    "evaluation": "evaluation_set_formatted_audio_segments",
}
DCASE_SEED = 123
DRAWS = ("published", "sorted")
VAL_SHARE = 0.1
SPEECH_FOLDERS = tuple(
    f"{around}speech_commands_{version}" for version in ("v0.02", "v0.01") for around in ("SpeechCommands/", "")
)
# Clips and classes of the published sets, each under the name that records give it
SPEECH_COMMANDS = {
    "speech_commands": {"clips": 105_829, "words": 35},  # v0.02: Warden, arXiv:1804.03209
    "speech_commands_v0.01": {"clips": 64_727, "words": 30},
}
FSDD = {"clips": 3_000, "speakers": 6}
FSDD_FOLDERS = ("recordings", "free-spoken-digit-dataset/recordings", "fsdd/recordings")
FSDD_RECORDING = re.compile(r"([0-9])_([A-Za-z]+)_([0-9]+)\.wav")  # digit, speaker, number
# The last two of six speakers in alphabetical order: no voice in two splits
FSDD_HELD_OUT = {"theo": "val", "yweweler": "test"}
MTAT_TOP_TAGS = 50  # classes in every publication
MTAT = {"clips": 25_863, "tags": 188}
DCASE_FILES = {"training": 51_172, "testing": 488, "evaluation": 1_103}
# First hex digit of a clip's folder -> its split.
MTAT_SPLITS = {"train": "0123456789ab", "val": "c", "test": "def"}
LICENCES = {
    "speech_commands": "CC BY 4.0 (Google)",
    "fsdd": "CC BY-SA 4.0 (Free Spoken Digit Dataset)",
    "mtat": "research use; recordings CC BY-NC-SA (Magnatune)",
    "dcase2017_task4": "annotations CC BY 4.0 (Google AudioSet); recordings of YouTube",
}


def find_folder(root: str | Path | None, inside: tuple[str, ...], sign: str) -> Path:
    """Return the folder that holds a file of the pattern `sign`: the root, or one of the known places inside it.

    Raises:
        InputError: The root is not given, is no folder, or holds no such file.
    """
    if root is None:
        raise InputError(f"data_root is not set; give the folder that holds {inside[0]}, data_root=/path/to/it")
    base = Path(root).expanduser()
    if not base.is_dir():
        raise InputError(f"data_root={root}: does not exist")
    for place in ("", *inside):
        if any(path.is_file() for path in (base / place).glob(sign)):
            return base / place
    raise InputError(f"data_root={root}: no {sign} there nor in {' or '.join(inside)}")


def speech_commands(root: str | Path | None, *, name: str | None = None, licence: str | None = None) -> Listing:
    """Read Speech Commands, v0.02 or v0.01.

    One folder per word, and the files `validation_list.txt` and `testing_list.txt`; the rest is training.
    Folders that begin with an underscore hold background noise and are no class; classes are in alphabetical order.

    Args:
        root: The folder with the lists, or one of those around it; of two versions in it v0.02 is read.
        name: What records call the set; None: "speech_commands", with "_v0.01" for that version, "_subset" or
            "_unverified" for another number of clips than published.
        licence: Terms of the recordings; None: those of the published set.

    Raises:
        InputError: A list is missing or names a file that does not exist.
    """
    folder = find_folder(root, SPEECH_FOLDERS, "validation_list.txt")
    words = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(("_", ".")))
    listed: dict[str, str] = {}
    for split, file in (("val", "validation_list.txt"), ("test", "testing_list.txt")):
        if not (folder / file).is_file():
            raise InputError(f"data_root: {folder / file}: the list of the {split} split is missing")
        listed |= dict.fromkeys(read_text(folder / file).split(), split)
    clips: dict[str, list[Clip]] = {"train": [], "val": [], "test": []}
    for number, word in enumerate(words):
        for path in sorted(path for path in (folder / word).glob("*.wav") if not is_macos_junk(path.name)):
            clips[listed.pop(f"{word}/{path.name}", "train")].append(Clip(path, (number,)))
    if listed:
        lost, split = next(iter(listed.items()))
        file = "validation_list.txt" if split == "val" else "testing_list.txt"
        raise InputError(
            f"data_root: {folder}: {len(listed)} files of the lists are missing, first {quoted(lost)} of {file}"
        )
    if name is None:
        counts = {"clips": sum(len(each) for each in clips.values()), "words": len(words)}
        same = (version for version, published in SPEECH_COMMANDS.items() if counts == published)
        name = next(same, verified_name("speech_commands", counts, SPEECH_COMMANDS["speech_commands"]))
    return Listing(name, folder, tuple(words), False, clips, licence or LICENCES["speech_commands"])


def fsdd(root: str | Path | None, *, name: str | None = None, licence: str | None = None) -> Listing:
    """Read the Free Spoken Digit Dataset: `recordings/<digit>_<speaker>_<number>.wav`, mono at 8 kHz.

    Splits are by speaker, so that scores are those of a voice never heard: theo validates, yweweler tests, all others
    train. The set's own split (numbers 0 to 4 are test) has every speaker on both sides. The recordings of theo and
    yweweler are 20 dB quieter than the others', so every clip is scaled to the same peak.

    Args:
        root: The folder with the recordings, or one of those around it.
        name: What records call the set; None: "fsdd", with "_subset" or "_unverified" for other numbers of clips and
            speakers than the set has.
        licence: Terms of the recordings; None: those of the published set.

    Raises:
        InputError: There are no recordings, a file is not named as they are, or a split has none.
    """
    folder = find_folder(root, FSDD_FOLDERS, "[0-9]_*_*.wav")
    clips: dict[str, list[Clip]] = {"train": [], "val": [], "test": []}
    speakers = set()
    for path in sorted(path for path in folder.glob("*.wav") if not is_macos_junk(path.name)):
        match = FSDD_RECORDING.fullmatch(path.name)
        if match is None:
            raise InputError(f"data_root: {folder}: {quoted(path.name)} is not named <digit>_<speaker>_<number>.wav")
        digit, speaker, _ = match.groups()
        clips[FSDD_HELD_OUT.get(speaker, "train")].append(Clip(path, (int(digit),)))
        speakers.add(speaker)
    if name is None:
        name = verified_name("fsdd", {"clips": sum(map(len, clips.values())), "speakers": len(speakers)}, FSDD)
    return Listing(name, folder, tuple("0123456789"), False, clips, licence or LICENCES["fsdd"], same_level=True)


def mtat(
    root: str | Path | None, *, name: str | None = None, licence: str | None = None, num_tags: int = MTAT_TOP_TAGS
) -> Listing:
    """Read MagnaTagATune: `annotations_final.csv`, 188 tag columns, and `mp3/<0-9a-f>/*.mp3`.

    The classes are the tags that most clips carry, ties in the order of the columns; clips with none of them are left
    out. A clip's folder decides its split: 0 to b train, c validation, d to f test.

    Args:
        root: The folder with the csv file, or the one around it.
        name: What records call the set; None: "mtat", with "_subset" or "_unverified" for another number of clips,
            and "_topN" for N other than 50 tags.
        licence: Terms of the recordings; None: those of the published set.
        num_tags: Classes; 50 in every publication.

    Raises:
        InputError: The csv file is missing, or is not what it should be.
    """
    folder = find_folder(root, ("mtat",), "annotations_final.csv")
    path = folder / "annotations_final.csv"
    try:
        rows = list(csv.reader(read_text(path).splitlines(), delimiter="\t"))
    except csv.Error as error:
        raise InputError(f"data_root: {path}: is no table of columns separated by tabs ({error})") from None
    if not rows or rows[0][:1] != ["clip_id"] or rows[0][-1] != "mp3_path":
        raise InputError(f"data_root: {path}: its first line is not clip_id, tags, mp3_path, separated by tabs")
    tags, rows = rows[0][1:-1], rows[1:]
    if not 1 <= num_tags <= len(tags):
        raise InputError(f"data.num_tags={num_tags}: must be from 1 to the {len(tags)} tags of {path}")
    if any(len(row) != len(tags) + 2 for row in rows):
        raise InputError(f"data_root: {path}: holds a line that is not {len(tags)} numbers and a path")
    try:
        has = np.array([[int(value) for value in row[1:-1]] for row in rows], dtype=np.int64).reshape(-1, len(tags))
    except (ValueError, OverflowError):
        raise InputError(f"data_root: {path}: holds a line that is not {len(tags)} numbers and a path") from None
    if not np.isin(has, (0, 1)).all():
        raise InputError(f"data_root: {path}: a mark of a tag is neither 0 nor 1")
    # A stable rule: the reference sorts with an unstable one, so that ties change from machine to machine.
    chosen = np.lexsort((np.arange(len(tags)), -has.sum(0)))[:num_tags]
    clips: dict[str, list[Clip]] = {"train": [], "val": [], "test": []}
    untagged = 0
    for row, marks in zip(rows, has[:, chosen], strict=True):
        digit = row[-1][:1].lower()
        split = next((each for each, digits in MTAT_SPLITS.items() if digit and digit in digits), None)
        if split is None:
            raise InputError(f"data_root: {path}: {quoted(row[-1])} does not begin with a folder 0 to f")
        if not stays_inside(row[-1]):
            raise InputError(f"data_root: {path}: {quoted(row[-1])} is no path inside mp3/")
        labels = tuple(int(number) for number in np.flatnonzero(marks))
        if labels:
            clips[split].append(Clip(folder / "mp3" / row[-1], labels))
        untagged += not labels
    notes = {"clips_without_a_top_tag": untagged}
    if name is None:
        name = verified_name("mtat", {"clips": len(rows), "tags": len(tags)}, MTAT)
        name += "" if num_tags == MTAT_TOP_TAGS else f"_top{num_tags}"
    return Listing(name, folder, tuple(tags[i] for i in chosen), True, clips, licence or LICENCES["mtat"], notes)


def dcase(
    root: str | Path | None, *, name: str | None = None, licence: str | None = None, draw: str = "published"
) -> Listing:
    """Read DCASE 2017 task 4: three lists of (file, start, end, label) without a header, and their folders.

    Training is the lists `training` and `testing` together, less a tenth of each class for validation; test is
    `evaluation`. A file of several lines or lists is one clip with all their labels; one that `evaluation` has is in no
    other split.

    Args:
        root: The folder with the lists, or the one around it.
        name: What records call the set; None: "dcase2017_task4", with "_sorted_draw" for that draw, "_subset" or
            "_unverified" for other numbers of files than published.
        licence: Terms of the recordings; None: those of the published set.
        draw: How validation files are drawn. "published": a tenth of each class's rows in the order of the lists, as
            pandas' `DataFrame.sample(frac=0.1, random_state=123)` draws them in Won et al.'s code. "sorted": a tenth of
            each class's files in sorted order, at least one, from one generator for all classes.

    Raises:
        InputError: The draw is not known, or a list is missing or holds a line that is not four columns with a known
            label.
    """
    folder = find_folder(root, ("dcase/raw", "raw"), "groundtruth_weak_label_training_set.csv")
    if draw not in DRAWS:
        raise InputError(f"data.draw={draw}: must be one of {', '.join(DRAWS)}")
    rows = {each: _read_list(folder, each) for each in DCASE_LISTS}
    lists = {each: _labels_by_file(rows[each]) for each in DCASE_LISTS}
    test = _clips(folder, lists["evaluation"], "evaluation")
    pool: dict[str, tuple[str, set[int]]] = {}
    for each in ("training", "testing"):
        for file, labels in lists[each].items():
            if file not in lists["evaluation"]:
                first, known = pool.get(file, (each, set()))
                pool[file] = (first, known | labels)
    if draw == "published":
        val_files = published_draw([*rows["training"], *rows["testing"]])
    else:
        val_files = _sorted_draw({file: labels for file, (_, labels) in pool.items()})
    clips: dict[str, list[Clip]] = {"train": [], "val": [], "test": test}
    for file in sorted(pool):
        first, labels = pool[file]
        clips["val" if file in val_files else "train"] += _clips(folder, {file: labels}, first)
    twice = sum(len(lists[each].keys() & lists["evaluation"].keys()) for each in ("training", "testing"))
    notes = {"training_clips_in_the_test_list": twice} if twice else {}
    if name is None:
        name = verified_name("dcase2017_task4", {each: len(files) for each, files in lists.items()}, DCASE_FILES)
        name += "_sorted_draw" if draw == "sorted" else ""
    return Listing(name, folder, EVENTS, True, clips, licence or LICENCES["dcase2017_task4"], notes)


def _read_list(folder: Path, which: str) -> list[tuple[str, int]]:
    """Return the rows of a list as (file, class), in order."""
    path = folder / f"groundtruth_weak_label_{which}_set.csv"
    if not path.is_file():
        raise InputError(f"data_root: {path}: the list is missing")
    numbers = {event: number for number, event in enumerate(EVENTS)}
    rows: list[tuple[str, int]] = []
    for line, columns in _rows(path):
        if len(columns) != 4 or columns[3] not in numbers:  # labels hold commas: the tabs alone separate
            raise InputError(
                f"data_root: {path}: line {line} is not file, start, end and one of the 17 labels, separated by tabs"
            )
        if "/" in columns[0] or not stays_inside(columns[0]):
            raise InputError(f"data_root: {path}: line {line}: {quoted(columns[0])} is no name of a file")
        rows.append((columns[0], numbers[columns[3]]))
    if not rows:
        raise InputError(f"data_root: {path}: lists no recording")
    return rows


def _labels_by_file(rows: Sequence[tuple[str, int]]) -> dict[str, set[int]]:
    labels_by_file: dict[str, set[int]] = {}
    for file, label in rows:
        labels_by_file.setdefault(file, set()).add(label)
    return labels_by_file


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            yield number, [column.strip() for column in line.split("\t")]


def _clips(folder: Path, files: dict[str, set[int]], which: str) -> list[Clip]:
    # The recordings' names have a Y in front: a name that begins with a hyphen is an option to many programs.
    return [Clip(folder / DCASE_LISTS[which] / f"Y{file}", tuple(sorted(files[file]))) for file in sorted(files)]


def published_draw(rows: Sequence[tuple[str, int]]) -> set[str]:
    """Return the validation files of Won et al.: pandas' `sample(frac=0.1, random_state=123)` of each class's rows.

    Args:
        rows: (file, class) in the order of the lists.
    """
    val_files: set[str] = set()
    for number in range(len(EVENTS)):
        files_of_class = [file for file, label in rows if label == number]
        count = round(VAL_SHARE * len(files_of_class))
        order = np.random.RandomState(DCASE_SEED).permutation(len(files_of_class))  # what pandas draws without weights
        val_files |= {files_of_class[i] for i in order[:count]}
    return val_files


def _sorted_draw(files: dict[str, set[int]]) -> set[str]:
    """Return a tenth of the files of each class, drawn from their sorted names."""
    generator = np.random.RandomState(DCASE_SEED)
    val_files: set[str] = set()
    for number in range(len(EVENTS)):
        files_of_class = sorted(file for file, labels in files.items() if number in labels)
        if len(files_of_class) > 1:
            count = max(1, round(VAL_SHARE * len(files_of_class)))
            val_files |= {files_of_class[i] for i in generator.permutation(len(files_of_class))[:count]}
    return val_files


READERS = {"speech_commands": speech_commands, "fsdd": fsdd, "mtat": mtat, "dcase2017_task4": dcase}
