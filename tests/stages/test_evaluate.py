"""Which tokens `evaluate` scores."""

import json
from pathlib import Path
from typing import Any

import pytest
from lightning import Fabric
from omegaconf import DictConfig
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ppf.errors import PPFError
from ppf.evaluation.perplexity import scored_windows
from ppf.llm.sources import byte_tokenizer
from ppf.stages.evaluate import check, main
from ppf.text import Text
from tests.articles import write_articles
from tests.checkpoints import CHECKPOINTS, bos_tokenizer, random_model
from tests.composing import command_config
from tests.records import examples

TOKENS = 100


def windows(
    tokenizer: PreTrainedTokenizerFast, *, bos: str = "window", window: int | None = None
) -> Tensor:
    text = Text(
        "letters",
        splits={"all": {"test": 1}},
        documents=lambda split: ["".join(chr(97 + i * i % 23) for i in range(TOKENS))],
        window=10,
        windows={"test": 2},
        seed=0,
        bos=bos,
    )
    return scored_windows(text, tokenizer, window)


def test_the_texts_own_windows_unless_told() -> None:
    found = windows(bos_tokenizer())
    assert found.shape == (2, 10) and (found[:, 0] == 0).all()


def test_a_window_cuts_up_the_whole_part_and_leaves_out_the_rest() -> None:
    assert windows(bos_tokenizer(), window=13).shape == (TOKENS // 12, 13)
    with pytest.raises(PPFError, match="give a smaller window, or a longer text"):
        windows(bos_tokenizer(), window=1000)


def test_in_one_stream_bos_stands_once() -> None:
    found = windows(bos_tokenizer(), bos="stream", window=13)
    assert found.shape == ((TOKENS + 1) // 13, 13)
    assert (found == 0).nonzero().tolist() == [[0, 0]]


@pytest.fixture
def folders_config(tmp_path: Path) -> DictConfig:
    """Of evaluate; there are two folders with different tokenizers, plain and bos."""
    model = random_model(CHECKPOINTS["llama-biases"]).model
    for name, tokenizer in (("plain", byte_tokenizer()), ("bos", bos_tokenizer())):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    text = (f"text.path={write_articles(tmp_path)}", "text.window=32", "text.windows.test=4")
    paths = (f"paths.run={tmp_path}", f"paths.cache={tmp_path}")
    return command_config("evaluate", ["text=wikipedia_sample", "dtype=float32", *text, *paths])


def evaluated(cfg: DictConfig, folder: Path, *names: str) -> dict[str, Any]:
    """Evaluates folders below another; the contents of evaluation.json."""
    cfg.path = [str(folder / name) for name in names]
    main(cfg, Fabric(accelerator="cpu", devices=1))
    return json.loads((folder / "evaluation.json").read_text())


def test_a_folder_that_cannot_be_measured_is_refused_before_the_first_one_is(
    folders_config: DictConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bos" / "config.json").unlink()
    with pytest.raises(PPFError, match="bos"):
        evaluated(folders_config, tmp_path, "plain", "bos")
    assert "Measuring" not in capsys.readouterr().out
    folders_config.path, folders_config.names = ["plain", "bos"], ["one"]
    with pytest.raises(PPFError, match="one name for each folder"):
        check(folders_config)


def test_folders_with_different_tokenizers_are_told(
    folders_config: DictConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for second, told in (("plain", False), ("bos", True)):
        first, other = evaluated(folders_config, tmp_path, "plain", second)["results"]
        assert ("different tokenizers" in capsys.readouterr().out) == told
        assert (first["nll"] == other["nll"]) != told


def test_shares_of_bytes_do_not_stand_among_removed_parameters(
    folders_config: DictConfig, tmp_path: Path
) -> None:
    policies = {"plain": examples.policy(), "bos": examples.policy()}
    policies["bos"]["types"] = dict.fromkeys(policies["bos"]["kept"], "q4_0")
    for name, policy in policies.items():
        (tmp_path / name / "policy.json").write_text(json.dumps(policy))
    for names, ratios in ((["plain", "bos"], [0.31, None]), (["bos"], [0.31])):
        found = evaluated(folders_config, tmp_path, *names)
        assert [result["ratio"] for result in found["results"]] == ratios
        assert found["rounded"] == (names == ["bos"])
