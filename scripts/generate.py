"""Let a trained language model go on with a text."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # `python scripts/generate.py` puts scripts/ there, not the root
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402

from evidence.runs.run import ReadError  # noqa: E402
from scripts.options import command, parse  # noqa: E402
from scripts.restore import build, configuration, weights  # noqa: E402
from tasks.base import InputError  # noqa: E402
from tasks.language import Corpus  # noqa: E402
from tasks.language.text import EOS, tokenise  # noqa: E402

USAGE = """
usage: python scripts/generate.py run=FOLDER [prompt="TEXT"] [KEY=VALUE ...]

Draws words from a trained language model, one after the other. The same seed gives the same text.

  run=FOLDER          a run of a language experiment, results/runs/EXPERIMENT/NAME
  prompt="TEXT"       what the text begins with, white space between words and signs; words the model does not know
                      count as <unk>
  length=100          tokens to draw
  temperature=1.0     below 1 keeps to likely words, 0 always takes the likeliest
  top=0               draw among so many likeliest words; 0 among all
  seed=0              of the draws
  checkpoint=best     best or last
  data_root=FOLDER    where the text lies now, if not where the run had it (its vocabulary is needed)

example: python scripts/generate.py run=results/runs/wikitext103-txl/NAME prompt="ROMEO ." length=60 temperature=0.8
"""
OPTIONS = {
    "run": "", "prompt": "", "length": "100", "temperature": "1.0", "top": "0", "seed": "0", "checkpoint": "best",
    "data_root": "",
}  # fmt: skip


def number(values: dict[str, str], key: str, *, kind: type = int, low: float = 0) -> float:
    """Return an option as a number of its kind.

    Raises:
        ReadError: It is none, or below the lowest value allowed.
    """
    try:
        value = kind(values[key])
    except ValueError:
        value = low - 1
    if not low <= value < float("inf"):
        raise ReadError(
            f"{key}={values[key]}: must be {'a whole number' if kind is int else 'a number'} of at least {low}"
        )
    return float(value)


def load(folder: Path, *, checkpoint: str, data_root: str) -> tuple[nn.Module, Corpus]:
    """Return a run's network in evaluation mode, and its text.

    Raises:
        ReadError: The folder holds no run of a language experiment, no such checkpoint, or its text is gone.
    """
    config = configuration(folder)
    if not str(config.get("task", {}).get("_target_", "")).startswith("tasks.language."):
        raise ReadError(f"run={folder}: is a run of {config.get('experiment_name')}, not of a language experiment")
    data = {**config["data"], **({"root": data_root} if data_root else {})}
    try:
        corpus = build(data)
        network = build(config["model"])(len(corpus.words))
    except InputError as error:
        raise ReadError(str(error)) from None
    network.load_state_dict(weights(folder, checkpoint)["model"])
    return network.eval(), corpus


@torch.no_grad()
def generate(
    network: nn.Module, prompt: Sequence[int], *, length: int, temperature: float, top: int, seed: int
) -> list[int]:
    """Return `length` tokens drawn one after the other, each from the probabilities after all before it.

    Args:
        network: Its `log_probabilities(inputs, memory)` returns (1, V) and the new memory.
        prompt: Tokens to begin with, at least one.
        length: Tokens to draw.
        temperature: Divides log-probabilities; 0 takes the likeliest token.
        top: Draw among so many likeliest tokens; 0 among all.
        seed: Of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    logs, memory = network.log_probabilities(torch.tensor([list(prompt)]), None)  # type: ignore[operator]
    drawn: list[int] = []
    while len(drawn) < length:
        scores = logs[0].double()
        if top:
            scores[scores < scores.topk(min(top, len(scores))).values[-1]] = -torch.inf
        if temperature == 0:
            token = int(scores.argmax())
        else:
            token = int(torch.multinomial((scores / temperature).softmax(0), 1, generator=generator))
        drawn.append(token)
        logs, memory = network.log_probabilities(torch.tensor([[token]]), memory)  # type: ignore[operator]
    return drawn


def main(argv: Sequence[str]) -> int:
    values = parse(argv, options=OPTIONS)
    if not values["run"]:
        raise ReadError("run=FOLDER is missing; see --help")
    length, top, seed = (int(number(values, key)) for key in ("length", "top", "seed"))
    temperature = number(values, "temperature", kind=float)
    network, corpus = load(Path(values["run"]), checkpoint=values["checkpoint"], data_root=values["data_root"])
    known = {word: index for index, word in enumerate(corpus.words)}
    words = tokenise(values["prompt"], corpus.unit)[:-1]
    if strangers := [word for word in words if word not in known]:
        print(f"not in the vocabulary, read as <unk>: {' '.join(strangers)}", file=sys.stderr)
    prompt = [known[EOS], *(known.get(word, known.get("<unk>", 0)) for word in words)]
    drawn = generate(network, prompt, length=length, temperature=temperature, top=top, seed=seed)
    joint = " " if corpus.unit == "word" else ""
    text = joint.join([*words, *("\n" if corpus.words[i] == EOS else corpus.words[i] for i in drawn)])
    print(text.replace("\n ", "\n"))
    return 0


if __name__ == "__main__":
    sys.exit(command(main, USAGE))
