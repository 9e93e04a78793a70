from pathlib import Path

import pytest

from ppf.evaluation.size import parameters, weight_bytes
from tests.checkpoints import CHECKPOINTS, random_model


@pytest.mark.parametrize("form", ["llama-groups-of-3-tied", "llama-wide-heads"])
def test_tied_parameters_count_once(form: str, tmp_path: Path) -> None:
    model = random_model(CHECKPOINTS[form]).model
    everything = sum(tensor.numel() for tensor in model.state_dict().values())
    twice = 257 * model.config.hidden_size if model.config.tie_word_embeddings else 0
    assert parameters(model) == everything - twice

    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert weight_bytes(tmp_path) == pytest.approx(4 * parameters(model), rel=0.02)
