"""One static page with the toys' figures and the claims beside the published numbers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from evidence.site.gallery import write_gallery
from scripts.options import command, parse, results

USAGE = """
usage: python scripts/gallery.py [toy=FOLDER] [out=FOLDER]

Writes OUT/index.html: the figures and the animation of make toy2d and make rosenbrock3d beside the published numbers,
and the claims of make theory with their controls. One file, nothing is loaded from elsewhere.

  toy=FOLDER   where those commands wrote; default results/toy
  out=FOLDER   default results/reports/gallery

example: python scripts/gallery.py
"""


def main(words: Sequence[str]) -> int:
    """Write the page and print its path."""
    options = parse(words, options={"toy": results("toy"), "out": results("reports", "gallery")})
    print(write_gallery(Path(options["toy"]), Path(options["out"])))
    return 0


if __name__ == "__main__":
    sys.exit(command(main, USAGE))
