"""The distribution's name, and the refusal of another distribution in this package's folder.

The authors' distribution `adamp` and this one, `adamp-optimizers`, both install a package named `adamp`. pip lets the
second overwrite files of the first without a word, and uninstalling either removes files of the other.
"""

from __future__ import annotations

import importlib.metadata
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

DISTRIBUTION = "adamp-optimizers"
PUBLISHED = "adamp"  # the distribution of the paper's authors


def check_installation(folder: Path | None = None, *, path: Sequence[str] | None = None) -> None:
    """Refuse files of the distribution `adamp` in this package's folder; warn of its package elsewhere on the path.

    Args:
        folder: The package's folder, by default this one.
        path: Where to look for distributions, by default `sys.path`.

    Raises:
        ImportError: The distribution `adamp` has installed files in the folder.

    Warns:
        RuntimeWarning: It has a package of the same name in another folder of the path.
    """
    folder = Path(__file__).resolve().parent if folder is None else folder.resolve()
    path = sys.path if path is None else path
    for other in importlib.metadata.distributions(name=PUBLISHED, path=list(path)):
        # An editable install has no files of the package
        if not any(file.as_posix() == "adamp/__init__.py" for file in other.files or ()):
            continue
        name = f"the distribution {PUBLISHED} {other.version}"
        other_folder = Path(str(other.locate_file("adamp"))).resolve()
        if other_folder == folder:
            raise ImportError(
                f"{name} and {DISTRIBUTION} are both installed in {folder}, and each has overwritten files of the "
                f"other: run `pip uninstall {PUBLISHED} {DISTRIBUTION}`, then install the one you want again"
            )
        warnings.warn(
            f"{name} in {other_folder} and {DISTRIBUTION} in {folder} have the same import name: the order of sys.path "
            f"decides which one a process imports; uninstall one",
            RuntimeWarning,
            stacklevel=2,
        )
