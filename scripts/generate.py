"""Let a trained language model go on with a text (run=FOLDER)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from evidence.runs.run import ReadError
from launch.trained.generate import generate, load, number
from scripts.options import command, parse
from tasks.language.text import EOS, tokenise

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
