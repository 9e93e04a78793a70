from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module

from ppf.conf import plain
from ppf.errors import PPFError
from ppf.policy_file import (
    policy_config,
    refuse_recovered,
)
from ppf.pruning.signatures import recorded


def config(*overrides: str) -> Any:
    with initialize_config_module("ppf.conf", version_base="1.3"):
        return compose("search", [*overrides])


def test_a_policy_whose_weights_were_trained_is_refused() -> None:
    refuse_recovered({"exported": {"compensation": "sequential"}}, "x/policy.json")
    for trained in ({"exported": {"compensation": "adapters"}}, {"recovered": {"tokens": 1}}):
        with pytest.raises(PPFError, match="belongs to a recovered model.*give path=x"):
            refuse_recovered(trained, "x/policy.json")


@pytest.mark.parametrize(
    ("gpus", "accelerator", "divided"),
    [
        (2, "auto", "auto"),
        (2, "cpu", None),
        (1, "auto", None),
    ],
)
def test_layers_are_divided_only_where_there_are_gpus(
    gpus: int, accelerator: str, divided: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    searched = config("model.device_map=auto", "paths.run=?")
    record = {"config": plain(recorded(searched))}
    here = config(f"fabric.accelerator={accelerator}", "paths.run=?")
    assert policy_config(record, here).model.device_map == divided
