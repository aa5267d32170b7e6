import json
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tasks.audio import cache as cached
from tasks.audio.cache import Entry, Fault, decode_all, load_samples
from tasks.base import InputError
from tests.tasks.audio.layouts import tone, write


def decode(paths, root, store, **options):
    return decode_all(paths, root, sample_rate=16_000, cache=store, workers=2, **options)


def test_wav_flac_ogg_and_mp3_are_decoded_and_only_read_once(tmp_path, monkeypatch):
    wave = tone(0, 0.5)
    for name in ("a.wav", "b.flac", "c.ogg", "d.mp3"):
        write(tmp_path / name, wave)
    paths = sorted(path for path in tmp_path.iterdir() if path.is_file())
    found = decode(paths, tmp_path, tmp_path / "store")
    for path in paths:
        entry = found[path]
        assert isinstance(entry, Entry)
        samples = load_samples(entry)
        assert samples.dtype == np.float32
        near = samples[: len(wave)]
        assert np.corrcoef(near, wave[: len(near)])[0, 1] > 0.99, path.name
    assert np.load(found[paths[0]].array, mmap_mode="r").dtype == np.int16  # exactly what the file holds
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} is read again"))
    assert decode(paths, tmp_path, tmp_path / "store") == found


def test_a_part_of_a_clip_is_that_part(tmp_path):
    write(tmp_path / "a.wav", tone(1, 0.2))
    entry = decode([tmp_path / "a.wav"], tmp_path, tmp_path / "store")[tmp_path / "a.wav"]
    whole, _ = soundfile.read(tmp_path / "a.wav", dtype="float32")
    assert np.array_equal(load_samples(entry, 100, 150), whole[100:150])
    assert entry.length == len(whole)


def test_stereo_is_averaged_and_other_rates_are_resampled_or_refused(tmp_path):
    left, right = tone(0, 0.5), tone(1, 0.5)
    write(tmp_path / "stereo.wav", np.stack([left, right], 1), subtype="FLOAT")
    write(tmp_path / "slow.wav", tone(0, 0.5, rate=44_100), rate=44_100)
    paths = [tmp_path / "slow.wav", tmp_path / "stereo.wav"]
    found = decode(paths, tmp_path, tmp_path / "store")
    np.testing.assert_allclose(load_samples(found[paths[1]]), (left + right) / 2, atol=1e-6)
    slow = load_samples(found[paths[0]])
    assert len(slow) == 8000
    assert np.corrcoef(slow[100:-100], left[100:-100])[0, 1] > 0.99
    with pytest.raises(InputError, match=r"slow\.wav: has 44100 Hz.*data\.resample=false"):
        decode(paths, tmp_path, tmp_path / "store", resample=False)


def test_what_cannot_be_decoded_is_told_with_its_reason(tmp_path):
    write(tmp_path / "nan.wav", np.full(100, np.nan), subtype="FLOAT")
    write(tmp_path / "none.wav", np.zeros(0))
    (tmp_path / "empty.mp3").write_bytes(b"")
    (tmp_path / "text.wav").write_bytes(b"no sound at all")
    names = ["empty.mp3", "gone.wav", "nan.wav", "none.wav", "text.wav"]
    found = decode([tmp_path / name for name in names], tmp_path, tmp_path / "store")
    reasons = [found[tmp_path / name].reason for name in names]
    assert all(isinstance(fault, Fault) for fault in found.values())
    for reason, part in zip(reasons, ["is empty", "cannot be read", "NaN", "no samples", "decoded"], strict=True):
        assert part in reason
    # A file that is mended or comes later is seen.
    write(tmp_path / "gone.wav", tone(0, 0.1))
    write(tmp_path / "nan.wav", tone(0, 0.1), subtype="FLOAT")
    again = decode([tmp_path / name for name in names], tmp_path, tmp_path / "store")
    assert isinstance(again[tmp_path / "gone.wav"], Entry)
    assert isinstance(again[tmp_path / "nan.wav"], Entry)


def test_a_changed_file_is_decoded_again_and_a_moved_set_is_not(tmp_path, monkeypatch):
    (tmp_path / "one").mkdir()
    path = tmp_path / "one" / "a.wav"
    write(path, tone(0, 0.1))
    first = decode([path], tmp_path / "one", tmp_path / "store")[path]
    write(path, tone(1, 0.1))
    second = decode([path], tmp_path / "one", tmp_path / "store")[path]
    assert first.array != second.array
    (tmp_path / "one").rename(tmp_path / "two")
    monkeypatch.setattr(cached, "read_wave", lambda *_, **__: pytest.fail("decoded again"))
    moved = decode([tmp_path / "two" / "a.wav"], tmp_path / "two", tmp_path / "store")
    assert list(moved.values()) == [second]


def test_stopping_in_the_middle_loses_nothing_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    paths = [tmp_path / f"{i}.wav" for i in range(12)]
    for i, path in enumerate(paths):
        write(path, tone(i, 0.1))
    decoded, guard, real = [], threading.Lock(), cached.read_wave

    def stops(content, **options):
        with guard:
            decoded.append(content)
            if len(decoded) > 5:
                raise KeyboardInterrupt
        return real(content, **options)

    monkeypatch.setattr(cached, "read_wave", stops)
    with pytest.raises(KeyboardInterrupt):
        decode(paths, tmp_path, tmp_path / "store")
    (index,) = (tmp_path / "store" / "16000").glob("index-*.json")
    kept = len(json.loads(index.read_text()))
    assert kept == 5
    assert not list((tmp_path / "store").rglob(".part-*"))
    monkeypatch.setattr(cached, "read_wave", lambda content, **o: decoded.append(content) or real(content, **o))
    decoded.clear()
    assert len(decode(paths, tmp_path, tmp_path / "store")) == 12
    assert len(decoded) == 12 - kept


def test_a_broken_index_or_a_lost_array_is_made_again(tmp_path):
    path = tmp_path / "a.wav"
    write(path, tone(0, 0.1))
    first = decode([path], tmp_path, tmp_path / "store")
    (index,) = (tmp_path / "store" / "16000").glob("index-*.json")
    index.write_text('{"a.wav": [1,')
    assert decode([path], tmp_path, tmp_path / "store") == first
    first[path].array.unlink()
    assert decode([path], tmp_path, tmp_path / "store") == first
    assert first[path].array.exists()


def test_a_cache_that_cannot_be_written_is_an_error_that_names_the_variable(tmp_path):
    write(tmp_path / "a.wav", tone(0, 0.1))
    (tmp_path / "store").write_text("a file")
    with pytest.raises(InputError, match="ADAMP_DATA"):
        decode([tmp_path / "a.wav"], tmp_path, tmp_path / "store")
