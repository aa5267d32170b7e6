"""The three sets, written and decoded once."""

import pytest

from tasks.audio import official_set
from tests.tasks.audio import layouts


@pytest.fixture(scope="session")
def roots(tmp_path_factory):
    base = tmp_path_factory.mktemp("audio")
    return {
        "speech_commands": layouts.speech_commands(base),
        "mtat": layouts.mtat(base),
        "dcase2017_task4": layouts.dcase(base),
    }


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def keyword(roots, cache):
    return official_set("speech_commands", str(roots["speech_commands"]), cache=cache)


@pytest.fixture(scope="session")
def music(roots, cache):
    return official_set("mtat", str(roots["mtat"]), cache=cache, num_tags=5)


@pytest.fixture(scope="session")
def events(roots, cache):
    return official_set("dcase2017_task4", str(roots["dcase2017_task4"]), cache=cache)
