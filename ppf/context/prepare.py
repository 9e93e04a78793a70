"""Prepares what stages with a model need: model, text, space, order, bank."""

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch
from hydra.utils import instantiate
from jaxtyping import Float, Int
from lightning import Fabric
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from transformers import PreTrainedModel

from ppf.artefacts import Artefacts, signature
from ppf.context.observed import Observed, reads_spectra
from ppf.context.plan import refuse_what_does_not_fit
from ppf.context.signatures import Signatures, plain, recorded, signatures
from ppf.errors import PPFError
from ppf.evaluation.size import parameters
from ppf.labels.labeller import Labeller
from ppf.llm import LanguageModel, Text, load
from ppf.llm.loading import resolve_dtype
from ppf.llm.text import Part, build_text
from ppf.pruning import (
    Bank,
    Compensation,
    LivePruner,
    SiteFeatures,
    Traits,
    loss_changes,
    order_atoms,
    retained_importance,
    sensitivity,
)
from ppf.pruning.live import Types
from ppf.pruning.statistics import read_tensors, write_tensors
from ppf.space import Space

Choose = Callable[[LanguageModel, Space], Compensation]


_PARTS: tuple[Part, ...] = ("calibration", "labelling")  # that stages up to the search read
_STRIDE = 4  # of calibration windows that expected losses are computed on


@dataclass(frozen=True)
class PruningContext:
    """A loaded model that can be pruned to any policy of a space.

    Args:
        lm: the model, whose weights are in order of importance.
        text: its three parts.
        space: the space of the policies.
        pruner: applies policies to the model.
        compensation: how the pruner's bank was made.
        retained: share of a site's importance in the k units that stay, [site, k].
        traits: of the dense model.
        parameters: of the dense model; tied weights count once.
        config: the sections that determine the signatures, as policy.json records them.
        signatures: names of the artefacts.
        artefacts: where they lie.
        passes: number of tokens read in addition to those of labels, by purpose. A backward pass
            counts as two forward passes. Passes that artefacts save are counted too.
    """

    lm: LanguageModel
    text: Text
    space: Space
    pruner: LivePruner
    compensation: Compensation
    retained: Float[Tensor, "sites levels"]
    traits: Traits
    parameters: int
    config: DictConfig
    signatures: Signatures
    artefacts: Artefacts
    passes: dict[Hashable, int] = field(default_factory=dict, kw_only=True)

    @property
    def token_passes(self) -> int:
        """Number of tokens read for measurements and gradients of policies (see `passes`)."""
        labeller = self.labeller
        return len(labeller.used) * labeller.windows.numel() + sum(self.passes.values())

    @cached_property
    def labeller(self) -> Labeller:
        """Measures policies on the labelling part."""
        return self.labeller_of(self.text.tokens("labelling", self.lm.tokenizer))

    def labeller_of(self, windows: Int[Tensor, "windows window"]) -> Labeller:
        """Measures policies on some windows, with the settings of the labels."""
        labels = self.config.labels
        return Labeller(
            self.lm,
            self,
            windows,
            batch=labels.batch,
            context=labels.context,
            kl_top_k=labels.kl_top_k,
        )

    @cached_property
    def features(self) -> SiteFeatures:
        """Features of the sites; expected losses are computed if they are missing."""
        losses = self.observed(
            "sensitivity",
            signature("sensitivity", self.signatures.bank),
            lambda windows: {"losses": sensitivity(self.pruner, windows, seed=0)},
        )["losses"]
        energy = torch.stack([self.traits.energy[site.name] for site in self.space.sites])
        errors = self.pruner.bank.errors
        return SiteFeatures(self.space, errors, self.retained, energy, losses, self.traits)

    def changes(
        self, kept: Sequence[int], windows: int, times: int, cap: float
    ) -> Float[Tensor, "sites levels"]:
        """Estimated changes of a policy's loss (`ppf.pruning.loss_changes`), nats per token.

        Args:
            windows: of the calibration part in one set, a random choice that depends on the policy.
            times: number of sets; the part may have fewer.
        """
        name = signature("changes", self.signatures.bank, list(kept), windows, cap)
        text = self.text.tokens("calibration", self.lm.tokenizer)
        order = torch.randperm(len(text), generator=torch.Generator().manual_seed(int(name, 16)))

        def make(chosen: Tensor) -> dict[str, Tensor]:
            return {"changes": loss_changes(self.pruner, kept, text[chosen], cap)}

        sets = order.split(windows)[:times]
        self.passes[name] = 3 * sum(map(len, sets)) * text.shape[1]
        found = [
            _stored(self.artefacts, "changes", f"{name}-{number}", partial(make, chosen))["changes"]
            for number, chosen in enumerate(sets)
        ]
        weights = torch.tensor([float(len(chosen)) for chosen in sets])
        return (torch.stack(found) * (weights / weights.sum())[:, None, None]).sum(0)

    @property
    def label_name(self) -> str:
        """Name of the labels of policies of `space`."""
        return self.signatures.labels

    def decode(self, kept: Sequence[int]) -> tuple[Sequence[int], Types]:
        """A policy of `space` as the pruner takes it: kept units, and number formats."""
        return kept, None

    def units(self, kept: Int[Tensor, "n sites"]) -> Int[Tensor, "n sites"]:
        """The units that policies of `space` keep."""
        return torch.tensor([self.decode(row)[0] for row in kept.tolist()])

    def apply(self, kept: Sequence[int]) -> None:
        """Applies a policy of `space` to the model."""
        self.pruner.apply(*self.decode(kept))

    def apply_by_layer(self, kept: Sequence[int]) -> Iterator[int]:
        """Applies a policy of `space` one layer at a time; see `LivePruner.apply_by_layer`."""
        return self.pruner.apply_by_layer(*self.decode(kept))

    def at(self, kept: Sequence[int]) -> AbstractContextManager[PreTrainedModel]:
        """The model under a policy of `space`."""
        return self.pruner.at(*self.decode(kept))

    def observed(
        self, kind: str, name: str, observe: Callable[[Tensor], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """What is seen of the dense model on some calibration windows."""

        def make() -> dict[str, Tensor]:
            windows = self.text.tokens("calibration", self.lm.tokenizer)[::_STRIDE]
            with self.pruner.at(self.space.dense.tolist()):
                return observe(windows)

        return _stored(self.artefacts, kind, name, make)


def prepare(
    cfg: DictConfig, fabric: Fabric, *, dtype: str | None = None, choose: Choose | None = None
) -> PruningContext:
    """Loads the model and everything for pruning it; makes missing statistics, orders and banks.

    Args:
        cfg: with model, text, space, importance, compensation, labels, paths and bank.
        dtype: load the weights in another dtype than `model.dtype`, under the same order and
            statistics.
        choose: the compensation, once model and space are known; None: what `cfg` names.

    Raises:
        PPFError: the model is missing or damaged, the text is too short, or the machine too small.
    """
    if not choose:
        refuse_what_does_not_fit(cfg, fabric.device)
    config, names = recorded(cfg, fabric.device), signatures(cfg, fabric.device)
    text, observed = observe(cfg, fabric)
    lm, scores = observed.lm, observed.scores()
    if dtype and resolve_dtype(dtype, fabric.device) != lm.dtype:
        model = OmegaConf.create({**plain(config.model), "dtype": dtype})
        del lm, observed.lm  # two models need not be in memory at once
        lm = observed.lm = load(model, cfg.paths.cache, device=fabric.device)
    space: Space = instantiate(config.space, lm.adapter.prunables(lm.model))
    compensation = choose(lm, space) if choose else instantiate(config.compensation)
    bank = Bank.build(
        lm,
        space,
        order_atoms(scores),
        observed.statistics,
        compensation,
        max_gib=cfg.bank.max_gib,
        folder=Path(cfg.paths.artefacts) / "bank" / names.bank / str(lm.dtype),
        ranks=fabric,
    )
    return PruningContext(
        lm,
        text,
        space,
        LivePruner(lm, space, bank),
        compensation,
        retained_importance(lm, space, scores),
        observed.traits(),
        parameters(lm.model),
        config,
        names,
        Artefacts(Path(cfg.paths.artefacts), fabric),
    )


def observe(cfg: DictConfig, fabric: Fabric) -> tuple[Text, Observed]:
    """Loads text and model, and makes missing moments, importance scores and traits.

    Args:
        cfg: as for `prepare`.

    Raises:
        PPFError: the model is missing or damaged, the text is too short, or several processes
            would divide the model over the same GPUs.
    """
    if cfg.model.get("device_map") and fabric.world_size > 1:
        raise PPFError(
            f"model.device_map=auto gives all GPUs of a machine to one process, and there are"
            f" {fabric.world_size}: give fabric.devices=1, or model.device_map=null."
        )
    config, names = recorded(cfg, fabric.device), signatures(cfg, fabric.device)
    text = build_text(config.text, cfg.paths.cache)
    if config.text.path:
        _ = text.parts  # damaged files are refused before the model is loaded
    lm = load(config.model, cfg.paths.cache, device=fabric.device, window=text.window)
    windows, _ = (text.tokens(part, lm.tokenizer) for part in _PARTS)  # too little is refused
    fields = [field.name for field in dataclasses.fields(Traits)]
    observed = Observed(
        lm,
        windows,
        instantiate(config.importance),
        Artefacts(Path(cfg.paths.artefacts), fabric),
        statistics=names.statistics,
        order=names.order,
        traits=signature("traits", names.statistics, fields),
        spectra=reads_spectra(cfg),
    )
    observed.make()
    return text, observed


def _stored(
    artefacts: Artefacts, kind: str, name: str, make: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Tensors of an artefact, which is made if it is missing."""
    return artefacts.get_or_make(
        kind,
        f"{name}.safetensors",
        read=read_tensors,
        make=lambda draft: write_tensors(draft, make()),
    )
