"""An agent for all ratios, which gives a policy in milliseconds without predictor or model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ppf.agents.agent_file import AGENT, FORMAT, WEIGHTS, AgentRecord
from ppf.artefacts import draft, write_json
from ppf.errors import PPFError
from ppf.records import read
from ppf.space import Space, project


@dataclass(frozen=True)
class RatioAgent:
    """Interpolates expert policies linearly over the ratio, and projects to the budget.

    Ratios below 0 and above the highest knot are refused (PPFError).

    Args:
        space: sites, with the budget that every policy meets.
        knots: ratios of the experts, ascending from 0.
        widths: units that each site keeps at each knot; the first row is dense.
        mean: predicted or measured log-perplexity at the knots, nats per token.
        std: standard deviation of the prediction at the knots (before a measurement), nats per
            token.
        record: contents of agent.json, with config and signatures; empty before it is written.
    """

    space: Space
    knots: Float[Tensor, " knots"]
    widths: Float[Tensor, "knots sites"]
    mean: Float[Tensor, " knots"]
    std: Float[Tensor, " knots"]
    record: Mapping[str, Any] = field(default_factory=dict)

    def policy(self, ratio: float) -> list[int]:
        """Units that each site keeps, in the order of the space."""
        ratios = torch.tensor([self._checked(ratio)], dtype=torch.double)
        return project(self.space, self._interpolated(self.widths, ratio)[None], ratios)[0].tolist()

    def predicted(self, ratio: float) -> tuple[float, float]:
        """Predicted log-perplexity and its standard deviation, nats per token."""
        self._checked(ratio)
        mean, std = (self._interpolated(values, ratio) for values in (self.mean, self.std))
        return float(mean), float(std)

    def check_sites(self, space: Space) -> None:
        """Raises PPFError if the agent's policies are not for a model with this space."""
        own, other = self.space.units_by_name, space.units_by_name
        if [*own.items()] != [*other.items()]:  # policies list the sites in this order
            raise PPFError("agent.json has other sites than the model: search again.")

    def save(self, folder: Path) -> Path:
        """Writes agent.json and a file of weights; returns the path of agent.json."""
        names = ("knots", "widths", "mean", "std")
        with draft(folder / WEIGHTS) as file:
            save_file({name: getattr(self, name).contiguous() for name in names}, file)
        content = {
            "format": FORMAT,
            **self.record,
            "space": self.space.describe(),
            "units": self.space.units_by_name,
            "ratios": [0.0, float(self.knots[-1])],
            "weights": WEIGHTS,
        }
        path = folder / AGENT
        write_json(path, content)
        return path

    def _checked(self, ratio: float) -> float:
        if not 0 <= ratio <= float(self.knots[-1]):
            raise PPFError(
                f"the agent was not trained for ratio={ratio}:"
                f" give 0 ≤ ratio ≤ {float(self.knots[-1]):.3g}."
            )
        return ratio

    def _interpolated(self, values: Float[Tensor, "knots *rest"], ratio: float) -> Tensor:
        above = int(torch.searchsorted(self.knots, ratio).clamp(1, len(self.knots) - 1))
        low, high = self.knots[above - 1], self.knots[above]
        return torch.lerp(values[above - 1], values[above], (ratio - low) / (high - low))


def load_agent(path: str | Path, trusted: Sequence[str] = ()) -> RatioAgent:
    """Loads an agent that `search.py mode=dynamic|chain` wrote; strangers' files are safe to load.

    Args:
        path: folder of the search, or its agent.json.
        trusted: your own classes that agent.json may name.

    Raises:
        PPFError: there is no agent, or a file does not fit its schema.
    """
    file = Path(path) if Path(path).is_file() else Path(path) / AGENT
    record = read(file, AgentRecord, _REMEDY, trusted)
    space, weights = Space.restore(record["space"]), file.with_name(WEIGHTS)
    try:
        tensors = load_file(weights)
    except (OSError, SafetensorError):
        tensors = {}
    if not _sound(space, tensors):
        raise PPFError(f"{weights} cannot be read, or does not fit {file}: {_REMEDY}.")
    return RatioAgent(space, **tensors, record=record)


def _sound(space: Space, tensors: Mapping[str, Tensor]) -> bool:
    """Whether shapes fit, knots ascend from 0, and all widths are from 0 to the site's units."""
    count = tensors["knots"].numel() if "knots" in tensors else 0
    shapes = {"knots": (count,), "widths": (count, len(space)), "mean": (count,), "std": (count,)}
    if count < 2 or {name: tuple(tensor.shape) for name, tensor in tensors.items()} != shapes:
        return False
    if not all(x.dtype in _DTYPES and x.isfinite().all() for x in tensors.values()):
        return False
    knots, widths = tensors["knots"], tensors["widths"]
    ascending = knots[0] == 0 and knots[-1] < 1 and (knots.diff() > 0).all()
    return bool(ascending and ((widths >= 0) & (widths <= space.units)).all())


_DTYPES = (torch.float32, torch.float64)
_REMEDY = "give the folder of a search with mode=dynamic|chain"
