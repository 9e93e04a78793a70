"""The LightningModules: schedule, checkpoints, and a step at several ratios."""

import itertools

import pytest
import torch

from ppf.errors import PPFError
from ppf.recovery.elastic import drawn
from ppf.recovery.losses import KL
from ppf.recovery.module import RecoveryModule, warmup_and_cosine
from ppf.recovery.tuners import NormsAndBiases
from tests.checkpoints import CHECKPOINTS, random_model, random_windows


def test_the_learning_rate_rises_from_the_first_step_and_falls_to_zero() -> None:
    factors = [warmup_and_cosine(3, 13, step) for step in range(14)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[8] == pytest.approx(0.5)
    assert all(later < earlier for earlier, later in itertools.pairwise(factors[3:]))
    assert factors[-1] == pytest.approx(0)
    assert warmup_and_cosine(0, 1, 0) == 1.0


def test_checkpoints_hold_what_is_trained_and_nothing_else() -> None:
    student, teacher = (random_model(CHECKPOINTS["llama-biases"]).model for _ in range(2))
    NormsAndBiases(1e-3).start(student)
    module = RecoveryModule(student, teacher, {"kl": KL(1.0)}, lr=1e-3, steps=10)
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    stored = checkpoint["state_dict"]
    assert stored and all(tensor.ndim == 1 for tensor in stored.values())
    frozen = {name: p.clone() for name, p in student.named_parameters() if p.ndim > 1}
    module.load_state_dict({n: torch.full_like(t, 0.5) for n, t in stored.items()}, strict=False)
    for name, parameter in student.named_parameters():
        expected = frozen.get(name, torch.full_like(parameter, 0.5))
        assert torch.equal(parameter, expected)


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    student, teacher = (random_model(CHECKPOINTS["llama-biases"]).model for _ in range(2))
    student.get_decoder().norm.weight.data.fill_(torch.nan)
    module = RecoveryModule(student, teacher, {"kl": KL(1.0)}, lr=1e-3, steps=10)
    module.log_training = lambda values: None  # type: ignore[method-assign]
    with pytest.raises(PPFError, match="not finite at step 0: give a lower learning rate"):
        module.training_step([random_windows()], 0)


def test_each_step_takes_the_highest_ratio_and_its_own_random_ones() -> None:
    steps = [drawn((0.1, 0.5), 7, step) for step in (0, 1, 0)]
    assert steps[0] == steps[2] != steps[1]
    for low, high, highest in steps:
        assert 0.1 <= low <= 0.3 <= high <= 0.5 == highest
