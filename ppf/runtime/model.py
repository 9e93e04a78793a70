"""A language model that is loaded once and pruned to any ratio on request."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from jaxtyping import Int
from lightning import Fabric
from omegaconf import DictConfig
from torch import Tensor

from ppf.conf import without_others
from ppf.overrides import quoted
from ppf.pruning import LivePruner
from ppf.runtime.decoding import decode_fast
from ppf.runtime.search_folder import Policies, read_search
from ppf.space import check_ratio


class DynamicModel:
    """A language model whose pruning ratio can be changed in milliseconds.

    The dense weights are in memory once, with each site's units sorted by importance. A policy then
    selects views of the first units, and compensated weights, which the bank computes at their
    first use. Consumers without compensated weights are rearranged in their own memory.

        model = DynamicModel.from_search("outputs/search/…")
        model.set_ratio(0.3)
        print(model.complete("The capital of France is", max_new_tokens=20))
        with model.at(0.5):
            print(model.complete("The capital of France is", max_new_tokens=20))

    Several threads may use one model. Each call holds a lock, and `at` holds it for its whole
    block, so that the ratio cannot change during another thread's generation. Direct use of
    `lm.model` is not protected.

    Attributes:
        policies: gives the policy for a ratio.
        ratios: ascending ratios to offer to users; an agent also has policies between them.
        name: the model's name for users; empty: none.
    """

    def __init__(
        self, pruner: LivePruner, policies: Policies, *, ratios: Sequence[float], name: str = ""
    ) -> None:
        self.pruner, self.lm, self.space = pruner, pruner.lm, pruner.space
        self.policies, self.ratios, self.name = policies, ratios, name
        self._lock = RLock()
        if self.lm.offloaded is None:
            decode_fast(self.lm.model)
            pruner.make_contiguous()

    @classmethod
    def from_search(cls, folder: str | Path, *overrides: str) -> "DynamicModel":
        """Loads the model of a search; it is dense at first.

        Args:
            folder: the folder of a run of search.py.
            overrides: strings that override `conf/runtime.yaml`, for example "bank.max_gib=8".

        Raises:
            PPFError: the folder contains no search, the model has changed since the search, or the
                policy quantises weights or belongs to a recovered model.
        """
        given = [f"search={quoted(folder)}", f"paths.run={quoted(folder)}", *overrides]
        with without_others(), initialize_config_module("ppf.conf", version_base="1.3"):
            cfg = compose("from_search", given)
        fabric = instantiate(cfg.fabric)
        fabric.launch()
        return cls.from_config(cfg, fabric)

    @classmethod
    def from_config(cls, cfg: DictConfig, fabric: Fabric) -> "DynamicModel":
        """Loads the model of the search `cfg.search`, with a launched Fabric."""
        context, policies, ratios = read_search(cfg, fabric)
        name = context.config.model.name
        return cls(context.model.pruner, policies, ratios=ratios, name=name)

    @property
    def ratio(self) -> float:
        """Share of the sites' parameters that the present policy removes.

        With budget=params it is the requested ratio, or above it by less than one unit.
        """
        return float(self.space.ratio(torch.tensor(self.pruner.kept)))

    @property
    def compensation(self) -> str:
        """Name of the compensation: that of its option in `conf/compensation`."""
        levels = self.pruner.bank.levels[0]
        if levels.factors is not None:
            return "least_squares" + ("_without_bias" if levels.biases is None else "")
        return "none" if levels.biases is None else "bias"

    def policy(self, ratio: float) -> list[int]:
        """Units that each site keeps at `ratio`; the model itself does not change.

        Raises:
            PPFError: the ratio is not in [0, 1), or the search has no policy for it.
        """
        check_ratio(ratio)
        return self.policies.policy(ratio) if ratio else self.space.dense.tolist()

    def set_ratio(self, ratio: float) -> None:
        """Prunes the model to `ratio`; 0 makes it dense. Raises PPFError as `policy`."""
        kept = self.policy(ratio)
        with self._lock:
            self.pruner.apply(kept)

    @contextmanager
    def at(self, ratio: float) -> Iterator["DynamicModel"]:
        """Prunes the model to `ratio` within a block, and restores its policy afterwards."""
        kept = self.policy(ratio)
        with self._lock, self.pruner.at(kept):
            yield self

    def generate(self, input_ids: Int[Tensor, "batch tokens"], **options: Any) -> Any:
        """Calls `generate` of transformers (`GenerationMixin`) at the present ratio.

        Args:
            options: arguments of that method. A KV cache among them must have been filled
                at this ratio.
        """
        model: Any = self.lm.model
        here = {k: v.to(model.device) if isinstance(v, Tensor) else v for k, v in options.items()}
        with self._lock, torch.inference_mode():
            return model.generate(input_ids.to(model.device), **here)

    def complete(self, prompt: str, **options: Any) -> str:
        """Generates text after a prompt, and returns it without the prompt.

        Args:
            options: arguments of `generate`, for example `max_new_tokens`.
        """
        tokens = self.lm.tokenizer(prompt, return_tensors="pt")
        output = self.generate(**tokens, **options)[0]
        # Some tokenizers drop the first space of what they decode.
        before, whole = (
            str(self.lm.tokenizer.decode(part, skip_special_tokens=True))
            for part in (output[: tokens["input_ids"].shape[1]], output)
        )
        return whole[len(before) :]
