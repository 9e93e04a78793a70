import sys

import pytest
import torch
from transformers import PreTrainedConfig

from ppf.labels.labeller import Labeller
from ppf.space import uniform
from tests.checkpoints import each, pruner_of, random_model, random_windows
from tests.checkpoints import policies as drawn_policies
from tests.tiny import TinySetup


@pytest.fixture
def policies(tiny: TinySetup) -> list[list[int]]:
    ratios = torch.tensor([0.0, 0.2, 0.4, 0.6])
    kept = uniform(tiny.space, ratios)
    kept[3, 4:] = kept[1, 4:]  # same last layers as another policy
    empty = tiny.space.dense
    empty[0] = 0
    return [*kept.tolist(), empty.tolist()]


def test_a_label_does_not_depend_on_what_was_labelled_before(
    tiny: TinySetup, policies: list[list[int]]
) -> None:
    alone = [Labeller(tiny.lm, tiny.pruner(), tiny.windows, batch=4).score(k) for k in policies]
    labeller = Labeller(tiny.lm, tiny.pruner(), tiny.windows, batch=4)
    backwards = [labeller.score(kept) for kept in policies[::-1] + policies[::-1]]
    assert backwards == pytest.approx(alone[::-1] * 2, abs=1e-6)


@each("config")
def test_equals_the_loss_of_every_family(config: PreTrainedConfig) -> None:
    lm, ids = random_model(config), random_windows()
    pruner = pruner_of(lm)
    labeller = Labeller(lm, pruner, ids, batch=3)
    for kept in drawn_policies(pruner.space).values():
        with pruner.at(kept) as model, torch.inference_mode():
            loss = float(model(ids, labels=ids).loss)
        assert labeller.score(kept) == pytest.approx(loss, abs=1e-4)


def test_shared_first_layers_are_not_run_again(tiny: TinySetup, policies: list[list[int]]) -> None:
    labeller = Labeller(tiny.lm, tiny.pruner(), tiny.windows, batch=8)
    labeller.score(policies[0])
    calls: list[int] = []
    for index, layer in enumerate(labeller.layers):
        layer.register_forward_pre_hook(lambda module, inputs, index=index: calls.append(index))
    changed = list(policies[0])
    changed[-1] -= 1  # a site of the last layer
    labeller.score(changed)
    assert calls == [len(labeller.layers) - 1]


def test_an_interrupted_policy_does_no_harm(tiny: TinySetup, policies: list[list[int]]) -> None:
    labeller = Labeller(tiny.lm, tiny.pruner(), tiny.windows, batch=8)
    expected = [labeller.score(policies[i]) for i in (2, 1)]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    hook = labeller.layers[2].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        labeller.score(policies[2])
    hook.remove()
    assert [labeller.score(policies[i]) for i in (1, 2)] == pytest.approx(expected[::-1])


def test_out_of_memory_halves_the_batch(
    tiny: TinySetup, policies: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    labeller = Labeller(tiny.lm, tiny.pruner(), tiny.windows, batch=8)
    expected = labeller.score(policies[1])
    run = Labeller._run_layer

    def full(self: Labeller, index: int) -> None:
        assert sys.exc_info()[0] is None  # an exception would keep the failed batch in memory
        if len(self._batches[0].ids) > 2:
            raise RuntimeError("DefaultCPUAllocator: not enough memory")
        run(self, index)

    monkeypatch.setattr(Labeller, "_run_layer", full)
    labeller = Labeller(tiny.lm, labeller.pruner, tiny.windows, batch=8)
    assert labeller.score(policies[1]) == pytest.approx(expected, abs=1e-5)
    assert len(labeller._batches[0].ids) == 2
