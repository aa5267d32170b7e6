"""What the retrieval experiments hold at full scale, against the paper's appendix E.6."""

import pytest
from hydra.utils import instantiate

from tests.configurations import composed

SETS = ("cub", "cars", "inshop", "sop")


@pytest.mark.parametrize("benchmark", SETS)
@pytest.mark.parametrize("loss", ["proxyanchor", "triplet"])
def test_full_scale_holds_the_papers_settings(benchmark, loss):
    config = composed(f"experiment={benchmark}-{loss}", "scale=full", "data_root=/data", "opt=adamp")
    assert config["data"]["name"] == config["benchmark"] == benchmark
    assert (config["data"]["image_size"], config["data"]["crop_scale"]) == (224, [0.08, 1.0])
    assert (config["model"]["backbone"], config["model"]["init"], config["model"]["features"]) == (
        "resnet50",
        "imagenet",
        512,
    )
    assert (config["model"]["width"], config["model"]["freeze_statistics"]) == (1.0, True)
    assert (config["train"]["batch_size"], config["train"]["clip_value"]) == (120, 10.0)
    assert (config["opt"]["lr"], config["opt"]["weight_decay"]) == (1e-4, 0.0)
    assert config["task"]["sampler"] == "random"
    assert config["task"]["loss"] == {"proxyanchor": "proxy_anchor", "triplet": "triplet"}[loss]
    rules = [{"match": "model.proxies", "lr_scale": 100}] if loss == "proxyanchor" else []
    assert config["opt_groups"] == rules


def test_the_rate_is_halved_every_five_of_sixty_epochs_and_the_warm_up_counts():
    warm, rest = composed("experiment=cub-proxyanchor", "scale=full", "data_root=/data")["phases"]
    assert (warm["epochs"], rest["epochs"]) == (5, 55)
    assert warm["trainable"] == "model.(embedding|proxies)"
    schedule = instantiate(rest["schedule"])["lr"]
    epochs = {5: 5e-5, 9.99: 5e-5, 10: 2.5e-5, 14.99: 2.5e-5, 15: 1.25e-5, 59: 4.8828125e-8}
    assert {epoch: 1e-4 * schedule(epoch - 5, 55) for epoch in epochs} == pytest.approx(epochs)


@pytest.mark.parametrize("loss", ["proxyanchor", "triplet"])
def test_mini_scale_needs_neither_data_nor_weights(loss):
    config = composed(f"experiment=sop-{loss}")
    assert config["data"]["_target_"] == "tasks.retrieval.EmojiDesigns"
    assert (config["model"]["init"], config["data_root"]) == ("random", None)


def test_the_number_of_epochs_after_the_warm_up_is_an_option():
    assert [phase["epochs"] for phase in composed("experiment=cub-triplet", "train.epochs=3")["phases"]] == [1, 3]
