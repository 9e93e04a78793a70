from pathlib import Path

import pytest
import torch
from lightning import Fabric
from omegaconf.errors import ReadonlyConfigError

from ppf.errors import PPFError
from ppf.labels.context import prepare
from ppf.policy_file import checked_config, provenance
from ppf.pruning.observed import Observed
from ppf.text.windows import evenly
from tests.articles import write_articles
from tests.composing import command_config
from tests.searched import QUICK, write_search


@pytest.mark.usefixtures("no_long_work")
def test_too_little_text_to_label_is_refused_before_calibration(cache: str, tmp_path: Path) -> None:
    text, paths = write_articles(tmp_path), [f"paths.artefacts={tmp_path}", f"paths.cache={cache}"]
    cfg = command_config(
        "collect",
        ["model=tiny", *QUICK, *paths, f"text.path={text}", "text.windows.labelling=1000"],
    )
    with pytest.raises(PPFError, match="lower text.windows.labelling"):
        prepare(cfg, Fabric(accelerator="cpu", devices=1))


def test_order_and_compensation_read_further_first_tokens_of_the_calibration_part(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = list[torch.Tensor]()
    make = Observed.make

    def record(observed: Observed) -> None:
        read.append(observed.first)
        make(observed)

    monkeypatch.setattr(Observed, "make", record)
    _, context = write_search(tmp_path, cache)
    stream = context.text.stream("calibration", context.model.lm.tokenizer)
    assert len(stream) > 100
    expected = evenly(stream[:, None], 1024)
    assert torch.equal(context.calibration.first, expected)
    assert len(read) == 1 and torch.equal(read[0], expected)


def test_a_context_keeps_the_config_of_its_signatures(cache: str, tmp_path: Path) -> None:
    cfg, context = write_search(tmp_path, cache)
    cfg.text.window, cfg.importance = 32, {"_target_": "ppf.pruning.importance.Magnitude"}
    record = provenance(context)
    checked_config(record, cfg)
    with pytest.raises(ReadonlyConfigError):
        context.config.text.window = 32
