"""Memory limits of Linux control groups, such as containers and Slurm jobs have."""

import math
from pathlib import Path

_UNIFIED = ("memory.max", "memory.current", "inactive_file")  # version 2
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def left_by_groups(
    membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> float:
    """Bytes that this process's group, and all groups above it, may still take.

    Args:
        membership: the file that names the groups of the process.
        root: folder of all groups.

    Returns:
        Infinity if there is no limit.
    """
    if not membership.is_file():
        return math.inf
    left = [math.inf]
    for line in membership.read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, names = (root / "memory", _VERSION_1) if controllers else (root, _UNIFIED)
        group = top / path.lstrip("/")  # in a container, this folder may be `top` itself
        left += [
            _left(folder, *names)
            for folder in (group, *group.parents)
            if folder.is_relative_to(top)
        ]
    return max(min(left), 0)


def _left(group: Path, limit: str, usage: str, reclaimable: str) -> float:
    """Bytes that a group may still take; page cache that was not used lately counts as free."""
    try:
        most, used, stat = (
            (group / name).read_text(encoding="utf-8") for name in (limit, usage, "memory.stat")
        )
    except OSError:  # the root group has no limit
        return math.inf
    if most.strip() == "max":
        return math.inf
    cache = dict(line.split() for line in stat.splitlines()).get(reclaimable, 0)
    return int(most) - int(used) + int(cache)
