"""Predictors that are not fitted to labels: expected losses, and the real model."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ppf.labels.table import Labels
from ppf.predictor.oracle import Oracle
from ppf.predictor.sensitivity import SensitivityPredictor
from ppf.pruning import SiteFeatures
from ppf.space import Space
from tests.predictor.synthetic import DENSE_NLL, inputs


def test_sensitivities_add_up(known: SiteFeatures, labels: Labels, space: Space) -> None:
    predictor = SensitivityPredictor()
    predictor.fit(labels, inputs(known, {}))
    mean, std = predictor.predict(labels.kept)
    for kept, nll in zip(labels.kept[:5], mean, strict=False):
        losses = [known.losses[site, units] for site, units in enumerate(kept.tolist())]
        assert nll == pytest.approx(DENSE_NLL + float(sum(losses)), rel=1e-5)
    assert (std == 0).all()
    assert predictor.predict(space.dense[None]).mean == pytest.approx(DENSE_NLL)


def test_the_oracle_measures_what_it_is_asked(known: SiteFeatures, labels: Labels) -> None:
    measured = []

    def measure(kept: Tensor) -> Tensor:
        measured.append(kept)
        return kept.sum(1).double()

    oracle = Oracle(screening=[])
    oracle.fit(labels, replace(inputs(known, {}), measure=measure))
    assert oracle.predict(labels.kept).mean.tolist() == labels.kept.sum(1).tolist()
    assert torch.equal(measured[0], labels.kept)


def test_screening_measures_the_best_and_estimates_the_rest(
    known: SiteFeatures, labels: Labels
) -> None:
    screened, measured = [], []

    def screen(kept: Tensor, windows: int, first: int) -> Tensor:
        screened.append((kept[:, 0].tolist(), windows, first))
        return kept[:, 0].double()

    def measure(kept: Tensor) -> Tensor:
        measured.append(kept[:, 0].tolist())
        return 10 - kept[:, 0].double() / 10  # the last step ranks the policies the other way round

    oracle = Oracle(screening=[{"windows": 1, "keep": 3}, {"windows": 2, "keep": 2}])
    oracle.fit(labels, replace(inputs(known, {}), measure=measure, screen=screen))
    batch = torch.tensor([[7], [1], [5], [3], [9]])
    found = oracle.predict(batch).mean
    # Agents ask again, in another order and perhaps more than once for a policy.
    again = oracle.predict(torch.cat([batch.flip(0), batch[:1]])).mean
    assert again.tolist() == [*found.tolist()[::-1], found[0]]
    assert screened == [([7, 1, 5, 3, 9], 1, 0), ([1, 3, 5], 2, 1)]
    assert measured == [[1, 3]]
    # Policies 1 and 3 score 9.8 on average when measured and 2 on two windows, so 5 is estimated as
    # 5 + 7.8. These three have means of 10.8 and 3, which gives 7 + 7.8 and 9 + 7.8.
    assert found.tolist() == pytest.approx([14.8, 9.9, 12.8, 9.7, 16.8])
    assert oracle.predict(torch.tensor([[5], [9]])).mean.tolist() == pytest.approx([9.5, 9.1])
    known_but_one = torch.tensor([[1], [7], [5], [3], [9]])
    found = oracle.predict(known_but_one).mean
    assert found.tolist() == pytest.approx([9.9, 9.3, 9.5, 9.7, 9.1])
    assert len(screened) == 2 and measured[-1] == [7]
    oracle.predict(batch + 1)
    assert [first for _, _, first in screened] == [0, 1, 3, 4]
