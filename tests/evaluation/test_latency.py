import copy

import pytest
import torch

from ppf.evaluation.latency import decode_seconds
from ppf.evaluation.memory import peak_bytes
from tests.tiny import TinySetup


def test_a_models_own_generation_config_does_not_change_what_is_timed(tiny: TinySetup) -> None:
    model, shapes = copy.deepcopy(tiny.lm.model), []
    own = {"use_cache": False, "num_beams": 4, "num_return_sequences": 2, "stop_strings": ["a"]}
    model.generation_config.update(**own, prompt_lookup_num_tokens=3)
    model.get_decoder().layers[0].register_forward_pre_hook(lambda _, x: shapes.append(x[0].shape))
    decode_seconds(model, torch.arange(24).view(2, 12), 3)
    assert [tuple(shape[:2]) for shape in shapes] == [(2, 12), (2, 1), (2, 1), (2, 1)]


def test_peak_memory_counts_weights_and_what_is_allocated(tiny: TinySetup) -> None:
    weights = sum(p.nbytes for p in tiny.lm.model.parameters())
    with peak_bytes(tiny.lm.model) as idle:
        pass
    with peak_bytes(tiny.lm.model) as busy:
        torch.ones(64, 2**18)
    if idle.bytes is None or busy.bytes is None:
        pytest.skip("this system does not tell a process's peak memory")
    assert weights <= idle.bytes < weights + 2**24
    assert 0.9 < (busy.bytes - weights) / 2**26 < 1.25
