"""Pruning the loaded model in place: any policy is a set of prefix views."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ppf.llm import Coupling, LanguageModel
from ppf.pruning.bank import Bank
from ppf.pruning.empty_block import EmptyBlock
from ppf.pruning.statistics import expand
from ppf.space import Space


class LivePruner:
    """Holds a model whose atoms lie in order of importance, and narrows it to policies.

    The weights are permuted in place once; after that a policy swaps views and bank entries, copies
    nothing, and the next policy undoes it exactly. `restore` gives the model back to the bit.

    Attributes:
        kept: the present policy.
        blocks: per coupling of the model, its block, in the model or (with nothing left) out of it.
    """

    def __init__(self, lm: LanguageModel, space: Space, bank: Bank) -> None:
        self.lm, self.space, self.bank = lm, space, bank
        self._coupling = lm.coupling_indices(space.sites)
        self.blocks = [getattr(c.parent, c.attribute) for c in lm.couplings]
        self._bypassed = [
            {name: getattr(c.parent, name) for name in c.bypassed} for c in lm.couplings
        ]
        self._dense = {
            module: (module.weight.data, module.bias.data if module.bias is not None else None)
            for coupling in lm.couplings
            for module in (*(p.linear for p in coupling.producers), coupling.consumer)
        }
        for coupling, order in zip(lm.couplings, bank.orders, strict=True):
            self._permute(coupling, order)
        self.kept = space.dense.tolist()
        self._corrected: set[int] = set()

    @property
    def atoms(self) -> list[int]:
        """Per coupling of the model, the atoms that are left."""
        atoms = [coupling.atoms for coupling in self.lm.couplings]
        for index, site, kept in zip(self._coupling, self.space.sites, self.kept, strict=True):
            atoms[index] = kept * site.atoms_per_unit
        return atoms

    @torch.no_grad()
    def apply(self, kept: Sequence[int]) -> None:
        """Narrows the model to a policy, touching only the sites that differ from the present one.

        Raises:
            PPFError: the policy does not fit the space.
        """
        kept = [int(k) for k in kept]
        self.space.check_policy(kept)
        for site, (now, then) in enumerate(zip(kept, self.kept, strict=True)):
            if now != then or site in self._corrected:
                self.narrow(site, now)

    @contextmanager
    def at(self, kept: Sequence[int]) -> Iterator[PreTrainedModel]:
        """The model under a policy, as it was before on leaving."""
        before = self.kept
        self.apply(kept)
        try:
            yield self.lm.model
        finally:
            self.apply(before)

    def restore(self) -> None:
        """Makes the model dense again, atoms in their first order; this pruner is then spent."""
        self.apply(self.space.dense.tolist())
        for coupling, order in zip(self.lm.couplings, self.bank.orders, strict=True):
            self._permute(coupling, order.argsort())

    @torch.no_grad()
    def narrow(self, index: int, kept: int) -> None:
        """Keeps `kept` units of one site, as the bank prepared it."""
        self._corrected.discard(index)
        self.kept = [*self.kept[:index], kept, *self.kept[index + 1 :]]
        site, levels = self.space.sites[index], self.bank.levels[index]
        coupling = self.lm.couplings[self._coupling[index]]
        atoms = kept * site.atoms_per_unit
        for producer in coupling.producers:
            weight, bias = self._dense[producer.linear]
            rows = atoms * producer.rows
            _set(producer.linear, weight[:rows], None if bias is None else bias[:rows])

        consumer = coupling.consumer
        weight, bias = self._dense[consumer]
        if levels.weights is not None and kept < site.units:
            weight = levels.weights[kept]
        else:
            weight = weight[:, : atoms * coupling.columns]
        if levels.biases is not None and kept < site.units:
            bias = levels.biases[kept] + (0 if bias is None else bias)
        _set(consumer, weight, bias)
        self._place(self._coupling[index], atoms)

    @torch.no_grad()
    def correct(self, index: int, weight: Tensor | None, bias: Tensor | None) -> None:
        """Adds to the weight and bias of one site's consumer, until it is narrowed again."""
        number, consumer = self._coupling[index], self.lm.couplings[self._coupling[index]].consumer
        total = consumer.weight.data if weight is None else consumer.weight + weight
        shift = None if consumer.bias is None else consumer.bias.data
        if bias is not None:
            shift = bias if shift is None else shift + bias
        dtype = consumer.weight.dtype
        _set(consumer, total.to(dtype), None if shift is None else shift.to(dtype))
        self._place(number, self.kept[index] * self.space.sites[index].atoms_per_unit)
        self._corrected.add(index)

    def _place(self, index: int, atoms: int) -> None:
        """Puts the block with `atoms` left, or what stands for it, where the layer calls it."""
        coupling, block = self.lm.couplings[index], self.blocks[index]
        if coupling.heads:
            setattr(block, coupling.heads, atoms)
        if not atoms:
            bias = coupling.consumer.bias
            block = EmptyBlock(coupling.layer, coupling.kind == "attention", bias)
        setattr(coupling.parent, coupling.attribute, block)
        for name, module in self._bypassed[index].items():
            setattr(coupling.parent, name, module if atoms else nn.Identity())

    def _permute(self, coupling: Coupling, order: Tensor) -> None:
        for producer in coupling.producers:
            weight, bias = self._dense[producer.linear]
            rows = expand(order, producer.rows).to(weight.device)
            weight.copy_(weight[rows])
            if bias is not None:
                bias.copy_(bias[rows])
        weight, _ = self._dense[coupling.consumer]
        weight.copy_(weight[:, expand(order, coupling.columns).to(weight.device)])


def _set(linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    linear.weight = nn.Parameter(weight, requires_grad=False)
    vector = None if bias is None else nn.Parameter(bias, requires_grad=False)
    linear.register_parameter("bias", vector)
    linear.out_features, linear.in_features = weight.shape
