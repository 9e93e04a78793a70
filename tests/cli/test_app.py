from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from ppf.cli.app import discard, share_dtype, share_run_folder
from tests.ranks import FakeRanks


@pytest.mark.parametrize("rank", [0, 1])
def test_all_ranks_use_the_run_folder_of_rank_0(tmp_path: Path, rank: int) -> None:
    folders = [tmp_path / "rank 0", tmp_path / "rank 1"]
    for folder in folders:
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra" / "config.yaml").touch()

    cfg = OmegaConf.create({"paths": {"run": str(folders[rank])}})
    share_run_folder(cfg, FakeRanks(rank, [str(folders[0])]))
    assert cfg.paths.run == str(folders[0])
    assert [folder.is_dir() for folder in folders] == [True, rank == 0]


def test_a_run_folder_with_results_is_not_discarded(tmp_path: Path) -> None:
    empty, used = tmp_path / "day" / "empty", tmp_path / "day" / "used"
    for folder in (empty, used):
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra" / "config.yaml").touch()
        (folder / "model").mkdir()
    (used / "model" / "weights").touch()
    for folder in (empty, used, tmp_path / "day"):
        discard(folder)
    assert not empty.exists() and (used / "model" / "weights").exists()
    assert (used / ".hydra" / "config.yaml").exists()


def test_all_ranks_use_the_number_format_of_rank_0() -> None:
    rank_1: Any = FakeRanks(1, ["bfloat16"])
    rank_1.device = torch.device("cpu")
    cfg = OmegaConf.create({"model": {"dtype": "float32"}})
    share_dtype(cfg, rank_1)
    assert cfg.model.dtype == "bfloat16"
