"""Atoms that never change the output, because their inputs or their weights are zero."""

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from ppf.llm import Coupling, LanguageModel
from ppf.pruning import Bank, LivePruner, SiteFeatures, sensitivity
from ppf.pruning.compensation import Bias, Compensation, LeastSquares, NoCompensation
from ppf.pruning.importance import (
    OBS,
    Fluctuation,
    Importance,
    Magnitude,
    RandomOrder,
    Taylor,
    Wanda,
)
from ppf.pruning.order import orders_of, retained_importance
from ppf.pruning.statistics import expand
from tests.checkpoints import CHECKPOINTS, random_model, random_windows, width_space
from tests.observing import by_name, collect_statistics, collect_traits, score_atoms
from tests.records.examples import CONF

IMPORTANCES = [Magnitude(), Wanda(), Fluctuation(), Taylor(), OBS(0.01, 4), OBS(0.01, 100)]
COMPENSATIONS = [NoCompensation(), Bias(), LeastSquares(0.01, 0.01)]
named = {"ids": lambda value: type(value).__name__}


def zero_inputs(coupling: Coupling, atoms: torch.Tensor) -> None:
    """Sets the value rows of an attention block, or the gate rows of an FFN, to zero."""
    producer = coupling.producers[2 if coupling.kind == "attention" else 0]
    producer.linear.weight[expand(atoms, producer.rows)] = 0


def zero_weights(coupling: Coupling, atoms: torch.Tensor) -> None:
    coupling.consumer.weight[:, expand(atoms, coupling.columns)] = 0


def silenced(lm: LanguageModel, how, share: float) -> list[torch.Tensor]:
    """Silences a share of the atoms of each coupling; returns these atoms."""
    atoms = [torch.randperm(c.atoms)[: round(share * c.atoms)] for c in lm.couplings]
    for coupling, some in zip(lm.couplings, atoms, strict=True):
        how(coupling, some)
    return atoms


@pytest.fixture
def lm() -> LanguageModel:
    return random_model(CHECKPOINTS["llama-32-heads-untied"])


@pytest.mark.parametrize("how", [zero_inputs, zero_weights])
@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("importance", [*IMPORTANCES, RandomOrder(0)], **named)
def test_silent_atoms_rank_last(
    lm: LanguageModel, importance: Importance, how, share: float
) -> None:
    silent = silenced(lm, how, share)
    statistics, space = collect_statistics(lm, random_windows()), width_space(lm)
    scores = score_atoms(lm, importance, statistics, random_windows())
    for score, atoms in zip(scores, silent, strict=True):
        live = torch.ones(len(score), dtype=torch.bool)
        live[atoms] = False
        assert score.isfinite().all() and (score[atoms] == 0).all() and (score[live] > 0).all()
    retained = retained_importance(lm, space, scores)
    assert ((retained >= 0) & (retained < 1 + 1e-5)).all()


def test_constant_inputs_have_no_negative_fluctuation() -> None:
    consumer = nn.Linear(3, 4).requires_grad_(requires_grad=False)
    coupling = Coupling(0, "mlp", 3, (), consumer, 1, nn.Module(), "block")
    mean = torch.tensor([0.1, 1 / 3, 7.7])
    gram = torch.outer(mean, mean) * (1 - 1e-6)  # variance below 0, as rounding can make it
    assert (Fluctuation().scores(coupling, gram, mean) >= 0).all()


@pytest.mark.parametrize("how", [zero_inputs, zero_weights])
@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("compensation", COMPENSATIONS, **named)
def test_features_of_silent_sites_are_finite(
    lm: LanguageModel, compensation: Compensation, how, share: float
) -> None:
    silenced(lm, how, share)
    windows, space = random_windows(), width_space(lm)
    statistics = collect_statistics(lm, windows)
    scores = score_atoms(lm, OBS(0.01, 4), statistics, windows)
    bank = Bank.build(lm, space, orders_of(lm, scores), statistics, compensation)
    retained, traits = retained_importance(lm, space, scores), collect_traits(lm, windows)
    losses = sensitivity(LivePruner(lm, space, bank), windows, seed=0)
    assert all(known.isfinite().all() for known in (bank.errors, losses, *by_name(traits).values()))
    if share == 1:
        assert bank.errors.max() == 0 and losses.max() == 0
    else:  # half of the atoms are silent, so half of the units can be removed almost without error
        for site, row in zip(space.sites, bank.errors, strict=True):
            assert row[-(-site.units // 2)] < 0.05 < row[0]
    features = SiteFeatures(space, bank.errors, retained, torch.ones(len(space)), losses, traits)
    for file in (CONF / "allocation").glob("*.yaml"):
        rule = instantiate(OmegaConf.load(file))
        assert rule.wanted(features, torch.tensor([0.1, 0.5]).double()).isfinite().all()
