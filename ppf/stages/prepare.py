"""What every stage that touches the model needs: model, text, space, order, bank."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hydra.utils import instantiate
from jaxtyping import Float
from lightning import Fabric
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file
from torch import Tensor

from ppf.evaluation.size import parameters
from ppf.labels.labeller import Labeller
from ppf.llm import LanguageModel, Text, load
from ppf.llm.loading import resolve_dtype
from ppf.llm.text import build_text
from ppf.progress import say
from ppf.pruning import (
    Bank,
    Compensation,
    Evidence,
    LivePruner,
    Statistics,
    Traits,
    collect_statistics,
    collect_traits,
    order_atoms,
    retained_importance,
    score_atoms,
    sensitivity,
)
from ppf.pruning.statistics import write_tensors
from ppf.space import Space
from ppf.stages.artefacts import model_identity, plain, signature, text_identity

Choose = Callable[[LanguageModel, Space], Compensation]


_STRIDE = 4  # of calibration windows: layers' traits are means over far fewer numbers


@dataclass(frozen=True)
class Signatures:
    """Names of the artefacts of one config."""

    statistics: str
    order: str
    bank: str
    labels: str


@dataclass
class PruningContext:
    """A loaded model, ready to be narrowed to any policy of the space."""

    cfg: DictConfig
    fabric: Fabric
    lm: LanguageModel
    text: Text
    space: Space
    pruner: LivePruner
    retained: Float[Tensor, "sites levels"]
    """Share of a site's importance in the k units that stay, [site, k]."""
    signatures: Signatures
    parameters: int
    """Of the dense model; what is tied counts once."""

    @property
    def bank(self) -> Bank:
        return self.pruner.bank

    @cached_property
    def labeller(self) -> Labeller:
        windows = self.text.tokens("labelling", self.lm.tokenizer)
        labels = self.cfg.labels
        return Labeller(
            self.lm,
            self.pruner,
            windows,
            batch=labels.batch,
            context=labels.context,
            kl_top_k=labels.kl_top_k,
        )

    @cached_property
    def evidence(self) -> Evidence:
        """What allocation rules know; the dense model's traits are made where they lack."""
        fields = [field.name for field in dataclasses.fields(Traits)]
        traits = self._observed(
            "traits",
            signature(self.signatures.statistics, fields),
            lambda windows: collect_traits(self.lm, windows).tensors(),
        )
        return Evidence(self.space, self.bank.errors, self.retained, Traits.from_tensors(traits))

    @cached_property
    def sensitivity(self) -> Float[Tensor, "sites levels"]:
        """Expected loss of cuts of single sites, nats per token; made where it lacks."""
        observed = self._observed(
            "sensitivity",
            self.signatures.bank,
            lambda windows: {"losses": sensitivity(self.pruner, windows, seed=0)},
        )
        return observed["losses"]

    def _observed(
        self, what: str, name: str, observe: Callable[[Tensor], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """What is seen of the dense model on some calibration windows; made where it lacks."""
        file = Path(self.cfg.paths.artefacts) / what / f"{name}.safetensors"
        if not file.is_file():
            windows = self.text.tokens("calibration", self.lm.tokenizer)[::_STRIDE]
            with self.pruner.at(self.space.dense.tolist()):
                write_tensors(file, observe(windows))
        return load_file(file)


def signatures(cfg: DictConfig) -> Signatures:
    """Needs no model: a hash of the parts of the config that matter for each artefact."""
    dtype = str(resolve_dtype(cfg.model.dtype))
    statistics = signature(model_identity(cfg.model, dtype), text_identity(cfg.text, "calibration"))
    order = signature(statistics, plain(cfg.importance))
    labelling = text_identity(cfg.text, "labelling")
    bank = signature(order, plain(cfg.space), plain(cfg.compensation))
    labels = signature(bank, labelling, cfg.labels.context, cfg.labels.kl_top_k)
    return Signatures(statistics, order, bank, labels)


def prepare(
    cfg: DictConfig, fabric: Fabric, *, dtype: str | None = None, choose: Choose | None = None
) -> PruningContext:
    """Loads the model and all that pruning it needs; statistics and order are made where they lack.

    Args:
        cfg: with model, text, space, importance, compensation, labels, paths.
        dtype: load the weights in another dtype than `model.dtype`, under the same order and
            statistics.
        choose: the compensation, once model and space are known; None: what `cfg` names.
    """
    cfg = cfg.copy()  # records made from it name the dtype, whatever `auto` means elsewhere
    cfg.model.dtype = str(resolve_dtype(cfg.model.dtype)).removeprefix("torch.")
    names, artefacts = signatures(cfg), Path(cfg.paths.artefacts)
    text = build_text(cfg.text, cfg.paths.cache)
    importance_file = artefacts / "importance" / f"{names.order}.safetensors"
    statistics_file = artefacts / "statistics" / f"{names.statistics}.safetensors"

    lm = load(cfg.model, cfg.paths.cache, device=fabric.device)
    if not statistics_file.is_file():
        windows = text.tokens("calibration", lm.tokenizer)
        say(f"No statistics of this model and text yet: calibrating on {windows.numel()} tokens.")
        write_tensors(statistics_file, collect_statistics(lm, windows).tensors())
    statistics = Statistics.from_tensors(load_file(statistics_file))
    if not importance_file.is_file():
        windows = text.tokens("calibration", lm.tokenizer)
        scores = score_atoms(lm, instantiate(cfg.importance), statistics, windows)
        write_tensors(importance_file, {f"{i:04}": score for i, score in enumerate(scores)})
    scores = [score for _, score in sorted(load_file(importance_file).items())]

    if dtype and resolve_dtype(dtype) != lm.dtype:
        model = OmegaConf.create({**plain(cfg.model), "dtype": dtype})
        lm = load(model, cfg.paths.cache, device=fabric.device)
    space: Space = instantiate(cfg.space, lm.adapter.prunables(lm.model))
    bank = Bank.build(
        lm,
        space,
        order_atoms(scores),
        statistics,
        choose(lm, space) if choose else instantiate(cfg.compensation),
        max_gib=cfg.bank.max_gib,
        folder=artefacts / "bank" / names.bank,
    )
    pruner, retained = LivePruner(lm, space, bank), retained_importance(lm, space, scores)
    return PruningContext(
        cfg, fabric, lm, text, space, pruner, retained, names, parameters(lm.model)
    )
