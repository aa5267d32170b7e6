"""Tree crowns in aerial photographs, framed by people: 132 tiles to train on, 22 to validate, one class."""

from __future__ import annotations

from pathlib import Path

from tasks.base import InputError
from tasks.data.cache import cache_folder
from tasks.detection.coco import CocoSet


class TreeCrowns(CocoSet):
    """Tiles of 256x256 with 1,190 and 235 boxes; 22 tiles make AP noisy, so three seeds at least.

    Args:
        root: Folder with the tiles; None is where `python -m scripts.prepare.tree_crowns` puts them.
        site: Validate on tiles of another state (4, with 99 boxes) instead of another part of the same photographs.

    Raises:
        InputError: The set has not been prepared.

    Reference:
        Weinstein et al., "DeepForest", Methods in Ecology and Evolution 2020; the package deepforest 2.1.0.
    """

    def __init__(self, root: str | None = None, *, site: bool = False) -> None:
        folder = Path(root).expanduser() if root else cache_folder() / "tree_crowns"
        if not folder.is_dir():
            raise InputError(f"data=tree_crowns: {folder} does not exist; run `python -m scripts.prepare.tree_crowns`")
        super().__init__(
            str(folder), name="tree_crowns", folders={"train": "train", "val": "test_site" if site else "val"},
            categories="file", licence="MIT (Ben Weinstein, package deepforest)",
        )  # fmt: skip
