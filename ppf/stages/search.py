"""search: rounds of an agent against the predictor, each ended by measuring its best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from hydra.utils import instantiate
from jaxtyping import Float, Int
from torch import Tensor

from ppf.agents import Agent, Report, Run
from ppf.labels.table import PROPOSED, Labels
from ppf.policy_search import Verification, run_search, verify, with_neighbours
from ppf.progress import Stopwatch, say
from ppf.stages.collect import measure
from ppf.stages.objective import checkpoint_of, objective_of, region_of
from ppf.stages.prepare import PruningContext
from ppf.stages.train import Trained, train


@dataclass(frozen=True)
class Found:
    """What a search found.

    Args:
        trained: the last round's predictor.
        measured: policies measured at this ratio in all rounds, uniform first; each prediction
            was made before the policy was measured.
        history: rows of the agent's metrics, over all rounds.
    """

    trained: Trained
    measured: Verification
    history: list[dict[str, float]]

    @property
    def kept(self) -> list[int]:
        """The best measured policy."""
        return self.measured.kept[self.measured.best].tolist()


def search(context: PruningContext, labels: Labels, clock: Stopwatch) -> Found:
    """Searches in rounds, at most `search.rounds`, in a trust region around uniform pruning.

    What a round measures joins the labels that the next predictor is fitted to; at most
    `search.label_budget` policies are measured in all, beside those of uniform pruning and rules.
    Where the intervals of what is measured hold, the region is widened. The search is over where
    they do, the best policy's prediction is right, and the last widening has brought no better one.

    Args:
        labels: of the sampler's policies, the dense one's first.
        clock: told the time of each part.
    """
    cfg = context.cfg.search
    agent: Agent = instantiate(context.cfg.agent)
    history: list[dict[str, float]] = []
    rounds: list[Verification] = []
    region = region_of(context)
    for number in range(cfg.rounds):
        with clock("training the predictor"):
            trained = train(context, labels, upstream=not rounds)
        objective = objective_of(context, trained, context.cfg.ratio, agent, radius=region.radius)
        say(
            f"Searching at ratio {context.cfg.ratio} with {type(agent).__name__},"
            f" round {number + 1} of {cfg.rounds}."
        )
        run = run_of(context, trained, history, number)
        with clock("searching on the predictor"):
            found = run_search(agent, objective, run, cfg.top_k)
        room = cfg.label_budget - _spent(rounds)
        each = cfg.neighbours if number + 1 < cfg.rounds else 0  # they teach the next predictor
        proposed = with_neighbours(objective, found, each, room, run.seed)
        with clock("measuring the best"):
            measure = partial(_measure, context)
            rounds.append(verify(proposed, objective, measure, context.fabric))
        kept, measured = rounds[-1].kept.cpu(), rounds[-1].measured.cpu()
        labels = labels.with_rows(kept, measured, PROPOSED)
        if number + 1 == cfg.rounds:
            break
        if _spent(rounds) >= cfg.label_budget:
            say(f"All {cfg.label_budget} labels of search.label_budget are spent.")
            break
        if region.exhausted(rounds[-1], Verification.merge(rounds).least):
            break
    return Found(trained, Verification.merge(rounds), history)


def _measure(context: PruningContext, kept: Int[Tensor, "n sites"]) -> Float[Tensor, " n"]:
    return measure(context, kept, PROPOSED).nll


def _spent(rounds: Sequence[Verification]) -> int:
    """Policies that the rounds proposed and measured."""
    return sum(int(verified.proposed.sum()) for verified in rounds)


def run_of(
    context: PruningContext, trained: Trained, history: list[dict[str, float]], number: int
) -> Run:
    """A round's run: its metrics join the history, and each round has a seed of its own."""
    seed = context.cfg.seed + number
    checkpoint = checkpoint_of(context, trained, seed)
    return Run(context.fabric, _reporter(context, history), seed, checkpoint)


def _reporter(context: PruningContext, history: list[dict[str, float]]) -> Report:
    """Logs an agent's metrics; steps go on from round to round."""
    first = int(history[-1]["step"]) + 1 if history else 0

    def report(step: int, metrics: Mapping[str, Tensor | float]) -> None:
        row = {name: float(value) for name, value in metrics.items()}
        context.fabric.log_dict(
            {f"search/{name}": value for name, value in row.items()}, first + step
        )
        history.append({"step": first + step, **row})

    return report
