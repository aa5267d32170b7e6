"""Names of published sets, which a copy with other contents never bears."""

from __future__ import annotations

from collections.abc import Mapping


def verified_name(name: str, counts: Mapping[str, int], published: Mapping[str, int]) -> str:
    """Return the name of a set for records and tables.

    Args:
        name: Name of the published set.
        counts: What the copy holds, e.g. {"train": 100, "val": 10}.
        published: The same counts of the published set.

    Returns:
        The name where the counts are equal; followed by "_subset" where none is larger; else by "_unverified".
    """
    if counts == published:
        return name
    return f"{name}_subset" if all(counts[key] <= published[key] for key in published) else f"{name}_unverified"
