import math

import pytest

from evidence.claims.norms import growth_ratio, pass_or_fail, step_ratio
from evidence.records.row import ResultRow, result_row
from evidence.runs import run as runs
from scripts import claims_norms as claims

LR = {"sgd": 0.1, "sgdp": 0.1, "adamw": 0.001, "adamp": 0.001}


@pytest.fixture
def sweep(tmp_path, write_run):
    """Write all twelve runs; keyword arguments go to each."""

    def write(**options):
        for opt, lr in LR.items():
            for seed in (0, 1, 2):
                folder = f"{opt}-{seed}-{options.get('epochs', 4)}-{options.get('scale', '')}"
                write_run(tmp_path / "runs", opt, lr=lr, seed=seed, folder=folder, layers=(), **options)
        return tmp_path / "runs"

    return write


@pytest.fixture
def check(tmp_path):
    """Run the command and return (exit code, text written)."""

    def run(*words: str) -> tuple[int, str]:
        out = tmp_path / "claims.md"
        code = claims.main([f"runs={tmp_path / 'runs'}", f"out={out}", *words])
        return code, out.read_text()

    return run


def test_claims_hold_on_curves_that_grow_as_in_the_paper(sweep, check):
    sweep()
    code, text = check()
    assert code == 0
    assert text.count("| PASS |") == 6 and text.count("**PASS**") == 2 and "FAIL" not in text
    assert "6.0 to 6.3" in text and "14.1" in text and "1.70 → 10.41" in text
    for words in ("803200ab", "test machine", "digits, mini", "seeds: 0, 1, 2", "python scripts/claims_norms.py"):
        assert words in text


def test_one_seed_below_the_bound_fails_the_claim(sweep, check, write_run):
    root = sweep()
    path = root / "imagenet-resnet18" / "sgdp-1-4-" / "metrics.jsonl"
    path.write_text(path.read_text().splitlines()[0] + '\n{"step": 80, "epoch": 4, "norm/mean": 2.5}\n')
    code, text = check()
    assert code == 1
    assert text.count("| FAIL |") == 1 and text.count("**FAIL**") == 1 and text.count("| PASS |") == 5


def test_missing_runs_are_named_by_the_command_that_makes_them(sweep, write_run, tmp_path):
    root = sweep()
    path = root / "imagenet-resnet18" / "adamp-2-4-" / "run.json"
    path.write_text(path.read_text().replace('"finished"', '"failed"'))
    with pytest.raises(runs.ReadError) as caught:
        claims.main([f"runs={root}", f"out={tmp_path / 'x'}"])
    first, *commands = str(caught.value).splitlines()
    assert first == "1 finished runs are missing; make them with:"
    assert commands == ["  make imagenet-resnet18 opt=adamp opt.weight_decay=0 train.seed=2 scale=mini"]


def test_no_fitting_run_at_all_names_all_twelve(tmp_path, write_run):
    write_run(tmp_path, "sgd", weight_decay=1e-4)
    with pytest.raises(runs.ReadError, match="12 finished runs are missing"):
        claims.main([f"runs={tmp_path}", f"out={tmp_path / 'x'}"])


def test_two_complete_settings_are_not_mixed_but_asked_about(sweep, check):
    sweep()
    sweep(epochs=2)
    with pytest.raises(runs.ReadError, match=r"several settings .* differ in train\.epochs \(2, 4\)"):
        check()
    code, text = check("train.epochs=2")
    assert code == 0 and "- epochs: 2\n" in text


def test_runs_of_another_setting_are_left_out_by_name(sweep, check, write_run, tmp_path):
    sweep()
    write_run(tmp_path / "runs", "sgd", epochs=9, layers=(), change={"name": "longer one"})
    write_run(tmp_path / "runs", "sgd", scale="full", layers=(), change={"name": "full one"})
    code, text = check()
    (line,) = [line for line in text.splitlines() if "left out" in line]
    assert code == 0 and "longer one" in line and "full one" in line


def test_an_incomplete_setting_is_never_filled_up_from_another(sweep, check, tmp_path, write_run):
    root = sweep()
    path = root / "imagenet-resnet18" / "sgdp-0-4-" / "run.json"
    path.unlink()
    write_run(root, "sgdp", epochs=2, layers=(), folder="other")
    with pytest.raises(runs.ReadError, match="1 finished runs are missing in the fullest of 2 settings"):
        check()


def test_pairs_at_unequal_learning_rates_are_refused(sweep, check, tmp_path, write_run):
    root = sweep()
    for seed in (0, 1, 2):
        path = root / "imagenet-resnet18" / f"sgd-{seed}-4-" / "run.json"
        path.write_text(path.read_text().replace('"lr": 0.1', '"lr": 0.2'))
    with pytest.raises(runs.ReadError, match=r"sgd and sgdp must have equal options.*opt\.lr: 0\.2 and 0\.1"):
        check()


def test_seeds_at_unequal_options_are_refused(sweep, check):
    path = sweep() / "imagenet-resnet18" / "sgd-1-4-" / "run.json"
    path.write_text(path.read_text().replace('"lr": 0.1', '"lr": 0.2'))
    with pytest.raises(runs.ReadError, match="opt=sgd differ in their options between seeds"):
        check()


def test_two_learning_rates_of_one_optimizer_must_be_chosen_between(sweep, check, tmp_path, write_run):
    sweep()
    write_run(tmp_path / "runs", "sgd", lr=0.2, layers=(), folder="faster")
    with pytest.raises(runs.ReadError, match=r"choose with OPT\.KEY=VALUE"):
        check()
    assert check("sgd.lr=0.1")[0] == 0


def test_growth_that_is_not_positive_fails(tmp_path):
    def run(last: float | None) -> ResultRow:
        lines = [{"step": 0, "epoch": 0, "norm/mean": 1.0}, {"step": 1, "epoch": 1, "norm/mean": last}]
        return result_row(runs.Run(tmp_path, {}, lines))

    assert growth_ratio(run(2.0), run(1.5)) == pytest.approx(3 / 1.25)
    for last in (1.0, 0.9, None):
        ratio = growth_ratio(run(2.0), run(last))
        assert math.isnan(ratio) and pass_or_fail(ratio, 3.0) == "FAIL"


def test_the_step_ratio_looks_at_common_steps_after_the_first_quarter(tmp_path):
    def run(factor: float, steps: range) -> ResultRow:
        lines = [{"step": i, "epoch": i / 10, "effective_step/mean": factor * (i != 40)} for i in steps]
        return result_row(runs.Run(tmp_path, {}, lines))

    assert step_ratio(run(1, range(0, 41, 5)), run(3, range(0, 41, 10))) == "3.00 (3.00 to 3.00)"
    assert step_ratio(run(1, range(0)), run(3, range(5))) == "–"


def test_words_that_are_no_options_are_refused(tmp_path):
    for words in (["--fast"], ["seeds=a"]):
        with pytest.raises(runs.ReadError):
            claims.main(words)
