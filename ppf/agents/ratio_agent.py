"""One agent for every ratio: it answers in milliseconds, without predictor or model."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ppf.errors import PPFError
from ppf.records import read
from ppf.records.agent import FORMAT, WEIGHTS, AgentRecord
from ppf.space import Space, project

FILE = "agent.json"


@dataclass(frozen=True)
class RatioAgent:
    """Widths of every site as functions of the ratio, linear between knots, the first one dense.

    Args:
        space: with its budget, which answers meet exactly.
        knots: ratios, ascending from 0.
        widths: units to keep, per knot and site.
        mean: predicted log-perplexity at the knots, nats per token.
        std: its standard deviation.
        record: what else a reader may want: config and signatures.
    """

    space: Space
    knots: Float[Tensor, " knots"]
    widths: Float[Tensor, "knots sites"]
    mean: Float[Tensor, " knots"]
    std: Float[Tensor, " knots"]
    record: Mapping[str, Any]

    def policy(self, ratio: float) -> list[int]:
        """Units kept at every site, in the space's order.

        Raises:
            PPFError: the ratio is outside of what the agent has learnt.
        """
        asked = torch.tensor([self._checked(ratio)], dtype=torch.double)
        return project(self.space, self._between(self.widths, ratio)[None], asked)[0].tolist()

    def predicted(self, ratio: float) -> tuple[float, float]:
        """Log-perplexity on the labelling text as the predictor had it, and its deviation, nats."""
        self._checked(ratio)
        return float(self._between(self.mean, ratio)), float(self._between(self.std, ratio))

    def save(self, folder: Path) -> Path:
        """Writes agent.json and the weights beside it; returns the former."""
        names = ("knots", "widths", "mean", "std")
        save_file({name: getattr(self, name).contiguous() for name in names}, folder / WEIGHTS)
        content = {
            "format": FORMAT,
            **self.record,
            "space": self.space.describe(),
            "units": {site.name: site.units for site in self.space.sites},
            "ratios": [0.0, float(self.knots[-1])],
            "weights": WEIGHTS,
        }
        path = folder / FILE
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return path

    def _checked(self, ratio: float) -> float:
        if not 0 <= ratio <= float(self.knots[-1]):
            raise PPFError(
                f"ratio={ratio} is outside of what the agent has learnt:"
                f" give 0 ≤ ratio ≤ {float(self.knots[-1]):.3g}."
            )
        return ratio

    def _between(self, values: Float[Tensor, "knots *rest"], ratio: float) -> Tensor:
        above = int(torch.searchsorted(self.knots, ratio).clamp(1, len(self.knots) - 1))
        low, high = self.knots[above - 1], self.knots[above]
        return torch.lerp(values[above - 1], values[above], (ratio - low) / (high - low))


def load_agent(path: str | Path, trusted: Collection[str] = ()) -> RatioAgent:
    """The agent that `search.py mode=dynamic` wrote; its files may come from a stranger.

    Args:
        path: its folder, or the agent.json in it.
        trusted: classes of your own that agent.json may name.

    Raises:
        PPFError: there is none, or a file does not fit its schema.
    """
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    record = read(file, AgentRecord, _REMEDY, trusted)
    space, weights = Space.restore(record["space"]), file.with_name(WEIGHTS)
    try:
        tensors = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise PPFError(f"{weights} cannot be read: {_REMEDY}.") from error
    if not _sound(space, tensors):
        raise PPFError(f"{weights} does not fit {file}: {_REMEDY}.")
    return RatioAgent(space, **tensors, record=record)


def _sound(space: Space, tensors: Mapping[str, Tensor]) -> bool:
    """Whether shapes agree, knots ascend from 0, and widths lie between 0 and a site's units."""
    count = tensors["knots"].numel() if "knots" in tensors else 0
    shapes = {"knots": (count,), "widths": (count, len(space)), "mean": (count,), "std": (count,)}
    if count < 2 or {name: tuple(tensor.shape) for name, tensor in tensors.items()} != shapes:
        return False
    if not all(x.is_floating_point() and x.isfinite().all() for x in tensors.values()):
        return False
    knots, widths = tensors["knots"], tensors["widths"]
    ascending = knots[0] == 0 and knots[-1] < 1 and (knots.diff() > 0).all()
    return bool(ascending and ((widths >= 0) & (widths <= space.units)).all())


_REMEDY = "give a folder that `python search.py mode=dynamic` wrote"
