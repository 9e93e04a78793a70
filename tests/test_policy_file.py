from typing import Any

import pytest
import torch

from ppf.conf import plain
from ppf.errors import PPFError
from ppf.policy_file import policy_config, refuse_recovered
from ppf.pruning.signatures import recorded
from tests.composing import command_config


def config(*overrides: str) -> Any:
    return command_config("search", ["paths.run=?", *overrides])


def test_a_policy_whose_weights_were_trained_is_refused() -> None:
    refuse_recovered({"exported": {"compensation": "sequential"}}, "x/policy.json")
    for trained in ({"exported": {"compensation": "adapters"}}, {"recovered": {"tokens": 1}}):
        with pytest.raises(PPFError, match="belongs to a recovered model.*give path=x"):
            refuse_recovered(trained, "x/policy.json")


def test_layers_are_divided_only_where_there_are_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"config": plain(recorded(config("model.device_map=auto")))}
    here = config()
    for gpus, accelerator, divided in ((2, "auto", "auto"), (2, "cpu", None), (1, "auto", None)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        here.fabric.accelerator = accelerator
        assert policy_config(record, here).model.device_map == divided
