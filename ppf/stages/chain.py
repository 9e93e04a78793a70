"""search, mode=chain: one agent for every ratio, from a search at each of several ratios."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from omegaconf import DictConfig

from ppf.agents.ratio_agent import RatioAgent
from ppf.errors import PPFError
from ppf.labels.table import PROPOSED, Labels
from ppf.progress import Stopwatch
from ppf.search.experts import searched_ratios
from ppf.stages.dynamic import Course, FoundAgent, with_curve
from ppf.stages.fit import Trained
from ppf.stages.search import Found, search
from ppf.stages.search_inputs import SearchInputs


def chain(
    inputs: SearchInputs,
    labels: Labels,
    trained: Trained,
    settings: DictConfig,
    ratios: Sequence[float],
    provenance: Mapping[str, Any],
    clock: Stopwatch,
    choose: Callable[[Found], Found],
) -> FoundAgent:
    """Searches at `dynamic.knots` ratios of the interval `dynamic.train`, the highest first.

    Each search also starts from the policy found at the ratio before, scaled to its own. Its
    predictor is fitted to everything measured so far. Only the first search measures the allocation
    rules, and starts from them. The agent interpolates between the policies found. At the searched
    ratios it predicts their measured losses.

    `ExpectedLoss` computes gradients at the measured policy of lowest loss. Ratios fall from search
    to search, so after the first round of a search this is usually one of its own policies.

    Args:
        inputs: of each search; `search.label_budget` limits each search alone.
        labels: measured policies, the dense one first.
        trained: predictor that is fitted to them.
        settings: section `dynamic` of the config.
        ratios: of the curve that is measured in the end.
        provenance: what agent.json records of the model.
        clock: measures the time of each part.
        choose: returns a search's result with its best policies measured on the selection part.

    Raises:
        PPFError: the policy found at a ratio has no finite loss.
    """
    knots = searched_ratios(settings.train, settings.knots)
    history: list[dict[str, float]] = []
    found: list[Found] = []
    for ratio in knots.flip(0).tolist():
        here, start = inputs, None
        if found:
            here, start = replace(inputs, rules={}), torch.tensor(found[-1].kept)
            with clock("training the predictor"):
                trained = inputs.train(labels)
        given = here, labels, trained, ratio, clock
        latest = choose(search(*given, start=start, history=history))
        if not math.isfinite(latest.nll):
            raise PPFError(f"no policy at ratio={ratio} has a finite loss: lower dynamic.train.")
        known = latest.measured
        labels = labels.with_rows(known.kept.cpu(), known.measured.cpu(), PROPOSED)
        found.append(latest)
    rows = [(inputs.space.dense.tolist(), float(labels.nll[0]), 0.0)]
    rows += [(f.kept, f.nll, float(f.measured.std[f.best])) for f in reversed(found)]
    kept, mean, std = zip(*rows, strict=True)
    agent = RatioAgent(
        inputs.space,
        torch.cat([knots.new_zeros(1), knots]),
        torch.tensor(kept, dtype=torch.double),
        torch.tensor(mean),
        torch.tensor(std),
        dict(provenance),
    )
    return with_curve(inputs, agent, ratios, labels, Course(history, latest.trained, False), clock)
