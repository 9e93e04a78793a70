"""Memory that the limits of containers and Slurm jobs leave."""

import math
from pathlib import Path

import pytest

from ppf.planning.control_groups import left_by_groups

VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
UNIFIED = ("memory.max", "memory.current", "inactive_file")


def group(folder: Path, names: tuple[str, ...], limit: int | str, used: int, cache: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in zip(names, (limit, used), strict=False):
        (folder / name).write_text(f"{content}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[-1]} {cache}\nfile 900\n")


@pytest.fixture
def membership(tmp_path: Path) -> Path:
    return tmp_path / "membership"


def test_the_tightest_group_counts_and_its_old_page_cache_is_free(
    tmp_path: Path, membership: Path
) -> None:
    membership.write_text("0::/slurm/job_7/step_0\n")
    group(tmp_path / "slurm" / "job_7" / "step_0", UNIFIED, "max", 300, 100)
    group(tmp_path / "slurm" / "job_7", UNIFIED, 1000, 700, 200)
    group(tmp_path / "slurm", UNIFIED, 9000, 800, 0)
    assert left_by_groups(membership, tmp_path) == 500
    group(tmp_path / "slurm" / "job_7" / "step_0", UNIFIED, 400, 300, 100)
    assert left_by_groups(membership, tmp_path) == 200
    group(tmp_path / "slurm", UNIFIED, 700, 800, 0)
    assert left_by_groups(membership, tmp_path) == 0


def test_groups_of_version_1_are_read(tmp_path: Path, membership: Path) -> None:
    membership.write_text("5:devices:/a\n4:memory:/docker/1f\n0::/\n")
    group(tmp_path / "memory", VERSION_1, 1000, 700, 200)  # a container sees its own group on top
    assert left_by_groups(membership, tmp_path) == 500
    group(tmp_path / "memory" / "docker" / "1f", VERSION_1, 800, 700, 0)
    assert left_by_groups(membership, tmp_path) == 100


def test_without_groups_or_limits_there_is_no_limit(tmp_path: Path, membership: Path) -> None:
    assert left_by_groups(membership, tmp_path) == math.inf
    membership.write_text("0::/\n")
    assert left_by_groups(membership, tmp_path) == math.inf
    group(tmp_path, UNIFIED, "max", 300, 0)
    assert left_by_groups(membership, tmp_path) == math.inf
