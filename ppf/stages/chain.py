"""search, mode=chain: one agent for every ratio, from a search at each of several ratios."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from omegaconf import DictConfig

from ppf.agents.ratio_agent import RatioAgent
from ppf.labels.table import PROPOSED, Labels
from ppf.progress import Stopwatch
from ppf.stages.dynamic import Learnt, measured_curve
from ppf.stages.search import Found, search
from ppf.stages.search_inputs import SearchInputs
from ppf.stages.train import Trained


def chain(
    inputs: SearchInputs,
    labels: Labels,
    trained: Trained,
    settings: DictConfig,
    ratios: Sequence[float],
    provenance: Mapping[str, Any],
    clock: Stopwatch,
    choose: Callable[[Found], Found],
) -> Learnt:
    """Searches at `dynamic.knots` ratios of the interval `dynamic.train`, the highest first.

    Each search starts from the policy found at the ratio before, and its predictor knows all that
    the earlier searches measured. The allocation rules take part in the first search only. Between
    the ratios, the agent interpolates the policies; its predictions at them are measurements.

    The losses of proposals fall from ratio to ratio. So the best of all proposals, at which
    `ExpectedLoss` takes its gradients, is soon one of the present ratio.

    Args:
        inputs: their label budget holds for each search.
        labels: measured policies, the dense one first.
        trained: predictor that is fitted to them.
        settings: section `dynamic` of the config.
        ratios: of the curve that is measured in the end.
        provenance: what agent.json records of the model.
        clock: measures the time of each part.
        choose: measures the best policies of a search on the selection part.
    """
    low, high = settings.train
    knots = torch.linspace(low, high, settings.knots, dtype=torch.double).round(decimals=6)
    history: list[dict[str, float]] = []
    policies, losses = [inputs.space.dense], [(float(labels.nll[0]), 0.0)]
    here, start = inputs, None
    for ratio in knots.flip(0).tolist():
        found = choose(search(here, labels, trained, ratio, clock, start=start, history=history))
        measured = found.measured
        policies.insert(1, measured.kept[found.best].cpu())
        losses.insert(1, (found.nll, float(measured.std[found.best])))
        labels = labels.with_rows(measured.kept.cpu(), measured.measured.cpu(), PROPOSED)
        with clock("training the predictor"):
            trained = inputs.train(labels)
        here, start = replace(inputs, rules={}), measured.kept[found.best]
    mean, std = torch.tensor(losses).T
    agent = RatioAgent(
        inputs.space,
        torch.cat([knots.new_zeros(1), knots]),
        torch.stack(policies).double(),
        mean.contiguous(),
        std.contiguous(),
        dict(provenance),
    )
    with clock("measuring"):
        curve = measured_curve(inputs, agent, ratios)
    labels = labels.with_rows(curve.kept, curve.measured, PROPOSED)
    labels = labels.with_rows(curve.uniform, curve.uniform_measured, PROPOSED)
    return Learnt(agent, curve, history, trained, labels)
