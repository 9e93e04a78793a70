"""The dense model, resident once, at whatever pruning ratio is asked for."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any
from uuid import uuid4

import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from jaxtyping import Int
from lightning import Fabric
from omegaconf import DictConfig
from torch import Tensor

from ppf.errors import PPFError
from ppf.evaluation.perplexity import pieces_nll, sliding
from ppf.llm.windows import leading_tokens
from ppf.pruning import LivePruner
from ppf.runtime.caches import CacheGuard
from ppf.runtime.policies import Policies
from ppf.runtime.search_folder import read_search
from ppf.space import check_ratio


class DynamicModel:
    """A language model that takes any pruning ratio in milliseconds.

    The weights are held once, dense, each site's units in order of importance, so that a policy is
    a set of prefix views with the compensation that belongs to them; nothing is copied.

        model = DynamicModel.from_search("outputs/search/…")
        model.set_ratio(0.3)
        print(model.complete("The capital of France is", max_new_tokens=20))
        with model.at(0.5):
            print(model.perplexity(text))

    Threads may share it. Every call holds one lock, and `at` holds it for its whole block: no ratio
    changes under a generation of another thread, which waits until it is over. Work on `lm.model`
    itself is not guarded.

    Attributes:
        policies: who answers a ratio with a policy.
        ratios: ascending ratios to offer; an agent answers those between them too.
        window: tokens that `perplexity` looks at together, unless told.
    """

    def __init__(
        self, pruner: LivePruner, policies: Policies, *, ratios: Sequence[float], window: int
    ) -> None:
        self.pruner, self.lm, self.space = pruner, pruner.lm, pruner.space
        self.policies, self.ratios, self.window = policies, ratios, window
        self._lock, self._running = RLock(), False
        name = uuid4().hex
        CacheGuard(self.lm.model, lambda: (name, *pruner.kept))

    @classmethod
    def from_search(cls, folder: str | Path, *overrides: str) -> "DynamicModel":
        """The model of a search run's folder, dense at first.

        Args:
            overrides: of `conf/runtime.yaml`, as on a command line: `"bank.max_gib=8"`.

        Raises:
            PPFError: the folder holds no search, or the model is not that of the search any more.
        """
        given = [f"search={folder}", f"paths.run={folder}", *overrides]
        with initialize_config_module("ppf.conf", version_base="1.3"):
            cfg = compose("runtime", given)
        fabric = instantiate(cfg.fabric)
        fabric.launch()
        return cls.from_config(cfg, fabric)

    @classmethod
    def from_config(cls, cfg: DictConfig, fabric: Fabric) -> "DynamicModel":
        """The same, from a composed config and a started Fabric."""
        context, (policies, ratios) = read_search(cfg, fabric)
        return cls(context.pruner, policies, ratios=ratios, window=context.text.window)

    @property
    def ratio(self) -> float:
        """The pruning ratio really reached: at least the one asked for, and barely more."""
        return float(self.space.ratio(torch.tensor(self.pruner.kept)))

    @property
    def compensation(self) -> str:
        """What corrects the pruned sites' outputs: "least_squares", "bias" or "none"."""
        levels = self.pruner.bank.levels[0]
        if levels.weights is not None:
            return "least_squares"
        return "none" if levels.biases is None else "bias"

    @property
    def kept(self) -> list[int]:
        """Units that stay, per site."""
        return self.pruner.kept

    def policy(self, ratio: float) -> list[int]:
        """The policy that `set_ratio` would apply.

        Raises:
            PPFError: the ratio is not in [0, 1), or the search has no policy for it.
        """
        check_ratio(ratio)
        return self.policies.policy(ratio) if ratio else self.space.dense.tolist()

    def set_ratio(self, ratio: float) -> None:
        """Prunes the model to the policy for `ratio`; 0 makes it dense.

        Raises:
            PPFError: as `policy`, or this thread's own generation is still running.
        """
        kept = self.policy(ratio)
        with self._lock:
            self._refuse_while_running()
            self.pruner.apply(kept)

    @contextmanager
    def at(self, ratio: float) -> Iterator["DynamicModel"]:
        """This model at `ratio`, and at its present policy again on leaving."""
        kept = self.policy(ratio)
        with self._lock:
            self._refuse_while_running()
            with self.pruner.at(kept):
                yield self

    def generate(self, input_ids: Int[Tensor, "batch tokens"], **options: Any) -> Any:
        """`transformers.GenerationMixin.generate` at the present ratio.

        Raises:
            PPFError: a KV cache among the options was filled at another ratio.
        """
        with self._in_use() as model:
            return model.generate(input_ids.to(model.device), **options)

    def complete(self, prompt: str, **options: Any) -> str:
        """The text that `generate` adds to a prompt."""
        tokens = self.lm.tokenizer(prompt, return_tensors="pt")
        output = self.generate(**tokens, **options)
        added = output[0, tokens["input_ids"].shape[1] :]
        return str(self.lm.tokenizer.decode(added, skip_special_tokens=True))

    def perplexity(
        self, text: str, *, window: int | None = None, stride: int | None = None, batch: int = 4
    ) -> float:
        """Perplexity of a text at the present ratio.

        Every window begins with BOS if the tokenizer adds one to a text.

        Args:
            window: tokens of a window, BOS among them; None: as many as the search's windows had.
            stride: tokens from one window's start to the next; None: windows do not overlap.
            batch: windows scored at a time.
        """
        window, tokenizer = window or self.window, self.lm.tokenizer
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        tokens, leading = torch.tensor(ids, dtype=torch.long), leading_tokens(tokenizer)
        pieces = sliding(tokens, window=window, stride=stride or window, leading=leading)
        with self._in_use() as model:
            nll = pieces_nll(model, pieces, batch=batch)
        return float(torch.tensor(nll, dtype=torch.double).exp())

    @contextmanager
    def _in_use(self) -> Iterator[Any]:
        with self._lock, torch.inference_mode():
            self._refuse_while_running()
            self._running = True
            try:
                yield self.lm.model
            finally:
                self._running = False

    def _refuse_while_running(self) -> None:
        """The lock keeps other threads out, not what a generation itself calls."""
        if self._running:
            raise PPFError("a generation is running: change the ratio or generate again after it.")
