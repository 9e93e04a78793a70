from pathlib import Path

import pytest
import torch

from ppf.labels.table import PROPOSED, Labels
from ppf.predictor.learned import CHECKPOINT, LearnedPredictor
from ppf.predictor.protocol import Differentiable, Surrogate
from ppf.pruning import SiteFeatures
from ppf.space import Space
from tests.predictor.synthetic import fitted_with, inputs, made_up_labels, predictor_config

FEW_STEPS = "predictor.residual_steps=10"  # of the Gaussian process, for tests of something else
FEW = ("predictor.members=2", FEW_STEPS)


def test_additive_is_right_on_unseen_policies(fitted: LearnedPredictor) -> None:
    assert fitted.metrics["test/kendall"] > 0.9
    assert fitted.metrics["test/nmse"] < 0.02


@pytest.mark.parametrize(
    ("network", "optimizer", "steps"), [("additive", "adam", 20), ("cnn", "lbfgs", 1)]
)
def test_networks_learn(
    labels: Labels, known: SiteFeatures, tmp_path: Path, network: str, optimizer: str, steps: int
) -> None:
    chosen = [f"predictor={network}", f"predictor/optimizer={optimizer}", "predictor.members=2"]
    length = ["trainer.max_epochs=5", f"predictor.steps={steps}"]
    fitted = fitted_with(labels, known, tmp_path, *chosen, *length)
    assert fitted.metrics["test/kendall"] > 0.85
    assert sorted(path.name for path in tmp_path.iterdir()) == ["held_out.json", CHECKPOINT]


def test_scores_are_of_predictions_without_the_own_fold(
    fitted: LearnedPredictor, labels: Labels
) -> None:
    seen = (fitted.predict(labels.kept).mean - labels.nll).square().mean()
    unseen = (fitted.held_out.predicted - fitted.held_out.measured).square().mean()
    assert unseen > seen
    assert fitted.metrics["test/nmse_low"] < fitted.metrics["test/nmse_high"]


def test_proposals_are_fitted_but_not_scored(
    labels: Labels, known: SiteFeatures, tmp_path: Path
) -> None:
    source = [PROPOSED if i % 4 == 0 else "sampler" for i in range(len(labels))]
    quick = ("predictor=additive", "predictor.members=2", "trainer.max_epochs=1")
    with_them = fitted_with(Labels(labels.kept, labels.nll, source), known, tmp_path, *quick)
    assert with_them.metrics["test/policies"] == source.count("sampler")
    assert not torch.are_deterministic_algorithms_enabled()  # only during the training


@pytest.mark.slow
def test_interval_covers_unseen_policies(
    fitted: LearnedPredictor, labels: Labels, space: Space, known: SiteFeatures, tmp_path: Path
) -> None:
    quick = "trainer.max_epochs=8", "predictor.residual_steps=15"
    residual = fitted_with(labels, known, tmp_path, *quick)
    fresh = made_up_labels(space, known, count=500)
    for predictor in (fitted, residual):
        predicted = predictor.predict(fresh.kept)
        covered = (predicted.mean - fresh.nll).abs() <= 1.645 * predicted.std
        assert 0.85 <= float(covered.float().mean()) <= 0.95


@pytest.mark.parametrize("predictor", ["additive", "residual"])
def test_checkpoint_loads_without_pickles(
    labels: Labels, known: SiteFeatures, tmp_path: Path, predictor: str
) -> None:
    chosen = [f"predictor={predictor}", "trainer.max_epochs=1", FEW[0]]
    chosen += [FEW_STEPS] if predictor == "residual" else []
    fitted = fitted_with(labels, known, tmp_path, *chosen)
    torch.load(tmp_path / CHECKPOINT, weights_only=True)
    config = predictor_config(*chosen)
    loaded = LearnedPredictor(**config["predictor"])
    loaded.load(tmp_path, inputs(known, config["trainer"]))
    assert isinstance(loaded, Surrogate) and isinstance(loaded, Differentiable)
    assert loaded.metrics == fitted.metrics
    for before, after in zip(fitted.predict(labels.kept), loaded.predict(labels.kept), strict=True):
        assert torch.equal(before, after)
    some = labels.kept[100:104].float().requires_grad_()  # as the gradient agent asks
    relaxed = loaded.relaxed(some)
    mean = loaded.predict(labels.kept[100:104]).mean
    torch.testing.assert_close(relaxed, mean, atol=1e-4, rtol=0)
    relaxed.sum().backward()
    assert some.grad is not None and some.grad.isfinite().all() and some.grad.any()
    if predictor == "additive":  # a unit never raises the loss
        assert (some.grad <= 0).all()


def test_same_seed_same_predictor(labels: Labels, known: SiteFeatures, tmp_path: Path) -> None:
    few = Labels(labels.kept[::8], labels.nll[::8], labels.source[::8])
    once, again, other = (
        fitted_with(few, known, tmp_path, "trainer.max_epochs=1", *FEW, seed=seed)
        for seed in (1, 1, 2)
    )
    assert torch.equal(once.held_out.predicted, again.held_out.predicted)
    assert not torch.equal(once.held_out.predicted, other.held_out.predicted)


def test_catastrophic_and_infinite_labels_do_no_harm(
    labels: Labels, known: SiteFeatures, tmp_path: Path
) -> None:
    kept, nll = labels.kept.clone(), labels.nll.clone()
    kept[5::20, 2] = 0
    lost = kept[:, 2] == 0
    nll[lost] = 17.0
    spoilt = nll.clone()
    spoilt[7::40], spoilt[9::40] = torch.inf, torch.nan
    some = Labels(kept, spoilt, labels.source)
    predictor = fitted_with(some, known, tmp_path, *FEW, "trainer.max_epochs=5")
    assert predictor.held_out.measured.isfinite().all()
    predicted = predictor.predict(kept).mean
    assert (predicted - nll)[~lost].abs().median() < 0.05
    assert predicted[lost].median() > nll[~lost].quantile(0.9)
