"""The runs that `tests/reliability/soak.py` kills: every task at the smallest size that still evaluates and saves."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

COMMON = (
    "pictures=false", "train.device=cpu", "train.progress=false", "train.threads=1", "train.num_workers=0",
    "train.log_every=2", "train.probe_every=2", "train.oscillation_window=2",
)  # fmt: skip

PICTURES = ("data=synthetic", "data.image_size=32", "data.num_classes=10")
AUDIO = (
    "opt=adamp", "scale=full", "model.width=0.03125", "model.time_pools=[2,2,2,1,1,1,1]", "task.input_length=2048",
    "task.chunks=2", "train.batch_size=6", "train.epochs=3",
)  # fmt: skip
TEXT = (
    "opt=adamp", "data.name=soak", "data.vocabulary_size=null", "train.batch_size=8", "train.max_steps=24",
)  # fmt: skip

# Task -> its words. {data} is a folder that the preparation below fills once, {cache} one that each run has alone.
RUNS: dict[str, tuple[str, ...]] = {
    "classification": (
        "experiment=imagenet-resnet18", "opt=sgdp", *PICTURES, "data.train_examples=64", "data.val_examples=200",
        "model.width=0.125", "train.batch_size=16", "train.epochs=8",
    ),
    "averaged": (
        "experiment=imagenet-resnet18", "opt=adarem", *PICTURES, "data.train_examples=64", "data.val_examples=100",
        "model.width=0.125", "train.batch_size=16", "train.epochs=6", "train.ema_decay=0.9", "train.accumulation=2",
        "tag=averaged",
    ),
    "adversarial": (
        "experiment=cifar10-pgd-linf", "opt=adamp", *PICTURES, "data.train_examples=32", "data.val_examples=32",
        "train.batch_size=16", "train.epochs=3", "task.train_steps=1", "task.eval_steps=1",
    ),
    "rebias": (
        "experiment=biased-mnist", "opt=adamp", "model.f.width=0.125", "model.g.width=0.125", "train.batch_size=256",
        "train.epochs=3",
    ),
    "imagenet9": (
        "experiment=imagenet9", "opt=adamp", "data=imagenet9", "data_root={data}/imagenet9",
        "data.clusters={data}/imagenet9/clusters.csv", "data.imagenet_a=null", "data.image_size=32",
        "model.f.width=0.0625", "model.g.width=0.0625", "task.min_cell_count=2", "train.batch_size=8",
        "train.epochs=2",
    ),
    "language": (
        "experiment=wikitext103-txl", *TEXT, "data.root={data}/text", "task.epoch_steps=6", "model.layers=2",
        "model.width=16", "model.heads=2", "model.head_width=8", "model.inner_width=16", "model.memory=8",
        "model.cutoffs=[20,40]", "task.length=8", "task.val.length=8",
    ),
    "penn treebank": (
        "experiment=ptb-lstm", *TEXT, "data.root={data}/text", "model.width=8", "model.hidden=8", "task.length=8",
    ),
    "speech commands": ("experiment=speech-commands", *AUDIO, "data_root={data}/speech", "data.cache={cache}"),
    "music tags": (
        "experiment=mtat", *AUDIO, "data_root={data}/music", "data.cache={cache}", "data.num_tags=5",
    ),
    "sound events": ("experiment=dcase", *AUDIO, "data_root={data}/events", "data.cache={cache}"),
    "retrieval": (
        "experiment=cub-proxyanchor", "opt=adamp", "data.num_classes=12", "data.image_size=24", "model.width=0.0625",
        "train.batch_size=16", "train.epochs=2", "train.eval_epochs=1",
    ),
    "detection": (
        "experiment=coco-centernet", "opt=adamp", "data=coco", "data_root={data}/coco", "data.categories=file",
        "data.name=small",
        "model.image_size=64", "model.width=0.125", "train.batch_size=4", "train.epochs=4", "train.eval_epochs=1",
    ),
    "ssd": (
        "experiment=coco-ssd300", "opt=adamp", "data=coco", "data_root={data}/coco", "data.categories=file",
        "data.name=small",
        "model.width=0.125", "train.batch_size=4", "train.epochs=2", "train.eval_epochs=1",
    ),
}  # fmt: skip
SWEPT = (
    "--multirun", "experiment=imagenet-resnet18", "opt=sgd,adamp", *PICTURES, "data.train_examples=64",
    "data.val_examples=40", "model.width=0.125", "train.batch_size=16", "train.epochs=3",
)  # fmt: skip
# Name -> words of a sweep, whose signals reach its launcher or one of its runs
SWEEPS: dict[str, tuple[str, ...]] = {
    "sweep": (*SWEPT, "train.seed=0,1", "tag=sweep"),
    "many networks": (
        "--multirun", "launcher=many", "jobs=1", "experiment=projection-effect-mlp", "opt=sgd,sgdp,adamp",
        "task.epoch_steps=20", "train.epochs=3", "train.batch_size=32", "model.width=8",
    ),
    "ray": (*SWEPT, "launcher=ray", "hydra.launcher.num_gpus=0", "hydra.launcher.num_cpus=0.5", "tag=ray"),
    "slurm": (
        *SWEPT, "launcher=slurm", "hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1",
        "hydra.launcher.poll_s=1", "tag=slurm",
    ),
}  # fmt: skip


def unavailable(task: str) -> str:
    """Return why a task cannot run on this machine, empty where it can."""
    from tests.scripts import slurm_cluster

    if task == "ray" and importlib.util.find_spec("ray") is None:
        return "ray is not installed: pip install '.[ray]'"
    return slurm_cluster.missing() if task == "slurm" else ""


def prepare(folder: Path) -> None:
    """Write the small sets in their official layouts."""
    from tests.reliability.sets import write_text
    from tests.tasks.audio import layouts as sounds
    from tests.tasks.detection.layouts import write_coco
    from tests.tasks.rebias.sets import write_clusters, write_imagenet9

    writers: dict[str, Callable[[Path], object]] = {
        "text": write_text,
        "speech": lambda path: sounds.speech_commands(path, each=6),
        "music": lambda path: sounds.mtat(path, seconds=0.4),
        "events": lambda path: sounds.dcase(path, seconds=0.4),
        "coco": lambda path: write_coco(path, train=12, val=5),
        "imagenet9": lambda path: write_clusters(path / "clusters.csv", write_imagenet9(path)),
    }
    for name, write in writers.items():
        (folder / name).mkdir(parents=True)
        write(folder / name)


def words(task: str, *, data: Path, place: Path, processes: int) -> list[str]:
    """Return the arguments of `scripts/train.py` for one task, its results and caches below `place`."""
    chosen = SWEEPS.get(task) or RUNS[task]
    given = {word.split("=")[0] for word in chosen}
    common = [word for word in COMMON if word.split("=")[0] not in given]
    filled = [word.replace("{data}", str(data)).replace("{cache}", str(place / "cache")) for word in chosen]
    return [*filled, *common, f"gpus={processes}", f"paths.runs={place}/runs", f"paths.reports={place}/reports"]
