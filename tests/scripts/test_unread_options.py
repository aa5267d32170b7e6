"""Options that nothing in a run reads are refused, with the ones to give instead."""

from __future__ import annotations

import pytest

from launch.compose import CONFIG_ERRORS, composed, explain
from tasks.base import InputError


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["experiment=imagenet-resnet18", "data_root=/data/mine"],
            r"data_root=/data/mine: nothing .*fashion_mnist_20k has .* by scale=full or data=NAME.*data\.root",
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


@pytest.mark.parametrize("experiment", ["coco-centernet", "cub-proxyanchor"])
def test_an_image_size_that_the_run_does_not_know_is_given_its_name(experiment: str) -> None:
    with pytest.raises(CONFIG_ERRORS) as error:
        composed([f"experiment={experiment}", "image_size=96"])
    assert explain(error.value).startswith(
        "image_size is no option here; give data.image_size=N, or model.image_size=N"
    )


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
