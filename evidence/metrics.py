"""The metric registry: name, unit, direction, digits and the scores behind each metric.

Whether lower is better is answered here alone: by the task, which prefixes the score that it monitors with "-" where
lower is better, and for other scores by this registry.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One metric of the papers' tables or of a task."""

    name: str  # as in results/paper.csv, and the last part of a score such as val/top1
    unit: str = "%"
    lower_is_better: bool = False
    digits: int = 2  # in tables
    label: str = ""  # in headings
    scores: tuple[str, ...] = ()  # of a run, the first that is there; averaged weights come first
    curve: tuple[str, ...] = ()  # whose curve tells when a target is reached; empty where none is logged


_TOP1, _TOP5, _AP = ("val_ema/top1", "val/top1"), ("val_ema/top5", "val/top5"), ("val/ap",)
METRICS = {
    metric.name: metric
    for metric in (
        Metric("top1", label="top-1", scores=_TOP1, curve=_TOP1),
        Metric("test_top1", label="top-1, test split", scores=("test/top1",)),
        Metric("top5", label="top-5", scores=_TOP5, curve=_TOP5),
        Metric("ap", scores=_AP, curve=_AP),
        Metric("ap50", scores=("val/ap50",)),
        Metric("roc_auc", scores=("test/roc_auc",)),
        Metric("pr_auc", scores=("test/pr_auc",)),
        Metric("f1", scores=("test/f1",)),
        Metric("recall_at_1", scores=("val/recall_at_1",)),
        Metric("clean_accuracy", scores=("val/clean_accuracy",)),
        Metric("attacked_accuracy", scores=("val/attacked_accuracy",)),
        Metric("ppl", unit="ppl", lower_is_better=True, scores=("test/ppl", "val/ppl")),
        Metric("perplexity", unit="ppl", lower_is_better=True, scores=("test/ppl", "val/ppl")),
        Metric("validation_perplexity", unit="ppl", lower_is_better=True, scores=("val/ppl",), curve=("val/ppl",)),
        Metric("bpc", unit="bits", lower_is_better=True),
        Metric("loss", unit="", lower_is_better=True),
        Metric("error", lower_is_better=True),
        Metric("growth", unit="l2", lower_is_better=True),
        Metric("weight_norm_first_epoch", unit="l2", lower_is_better=True),
        Metric("weight_norm_last_epoch", unit="l2", lower_is_better=True),
        Metric("max_weight_norm", unit="l2", lower_is_better=True),
        Metric("unbiased_accuracy", scores=("unbiased/top1",)),
        Metric("biased_accuracy", scores=("biased/top1",)),
        Metric("imagenet_a_accuracy", scores=("imagenet_a/top1",)),
        Metric("extra_training_time", lower_is_better=True),
        Metric("scale_invariant_detection"),
        Metric("scale_variant_detection"),
    )
}


def metric(key: str) -> Metric:
    """Return the metric of a score such as val/attacked_loss; of an unknown one, what its name tells."""
    name = key.rpartition("/")[2]
    if name in METRICS:
        return METRICS[name]
    known = next((METRICS[word] for word in ("loss", "perplexity", "ppl", "bpc", "error") if word in name), None)
    return Metric(name, known.unit, known.lower_is_better, known.digits) if known else Metric(name, unit="")


def lower_is_better(key: str, *, monitor: str = "") -> bool:
    """Whether lower is better.

    Args:
        key: A score or a metric.
        monitor: The score that a run's task monitors, prefixed with "-" where lower is better; empty if not recorded.
    """
    return monitor.startswith("-") if monitor.lstrip("-") == key and key else metric(key).lower_is_better
