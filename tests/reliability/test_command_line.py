"""Wrong words on the command line: exit code 2 and a line or two that name the option, never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import commands

WORDS = [
    "train.epochs=0", "train.epochs=-1", "train.epochs=1.5", "train.epochs=abc", "train.epochs=null",
    "train.epochs=1e400", "train.batch_size=0", "train.batch_size=7.5", "train.batch_size=[16]", "train.seed=-1",
    "train.accumulation=3", "train.precision=fp8", "train.device=tpu", "train.clip_norm=-1", "train.clip_norm=nan",
    "train.ema_decay=1", "train.ema_decay=nan", "train.nonfinite=ignore", "train.check_every=-1", "train.epohcs=3",
    "train.log_every=0", "train.checkpoint_minutes=nan", "train.timeout_minutes=0", "train.timeout_minutes=inf",
    "train.threads=0", "opt=sgdd", "opt.lr=nan", "opt.lr=-1", "opt.lr=inf", "opt.lr=abc", "opt.weight_decay=nan",
    "opt.momentom=0.9", "opt.momentum=-2", "data=../../../etc/passwd", "data=none_such", "data.train_examples=0",
    "data.image_size=-4", "model=none_such", "model.width=0", "model.width=nan", "schedule=none_such",
    "logger=none_such", "gpus=0", "gpus=two", "gpus=-1", "experiment=../../../evil",
    "experiment=none_such", "=3", "train..epochs=3", "train.epochs", "train.epochs=${oc.env:NONE_SUCH}",
    "train.epochs=${train.epochs}", "{broken", "phases=[{epochs: x}]", "phases=[{epochs: 1, trainable: '('}]",
    "opt_groups=[{match: '('}]", "opt_groups=[{lr: 1}]", "marks={none_such: 1}", "normalise=none_such", "tag=[1,2",
    "train.epochs='\n'", "scale=huge", "opt_groups=x",
]  # fmt: skip


@pytest.mark.parametrize("word", WORDS)
def test_a_wrong_word_is_refused_in_a_line_or_two(word: str, tmp_path: Path) -> None:
    done = commands.call(*commands.options(tmp_path, word))
    assert done.code == 2, f"{word}: code {done.code}\n{done.err}"
    assert "Traceback" not in done.err + done.out
    assert 1 <= len(done.err.strip().splitlines()) <= 2, done.err
    assert len(done.err) < 2000
    assert not list(tmp_path.rglob("*.pt"))
