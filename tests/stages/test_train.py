"""What a search expects of a predictor that a user wrote."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from ppf.errors import PPFError
from ppf.predictor.base import unfitted
from ppf.predictor.protocol import Prediction
from ppf.stages.train import _check_predictions

CONTEXT: Any = SimpleNamespace(
    space=SimpleNamespace(dense=torch.tensor([3, 4])), lm=SimpleNamespace(device="cpu")
)


def predictor(predict: Callable[[Tensor], object]) -> Any:
    return type("Own", (), {"predict": staticmethod(predict)})()


@pytest.mark.parametrize(
    ("predict", "told"),
    [
        (lambda kept: Prediction(kept.float(), torch.ones(2)), r"shapes \[2, 2\] and \[2\]"),
        (lambda kept: torch.ones(2), "Tensor"),
    ],
)
def test_an_answer_of_another_shape_is_one_sentence(
    predict: Callable[[Tensor], object], told: str
) -> None:
    with pytest.raises(PPFError, match=rf"^Own\.predict gives .*{told} for 2 policies: it must"):
        _check_predictions(predictor(predict), CONTEXT)


def test_one_mean_and_one_deviation_for_each_policy_pass() -> None:
    _check_predictions(predictor(lambda kept: Prediction(kept[:, 0] / 2, torch.ones(2))), CONTEXT)


class Incomplete:
    def fit(self, labels: Any, inputs: Any) -> None: ...


def test_a_class_without_the_methods_is_one_sentence() -> None:
    config = OmegaConf.create({"_target_": f"{__name__}.Incomplete"})
    missing = "^Incomplete is not a predictor: it has no method predict and no save and no load.$"
    with pytest.raises(PPFError, match=missing):
        unfitted(config)
