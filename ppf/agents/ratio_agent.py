"""One agent for every ratio: it answers in milliseconds, without predictor or model."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from ppf.errors import PPFError
from ppf.space import Space, project

FORMAT = 1
FILE, WEIGHTS = "agent.json", "agent.safetensors"


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


def load_agent(path: str | Path) -> RatioAgent:
    """The agent that `search.py mode=dynamic` wrote.

    Args:
        path: its folder, or the agent.json in it.

    Raises:
        PPFError: there is none, or it is of another format.
    """
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PPFError(
            f"there is no agent at {path}: give a folder that `python search.py mode=dynamic`"
            " wrote."
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or "space" not in content:
        raise PPFError(
            f"{file} is no agent of format {FORMAT}: make it again with"
            " `python search.py mode=dynamic`."
        )
    space = Space.restore(content.pop("space"))
    return RatioAgent(space, **load_file(file.parent / content["weights"]), record=content)
