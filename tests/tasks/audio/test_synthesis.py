import sys

import numpy as np
import pytest
import soundfile

from tasks.audio import official_set, synthetic_set
from tasks.audio.sets import make
from tasks.audio.synthesis import events, instruments, speech
from tasks.base import InputError


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_spoken_words_are_the_same_bytes_again_with_speakers_in_one_split_alone(tmp_path):
    pytest.importorskip("espeakng_loader")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        speech.write(tmp_path / name, words=3, speakers=12)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    data = official_set("speech_commands", str(tmp_path / "a"), cache=str(tmp_path / "cache"))
    assert data.classes == speech.WORDS[:3]
    speakers = {split: {clip.path.name for clip in clips} for split, clips in data.clips.items()}
    assert sum(len(each) for each in speakers.values()) == 12
    assert len(set.union(*speakers.values())) == 12
    for path in (tmp_path / "a" / "bed").iterdir():
        info = soundfile.info(str(path))
        assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
        assert 1_000 < info.frames <= 16_000
    spoken = {path.read_bytes() for path in (tmp_path / "a" / "bed").iterdir()}
    assert len(spoken) == 12


def test_without_its_package_speech_says_what_to_install_and_what_else_there_is(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(InputError, match=r"espeakng-loader.*pip install '\.\[speech\]'.*scale=full data_root"):
        synthetic_set("speech_commands_tts", cache=str(tmp_path))
    assert not list((tmp_path / "made").glob("[!.]*"))  # nothing half made


def test_pieces_carry_the_tags_of_what_they_were_made_of():
    wave, tags = instruments.piece(1.0, np.random.default_rng(3))
    again, _ = instruments.piece(1.0, np.random.default_rng(3))
    assert np.array_equal(wave, again)
    assert wave.shape == (16_000,)
    assert np.isfinite(wave).all()
    assert tags <= set(instruments.TAGS)
    assert tags & set(instruments.TIMBRES)
    for seed in range(6):
        _, tags = instruments.piece(0.2, np.random.default_rng(seed))
        assert ("solo" in tags) == (len(tags & set(instruments.TIMBRES)) == 1)


@pytest.mark.parametrize("name", list(instruments.TIMBRES))
def test_every_instrument_sounds_and_ends_in_silence(name):
    if name != "drums":
        wave = instruments.note(instruments.TIMBRES[name], 220.0, 0.2, np.random.default_rng(0))
        assert 0.1 < np.abs(wave).max() < 1.5
        assert abs(wave[-1]) < 0.05


def test_every_event_has_a_sound_and_no_two_the_same():
    assert tuple(events.SOUNDS) == events.EVENTS
    spectra = []
    for sound in events.SOUNDS.values():
        wave = events.perform(sound, 1.0, np.random.default_rng(0))
        assert np.abs(wave).max() == pytest.approx(1.0)
        spectra.append(np.log(np.abs(np.fft.rfft(wave)) + 1e-3))
    correlations = np.corrcoef(spectra) - np.eye(17)
    assert correlations.max() < 0.97


def test_a_set_is_made_once_whole_and_for_its_options(tmp_path, monkeypatch):
    options = {"clips": 16, "seconds": 0.2}
    folder = make("synthetic_instruments", tmp_path, options)
    assert folder == make("synthetic_instruments", tmp_path, dict(reversed(options.items())))
    assert folder != make("synthetic_instruments", tmp_path, options | {"seed": 1})
    data = synthetic_set("synthetic_instruments", cache=str(tmp_path), num_tags=5, options=options)
    assert (data.name, data.num("train"), data.num("val")) == ("synthetic_instruments", 12, 1)

    def stops(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(instruments, "piece", stops)
    with pytest.raises(KeyboardInterrupt):
        make("synthetic_instruments", tmp_path, options | {"seed": 2})
    assert len(list((tmp_path / "made").glob("[!.]*"))) == 2


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("speech_commands_tts", {"words": 1}, r"data\.words=1"),
        ("speech_commands_tts", {"speakers": 3}, r"data\.speakers=3|espeakng-loader"),
        ("synthetic_events", {"clips": 5}, r"data\.clips=5"),
        ("synthetic_events", {"seconds": float("nan")}, r"data\.seconds=nan"),
        ("synthetic_instruments", {"clips": 5}, r"data\.clips=5"),
        ("synthetic_instruments", {"tempo": 5}, r"data\.options: .*tempo"),
        ("none", {}, r"data\.name=none"),
    ],
)
def test_wrong_options_are_refused(tmp_path, name, options, said):
    with pytest.raises(InputError, match=said):
        synthetic_set(name, cache=str(tmp_path), options=options)
