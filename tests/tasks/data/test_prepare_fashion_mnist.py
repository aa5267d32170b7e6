import fcntl
import gzip
import hashlib
import json
import socket
import threading
import time
import urllib.error

import numpy as np
import pytest
import torchvision

from scripts.prepare import fashion_mnist as prepare
from tasks.base import InputError
from tasks.data import FashionMnist
from tasks.data.fashion_mnist import EMBEDDED, FILES, read_manifest
from tests.tasks.data.pictures import write_fashion_mnist


@pytest.fixture
def published(tmp_path):
    """Files as a mirror would deliver them, and the checksums of their content."""
    folder = write_fashion_mnist(tmp_path / "published")
    (folder / "manifest.json").unlink()
    digests = {
        name: hashlib.sha256(gzip.decompress((folder / name).read_bytes())).hexdigest() for name in prepare.NAMES
    }
    return folder, digests


def deliver(folder):
    return lambda work: prepare.Fetched(folder, "a test", "7")


def refuse(work):
    raise prepare.FetchError("nobody answers")


def test_the_first_source_that_delivers_is_used_and_recorded(tmp_path, published, capsys):
    folder, digests = published
    cache = tmp_path / "cache"
    target = prepare.prepare_full(cache, sources={"one": refuse, "two": deliver(folder)}, expected=digests)
    manifest = json.loads((target / "manifest.json").read_text())
    assert (manifest["source"], manifest["package_version"]) == ("a test", "7")
    assert manifest["files"][FILES["train"][0]]["count"] == 40
    assert manifest["files"][FILES["train"][0]]["uncompressed_sha256"] == digests[FILES["train"][0]]
    assert FashionMnist("fashion_mnist", str(target)).num_examples == {"train": 40, "val": 20}
    assert {path.name for path in cache.iterdir()} == {".lock", "fashion_mnist"}
    assert "nobody answers" in capsys.readouterr().out


def test_a_second_run_asks_no_source(tmp_path, published):
    folder, digests = published
    prepare.prepare_full(tmp_path, sources={"one": deliver(folder)}, expected=digests)
    assert prepare.prepare_full(tmp_path, sources={}, expected=digests) == tmp_path / "fashion_mnist"


def test_all_that_was_tried_is_named(tmp_path, published):
    folder, digests = published
    wrong = dict.fromkeys(digests, "0" * 64)
    sources = {"mirror": refuse, "other mirror": deliver(folder), "third": deliver(tmp_path / "nothing")}
    with pytest.raises(InputError, match=r"mirror \(nobody answers\); other mirror .*sha256.*; third .*cannot be read"):
        prepare.prepare_full(tmp_path / "cache", sources=sources, expected=wrong)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


@pytest.mark.parametrize("damage", ["cut", "gone", "no manifest"])
def test_a_damaged_set_is_prepared_again(tmp_path, published, damage):
    folder, digests = published
    target = prepare.prepare_full(tmp_path, sources={"one": deliver(folder)}, expected=digests)
    path = target / prepare.NAMES[0]
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-5])
    elif damage == "gone":
        path.unlink()
    else:
        (target / "manifest.json").unlink()
    assert not prepare.is_prepared(target)
    prepare.prepare_full(tmp_path, sources={"one": deliver(folder)}, expected=digests)
    assert FashionMnist("fashion_mnist", str(target)).num_examples["train"] == 40


def test_two_preparations_at_once_do_the_work_once(tmp_path, published):
    folder, digests = published
    calls = []

    def slow(work):
        calls.append(work)
        time.sleep(0.1)
        return prepare.Fetched(folder, "a test", "7")

    options = {"sources": {"one": slow}, "expected": digests}
    threads = [threading.Thread(target=prepare.prepare_full, args=(tmp_path,), kwargs=options) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it was freed


def test_a_program_that_is_not_there_or_fails_is_a_source_that_does_not_deliver(tmp_path):
    with pytest.raises(prepare.FetchError, match="no-such-program"):
        prepare._run(["no-such-program"], tmp_path, timeout=5)
    with pytest.raises(prepare.FetchError, match="exit code 3: no room"):
        prepare._run(["sh", "-c", "echo no room >&2; exit 3"], tmp_path, timeout=5)


@pytest.mark.parametrize("error", [RuntimeError("md5 mismatch\nsecond line"), urllib.error.URLError("no route")])
def test_a_failed_download_leaves_the_time_limit_of_sockets_as_it_was(tmp_path, monkeypatch, error):
    def download(root, download):
        assert socket.getdefaulttimeout() == 60
        raise error

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", download)
    with pytest.raises(prepare.FetchError, match=type(error).__name__) as info:
        prepare.fetch_torchvision(tmp_path)
    assert socket.getdefaulttimeout() is None
    assert "\n" not in str(info.value)


def test_the_subset_is_the_first_of_each_class_and_reproducible_byte_for_byte(tmp_path):
    full = write_fashion_mnist(tmp_path / "full", train=50, val=30)
    outs = [tmp_path / "one" / "part", tmp_path / "two" / "part"]
    for out in outs:
        prepare.prepare_subset(full, out, per_class={"train": 2, "val": 1})
    for name in (*prepare.NAMES, "manifest.json"):
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes()
    whole, part = FashionMnist(root=str(full)), FashionMnist(root=str(outs[0]))
    assert part.num_examples == {"train": 20, "val": 10}
    assert part._labels["train"] == whole._labels["train"][:20]  # labels go round: the first 20 are 2 of each
    assert part._images["val"].equal(whole._images["val"][:10])


def test_selection_keeps_file_order():
    labels = np.array([*range(10), 9, 9, *range(10)], np.uint8)
    assert prepare.select_first(labels, 2).tolist() == [*range(11), *range(12, 21)]
    with pytest.raises(InputError, match="3 examples a class are asked for, but one class has 2"):
        prepare.select_first(labels, 3)


def test_compressed_files_carry_no_time_and_no_name():
    assert prepare.compress(b"abc")[:10] == b"\x1f\x8b\x08\x00\0\0\0\0\x02\xff"


def test_the_committed_subset_is_made_from_the_published_files():
    manifest = read_manifest(EMBEDDED)
    assert manifest["source"].startswith("first 1000 training and 1000 test pictures of each class")
    assert set(prepare.PUBLISHED_SHA256) == set(manifest["files"])


@pytest.mark.parametrize(
    "argument", ["mode", "mod=full", "--mode=full", "mode=half", "train_per_class=-1", "val_per_class=x"]
)
def test_a_wrong_option_is_named_and_ends_with_code_two(argument, capsys):
    assert prepare.main([argument]) == 2
    assert argument in capsys.readouterr().err


def test_a_cache_that_is_no_folder_is_named(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert prepare.main([f"cache={tmp_path / 'file'}"]) == 2
    assert "file" in capsys.readouterr().err


def test_the_subset_command_writes_the_files(tmp_path, capsys):
    write_fashion_mnist(tmp_path / "fashion_mnist")
    out = tmp_path / "out"
    assert prepare.main([f"cache={tmp_path}", f"out={out}", "mode=subset", "train_per_class=2", "val_per_class=1"]) == 0
    assert prepare.is_prepared(out)
    assert "ready" in capsys.readouterr().out
    assert prepare.main([f"cache={tmp_path}", f"out={out}", "mode=subset", "val_per_class=0"]) == 2
