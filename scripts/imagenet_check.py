"""Verify a copy of ImageNet (data_root=...): classes, counts, every picture; writes a report.

make imagenet-check data_root=FOLDER [pictures=all] [workers=CORES] [expect=imagenet] [out=results/reports]

`data_root` holds train/<class>/*.JPEG and val/<class>/*.JPEG, or the tar shards made of them. `pictures=5000` decodes
so many of each split, evenly spread, instead of all. `expect=imagenet` asks for ILSVRC 2012's counts (1,000 classes,
1,281,167 + 50,000 pictures); `expect=any` takes another set in the same layout. The report is imagenet-check.md in
`out`. Exit code: 0 all is well, 1 something is not, 2 wrong options.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from evidence.runs.run import ReadError
from scripts.options import command, parse, results
from tasks.base import InputError
from tasks.data import imagenet_check as check
from tasks.data.folder import check_root
from tasks.data.imagenet_check import SPLITS, Found
from tasks.data.shards import MANIFEST

OPTIONS = {"data_root": "", "pictures": "all", "workers": "", "expect": "imagenet", "out": results("reports")}


def main(argv: Sequence[str]) -> int:
    """Check, write the report and return 0 or 1."""
    options = parse(argv, options=OPTIONS)
    if options["expect"] not in ("imagenet", "any"):
        raise ReadError(f"expect is {options['expect']!r}; choose imagenet or any")
    for key, other in (("pictures", "all"), ("workers", "")):
        if options[key] != other and not (options[key].isdecimal() and int(options[key]) >= 1):
            raise ReadError(
                f"{key} is {options[key]!r}; it must be {other or 'left out'} or a whole number, at least 1"
            )
    workers = int(options["workers"] or len(os.sched_getaffinity(0)))
    found = Found()
    try:
        root = Path(options["data_root"]).expanduser()
        sharded = bool(options["data_root"]) and (root / MANIFEST).exists()
        listed = check.list_shards(root) if sharded else check.list_folders(check_root(options["data_root"]), found)
    except (InputError, OSError) as error:
        raise ReadError(str(error)) from error
    check.check_counts({split: listed[split][1] for split in SPLITS}, found, expect=options["expect"])
    for split in SPLITS:
        listing, counts = listed[split]
        numbers = check.chosen(sum(counts.values()), options["pictures"])
        seen = check.decode(split, listing, numbers, workers=workers)
        check.check_pictures(split, seen, found, num_chosen=len(numbers))
    check.judge(found)
    text = check.report(root, found, options)
    out = Path(options["out"])
    out.mkdir(parents=True, exist_ok=True)
    (out / "imagenet-check.md").write_text(text, encoding="utf-8", errors="replace")
    print("\n".join([*found.facts, *found.notes, *(f"problem: {line}" for line in found.problems)]))
    print(f"report {out / 'imagenet-check.md'}")
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(command(main, __doc__ or ""))
