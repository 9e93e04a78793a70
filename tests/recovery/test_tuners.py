"""Which weights a tuner trains."""

import pytest

from ppf.recovery.tuners import Full, without_dropout
from tests.checkpoints import CHECKPOINTS, random_model


@pytest.mark.parametrize("form", ["opt-no-biases-untied", "opt-32-heads-tied"])
@pytest.mark.parametrize("embeddings", [True, False])
def test_embeddings_of_tokens_and_positions_are_trained_on_request(
    form: str, embeddings: bool
) -> None:
    model = random_model(CHECKPOINTS[form]).model
    Full(lr=1e-4, embeddings=embeddings).start(model)
    parts = ("embed_tokens", "embed_positions", "lm_head")
    for name, parameter in model.named_parameters():
        outside = any(part in name for part in parts)
        assert parameter.requires_grad == (embeddings or not outside), name
    assert any("embed_positions" in name for name, _ in model.named_parameters())


def test_no_layer_is_dropped_at_random() -> None:
    model = random_model(CHECKPOINTS["opt-32-heads-tied"]).model
    model.get_decoder().layerdrop = 0.5
    without_dropout(model)
    assert model.get_decoder().layerdrop == 0
