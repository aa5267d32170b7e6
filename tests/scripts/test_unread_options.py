"""Options that nothing in a run reads are refused, with the ones to give instead."""

from __future__ import annotations

import pytest

from launch.compose import composed
from tasks.base import InputError


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["experiment=imagenet-resnet18", "data_root=/data/mine"],
            r"data_root=/data/mine: nothing .*fashion_mnist_10k has .* by scale=full or data=NAME.*data\.root",
        ),
        (
            ["experiment=wikitext103-txl", "data_root=/data/mine"],
            r"data_root=/data/mine: nothing .*shakespeare has a place of its own",
        ),
        (
            ["experiment=coco-centernet", "+image_size=96"],
            r"image_size=96: nothing in this run reads it; give model\.image_size=N$",
        ),
        (
            ["experiment=imagenet-resnet18", "data=cifar10", "data_root=/data", "image_size=96"],
            r"image_size=96: nothing .*its pictures have one size",
        ),
    ],
)
def test_an_option_that_nothing_reads_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        composed(words)


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["experiment=imagenet-resnet18", "image_size=96"], "image_size", 96),
        (["experiment=cub-proxyanchor", "+image_size=96"], "image_size", 96),
        (["experiment=imagenet9", "+image_size=96"], "image_size", 96),
        (["experiment=imagenet-resnet18", "data=imagenet", "data_root=/data/mine"], "root", "/data/mine"),
    ],
)
def test_a_shared_option_reaches_the_data(words: list[str], key: str, value: object) -> None:
    assert composed(words).config["data"][key] == value
