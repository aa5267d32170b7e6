"""How many examples a score is counted on, where it is a share of right answers."""

from __future__ import annotations

from evidence.records.row import ResultRow

COUNTS = ("top1", "top5", "clean_accuracy", "attacked_accuracy", "recall_at_1")
# (data set, split) -> examples, of records that did not keep it. A test holds the recorded scores against it: each is a
# whole number of these. Of 9-Class ImageNet the score without bias is a mean over cells and no such share.
RECORDED = {
    ("fashion_mnist_10k", "val"): 1000,
    ("fashion_mnist_10k", "biased"): 1000,
    ("biased_small_digits", "unbiased"): 360,
    ("biased_small_digits", "biased"): 360,
    ("speech_commands_tts", "val"): 385,
    ("speech_commands_tts", "test"): 350,
    ("imagenet", "val"): 50_000,
}


def examples_of(row: ResultRow, score: str) -> int | None:
    """Return how many examples a score such as val/top1 is a share of; None where it is none or that is not known.

    The run's own record says it (`data` of run.json: val_examples, test_examples), else `RECORDED` by its data set.
    """
    split, _, name = score.rpartition("/")
    if name not in COUNTS:
        return None
    split = split.removesuffix("_ema")
    return row.examples.get(split) or RECORDED.get((row.data, split))
