"""Draw data/emoji_designs again: one sheet of small pictures for each family of emoji designs.

Usage:
    python -m scripts.prepare.emoji_designs        needs npm and the package resvg-py
    options: out=data/emoji_designs  size=32  quality=70  packages=FOLDER (with the six archives, downloaded before)

The archives come from npm by name and version and must have the known sha256; npm's own configuration says from where.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evidence.runs.run import ReadError
from scripts.options import command, parse
from tasks.retrieval.emoji import COLUMNS, EMBEDDED

# Family -> version, sha256 of the npm archive @iconify-json/<family>, licence, author. In the order of the labels.
FAMILIES = {
    "noto": ("1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad", "Apache-2.0", "Google"),
    "noto-v1": ("1.2.5", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37", "Apache-2.0", "Google"),
    "twemoji": ("1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7", "CC-BY-4.0", "Twitter"),
    "fluent-emoji-flat": (
        "1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175", "MIT", "Microsoft"
    ),
    "emojione": ("1.2.3", "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e", "CC-BY-4.0", "EmojiOne"),
    "fxemoji": ("1.2.2", "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef", "Apache-2.0", "Mozilla"),
}  # fmt: skip
FEWEST = 5  # families that must have drawn a class
FAINT = 8  # mean opacity, of 255, below which a drawing counts as failed
Icons = Mapping[str, Any]


def fetch(family: str, folder: Path) -> Icons:
    """Return a family's drawings, from the archive in the folder or from npm.

    Raises:
        ReadError: npm fails, or the archive is another one than expected.
    """
    version, sha256, _, _ = FAMILIES[family]
    path = folder / f"iconify-json-{family}-{version}.tgz"
    if not path.exists():
        words = ["npm", "pack", "--silent", f"@iconify-json/{family}@{version}"]
        try:
            done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=600)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ReadError(f"npm: {error}") from None
        if done.returncode or not path.exists():
            raise ReadError(f"{' '.join(words)}: {(done.stderr.strip().splitlines() or ['no archive'])[-1]}")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ReadError(f"{path.name}: its sha256 is not {sha256[:12]}...")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        member = archive.extractfile("package/icons.json")
        assert member is not None
        return dict(json.load(member))


def resolve(icons: Icons, name: str) -> str | None:
    """Follow aliases to a drawing; one that is turned or mirrored on the way is no design of its own."""
    aliases = icons.get("aliases", {})
    while name in aliases:
        if aliases[name].keys() & {"rotate", "hFlip", "vFlip"}:
            return None
        name = aliases[name]["parent"]
    return name if name in icons["icons"] else None


def draw(icons: Icons, name: str, size: int) -> NDArray[np.uint8] | None:
    """Return a drawing as (size, size, 4), or None if it cannot be drawn or can hardly be seen."""
    import resvg_py

    icon = icons["icons"][name]
    sides = (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    box = " ".join(str(icon.get(key, icons.get(key, default))) for key, default in sides)
    head = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    try:
        png = resvg_py.svg_to_bytes(
            svg_string=f'<svg {head} viewBox="{box}">{icon["body"]}</svg>', width=size, height=size
        )
    except Exception:  # a drawing that the renderer refuses is left out
        return None
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    square = Image.new("RGBA", (size, size))
    square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    pixels = np.asarray(square)
    return pixels if pixels[..., 3].mean() >= FAINT else None


def draw_all(families: Mapping[str, Icons], size: int) -> dict[str, dict[str, NDArray[np.uint8]]]:
    """Return class -> family -> drawing, for the classes that enough families have drawn."""
    counts = Counter(name for icons in families.values() for name in {*icons["icons"], *icons.get("aliases", {})})
    names = sorted(name for name, count in counts.items() if count >= FEWEST and "skin-tone" not in name)
    drawn: dict[str, dict[str, NDArray[np.uint8]]] = {name: {} for name in names}
    for family, icons in families.items():
        used: set[str] = set()  # one drawing under two names belongs to the first
        for name in names:
            icon = resolve(icons, name)
            if icon is not None and icon not in used:
                used.add(icon)
                pixels = draw(icons, icon, size)
                if pixels is not None:
                    drawn[name][family] = pixels
    return {name: found for name, found in drawn.items() if len(found) >= FEWEST}


def write(out: Path, drawn: Mapping[str, Mapping[str, NDArray[np.uint8]]], size: int, quality: int) -> None:
    """Write a WebP sheet for each family, class after class in rows, and the manifest."""
    out.mkdir(parents=True, exist_ok=True)
    names = list(drawn)
    sheets = {}
    for family, (version, _, licence, author) in FAMILIES.items():
        sheet = np.zeros((-(-len(names) // COLUMNS) * size, COLUMNS * size, 4), np.uint8)
        for number, name in enumerate(names):
            if family in drawn[name]:
                row, column = divmod(number, COLUMNS)
                sheet[row * size : (row + 1) * size, column * size : (column + 1) * size] = drawn[name][family]
        file = out / f"{family}.webp"
        Image.fromarray(sheet).save(file, quality=quality, method=6)
        sheets[family] = {
            "file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "licence": licence,
            "author": author, "package": f"@iconify-json/{family}", "package_version": version,
            "absent": [number for number, name in enumerate(names) if family not in drawn[name]],
        }  # fmt: skip
    manifest = {"name": "emoji_designs", "size": size, "classes": names, "sheets": sheets}
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def main(words: Sequence[str]) -> int:
    """Fetch, draw and write the set."""
    options = parse(words, options={"out": str(EMBEDDED), "size": "32", "quality": "70", "packages": ""})
    for key in ("size", "quality"):
        if not options[key].isdecimal():
            raise ReadError(f"{key}={options[key]}: must be a whole number")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options["packages"] or temporary)
        families = {family: fetch(family, folder) for family in FAMILIES}
    drawn = draw_all(families, int(options["size"]))
    write(Path(options["out"]), drawn, int(options["size"]), int(options["quality"]))
    print(f"{len(drawn)} classes, {sum(map(len, drawn.values()))} pictures in {options['out']}")
    return 0


if __name__ == "__main__":
    raise SystemExit(command(main, __doc__ or ""))
