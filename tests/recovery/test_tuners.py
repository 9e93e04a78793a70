"""Which weights a tuner trains, and what it leaves of the model."""

from pathlib import Path

import pytest
import torch
from lightning import Fabric
from transformers import PreTrainedModel

from ppf.recovery import tuners
from ppf.recovery.losses import CrossEntropy
from ppf.recovery.training import RecoverySettings, TrainerSettings, TrainingRun, Windows
from ppf.recovery.tuners import Full, LoRA, NormsAndBiases, Tuner, without_dropout
from tests.checkpoints import CHECKPOINTS, random_model, random_windows

TUNERS = [Full(1.5e-2, embeddings=False), LoRA(5e-2, rank=4, alpha=8), NormsAndBiases(2e-2)]


def training(folder: Path) -> TrainingRun:
    """Of two steps."""
    windows = random_windows()
    return TrainingRun(
        RecoverySettings(2 * windows.numel(), len(windows), 1, 1),
        TrainerSettings("bf16-mixed", 1.0),
        Fabric(accelerator="cpu", devices=1),
        {"accelerator": "cpu", "devices": 1},
        folder,
        Windows(windows, windows),
        seed=0,
    )


def tuned(model: PreTrainedModel, tuner: Tuner, folder: Path) -> None:
    """Trains for two steps."""
    teacher = random_model(CHECKPOINTS["llama-biases"]).model
    assert len(tuner.tune(model, teacher, {"ce": CrossEntropy(1.0)}, training(folder))) == 2


@pytest.mark.parametrize("tuner", TUNERS, ids=["full", "lora", "norms_and_biases"])
def test_a_tuner_changes_its_own_weights_and_nothing_else(tuner: Tuner, tmp_path: Path) -> None:
    model = random_model(CHECKPOINTS["llama-biases"]).model
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    tuned(model, tuner, tmp_path)
    after = model.state_dict()
    assert after.keys() == before.keys() and not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    expected = {
        Full: {name for name in before if "embed" not in name and "lm_head" not in name},
        LoRA: {name for name in before if "proj" in name and before[name].ndim == 2},
        NormsAndBiases: {name for name in before if before[name].ndim == 1},
    }
    assert changed == expected[type(tuner)]
    # The computation is in bfloat16, but the weights that it changes are kept in float32.
    assert not any(torch.equal(after[n], after[n].bfloat16().float()) for n in changed)


@pytest.mark.parametrize("form", ["opt-no-biases-untied", "opt-32-heads-tied"])
@pytest.mark.parametrize("embeddings", [True, False])
def test_embeddings_of_tokens_and_positions_are_trained_on_request(
    form: str, embeddings: bool
) -> None:
    model = random_model(CHECKPOINTS[form]).model
    sizes = Full(1e-4, embeddings=embeddings).start(model)
    assert all(weight.ndim == 2 and weight.requires_grad for weight in sizes)
    parts = ("embed_tokens", "embed_positions", "lm_head")
    for name, parameter in model.named_parameters():
        outside = any(part in name for part in parts)
        assert parameter.requires_grad == (embeddings or not outside), name
    assert any("embed_positions" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("tuner", TUNERS, ids=["full", "lora", "norms_and_biases"])
def test_the_learning_rate_is_in_proportion_to_the_weights(
    tuner: Tuner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = list[float]()
    monkeypatch.setattr(tuners, "fit", lambda module, run: rates.append(module.lr) or [])
    for factor in (1, 0.1):
        model = random_model(CHECKPOINTS["llama-biases"]).model
        for parameter in model.parameters():
            parameter.data *= factor
        tuner.tune(model, model, {}, training(tmp_path))
    assert rates[1] == pytest.approx(0.1 * rates[0])


def test_no_layer_is_dropped_at_random() -> None:
    model = random_model(CHECKPOINTS["opt-32-heads-tied"]).model
    model.get_decoder().layerdrop = 0.5
    without_dropout(model)
    assert model.get_decoder().layerdrop == 0
