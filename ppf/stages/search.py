"""search: rounds in which an agent searches on the predictor, and the best are measured."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ppf.agents import Candidates
from ppf.errors import PPFError
from ppf.labels.table import PROPOSED, Labels
from ppf.predictor.base import is_exact
from ppf.progress import Stopwatch, say
from ppf.search import Verification, run_search, verify, with_neighbours
from ppf.search.experts import moved
from ppf.search.intervals import calibrated
from ppf.search.selection import Selection
from ppf.search.verify import CANDIDATE
from ppf.space import new_policies, project
from ppf.stages.fit import Trained
from ppf.stages.search_inputs import SearchInputs


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Args:
        trained: the last round's predictor.
        measured: policies measured at this ratio in all rounds, uniform first; each prediction
            was made before the policy was measured.
        history: rows of the agent's metrics, over all rounds.
        eligible: whether each policy can be the result.
        selection: the best policies on both parts; None: not measured on the selection part.
    """

    trained: Trained
    measured: Verification
    history: list[dict[str, float]]
    eligible: Bool[Tensor, " n"]
    selection: Selection | None = None

    @property
    def best(self) -> int:
        """Row of the eligible policy with the lowest loss on labelling and selection part together.

        The labelling part alone has few windows, so its minimum is often due to chance. Choosing
        among a few policies biases the loss on the selection part by far less than its standard
        error.
        """
        if self.selection:
            return self.selection.best
        losses = self.measured.measured.nan_to_num(torch.inf).tolist()
        return min(self.eligible.nonzero()[:, 0].tolist(), key=losses.__getitem__)

    @property
    def kept(self) -> list[int]:
        """The policy that was found."""
        return self.measured.kept[self.best].tolist()

    @property
    def nll(self) -> float:
        """Its measured log-perplexity on the labelling part, nats per token."""
        return float(self.measured.measured[self.best])


def search(
    inputs: SearchInputs,
    labels: Labels,
    trained: Trained,
    ratio: float,
    clock: Stopwatch,
    *,
    start: Int[Tensor, " sites"] | None = None,
    measure_start: bool = False,
    history: list[dict[str, float]] | None = None,
) -> Found:
    """Searches in rounds, at most `search.rounds`, in a trust region around uniform pruning.

    The measured policies of a round join the labels that the next predictor is fitted to. At most
    `search.label_budget` policies are measured in all, not counting uniform pruning and the rules;
    `search.top_k` of them are reserved for the last round.
    Intervals are calibrated on the proposals of earlier rounds. The trust region is widened after a
    round with enough measurements inside their intervals. The search ends if, in addition, the
    round's best proposal was predicted well and the last widening brought no better one.
    The agent's `role` says what differs for an allocation rule.

    Args:
        labels: measured policies, the dense one first.
        trained: predictor that is fitted to them.
        ratio: share of the budget's cost to save.
        clock: measures the time of each part.
        start: a policy from which the first round also starts, scaled to the ratio; None: none.
        measure_start: whether the first round also measures it; it counts as a proposal.
        history: metrics of earlier searches, to which those of this one are added; None: there were
            none.
    """
    settings, agent = inputs.settings, inputs.agent
    history = [] if history is None else history
    earlier = int(history[-1]["round"]) if history else 0
    rounds: list[Verification] = []
    region = inputs.region()
    count = min(settings.rounds, agent.role.rounds)
    for number in range(count):
        left = settings.label_budget - _spent(rounds)
        last = number + 1 == count or left <= settings.top_k
        objective = inputs.objective(trained, region.radius, ratio, ratio)
        say(
            f"Searching at ratio {ratio} with {type(agent).__name__},"
            f" round {number + 1} of at most {count}."
        )
        with clock("searching on the predictor"):
            known = objective.baselines()  # they are measured in any case
            given = known[:0]
            if rounds:
                known = Verification.merge(rounds).by_loss()
                objective = replace(objective, measured=known[:_STARTS])
            elif start is not None:
                wanted, ratios = moved(objective, start), objective.ratios(1)
                objective = replace(objective, measured=objective.project(wanted, ratios))
                if measure_start:  # also outside of the trust region
                    given = new_policies(project(objective.space, wanted, ratios), known)
            run = inputs.run(trained, objective.measured, history, number, earlier)
            apart = not is_exact(trained.predictor)
            found = run_search(agent, objective, run, settings.top_k, known, apart=apart)
        each = 0 if last else settings.neighbours  # they teach the next predictor
        room = left if last else left - settings.top_k
        if len(given):
            found = Candidates.merge(found.best(room - 1), objective.candidates(given))
        proposed = with_neighbours(objective, found, known, each, room, run.seed)
        with clock("measuring the best"):
            rounds.append(verify(proposed, objective, inputs.measure, inputs.fabric))
        if last:
            break
        if region.update(calibrated(rounds)[-1], Verification.merge(rounds).least):
            break
        kept, measured = rounds[-1].kept.cpu(), rounds[-1].measured.cpu()
        labels = labels.with_rows(kept, measured, PROPOSED)
        with clock("training the predictor"):
            trained = inputs.train(labels)
    merged = Verification.merge(calibrated(rounds))
    own = torch.tensor([CANDIDATE in names for names in merged.names])
    only_own = agent.role.decides or settings.proposals_only
    eligible = own if only_own else torch.ones_like(own)
    if not eligible.any():
        raise PPFError(
            f"{type(agent).__name__} proposed no new policy at ratio={ratio}: give"
            " search.proposals_only=false."
        )
    return Found(trained, merged, history, eligible)


_STARTS = 16  # best measured policies from which a round's search starts


def _spent(rounds: Sequence[Verification]) -> int:
    """Policies that the rounds proposed and measured."""
    return sum(int(verified.proposed.sum()) for verified in rounds)
