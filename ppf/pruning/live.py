"""Prunes a loaded model in place: a policy selects leading rows and columns."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ppf.llm import Coupling, LanguageModel, Producer
from ppf.pruning.ahead import ahead
from ppf.pruning.bank import Bank
from ppf.pruning.columns import LeadingColumns
from ppf.pruning.empty_block import EmptyBlock
from ppf.pruning.order import Order
from ppf.pruning.rounding import BLOCK, BLOCK_BYTES, rounded
from ppf.records.values import NumberFormat
from ppf.space import Space

Types = Sequence[NumberFormat | None] | None
"""Number formats of all sites; None: no site is rounded."""


class LivePruner:
    """Applies policies to a loaded model.

    The constructor permutes the weights in place, so that atoms are in order of importance. A
    policy selects leading rows and columns, as views where possible, and levels of the bank. Where
    KV groups keep some of their query heads, these rows are copied. The
    permuted weights keep their values, so the next policy undoes it exactly. `restore` recovers the
    original weights bit for bit.

    Args:
        lm: the dense model.
        space: the space of the policies.
        bank: the levels of the space's sites.

    Attributes:
        kept: the current policy.
        types: number formats that each site's matrices are rounded to; None or "f16": they are not
            rounded, and nothing is copied.
        blocks: for each coupling of the model, its original block. An `EmptyBlock` replaces it in
            the model while it has no units.
    """

    def __init__(self, lm: LanguageModel, space: Space, bank: Bank) -> None:
        self.lm, self.space, self.bank = lm, space, bank
        self._dense_parameters = lm.model.num_parameters()
        self._coupling_indices = lm.coupling_indices(space.sites)
        self.blocks = [c.block for c in lm.couplings]
        self._bypassed = [
            {name: getattr(c.parent, name) for name in c.bypassed} for c in lm.couplings
        ]
        self._dense = {
            module: (module.weight.data, module.bias.data if module.bias is not None else None)
            for coupling in lm.couplings
            for module in coupling.linears
        }
        for coupling, order in zip(lm.couplings, bank.orders, strict=True):
            self._permute(coupling, order)
        self._places = {
            linear: (index, producer)
            for index, coupling in enumerate(lm.couplings)
            for linear, producer in _projections(coupling)
        }
        self._shapes = [(coupling.atoms, coupling.queries) for coupling in lm.couplings]
        self.kept = space.dense.tolist()
        self.types: list[NumberFormat | None] = [None] * len(space)
        self._refitted: set[int] = set()
        self._columns: dict[nn.Linear, LeadingColumns] = {}

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Atoms that each coupling of the model keeps, and query heads of each (1 in FFNs)."""
        return list(self._shapes)

    def part(self, linear: nn.Linear, tensor: Tensor, dim: int) -> Tensor:
        """The rows or columns of a projection that the present policy keeps.

        Args:
            tensor: with the dense projection's rows or columns, in order of importance.
            dim: 0: of rows; 1: of columns.
        """
        index, producer = self._places[linear]
        if (producer is None) != (dim == 1):  # these never change
            return tensor
        coupling, (atoms, queries) = self.lm.couplings[index], self._shapes[index]
        kept = tensor.unflatten(dim, (coupling.atoms, -1)).narrow(dim, 0, atoms)
        if queries < coupling.queries and (producer is None or producer.by_query):
            size = kept.shape[dim + 1] // coupling.queries
            kept = kept.narrow(dim + 1, 0, queries * size)
        return kept.flatten(dim, dim + 1)

    def make_contiguous(self) -> None:
        """Makes the consumers contiguous in memory, now and at every later policy.

        Products with vectors become faster, and a change of the policy takes some milliseconds
        more. `padded` and `dense_weight` must not be used afterwards.
        """
        consumers = [coupling.consumer for coupling in self.lm.couplings]
        self._columns = self._columns or {x: LeadingColumns(self._dense[x][0]) for x in consumers}

    @property
    def bytes_of_rounding(self) -> int:
        """Bytes that rounded matrices save in a file, compared with 16 bits for each weight."""
        saved = 0
        for index, type in zip(self._coupling_indices, self.types, strict=True):
            coupling = self.lm.couplings[index]
            weights = sum(linear.weight.numel() for linear in coupling.linears)
            if type is not None:
                saved += weights * 2 - weights * BLOCK_BYTES[type] // BLOCK
        return saved

    @property
    def bytes_saved(self) -> float:
        """Share of the sites' bytes that a GGUF file saves, compared with 16 bits."""
        left = whole = 0
        for index, type in zip(self._coupling_indices, self.types, strict=True):
            coupling = self.lm.couplings[index]
            for linear in coupling.linears:
                left += linear.weight.numel() * BLOCK_BYTES[type or "f16"]
                whole += self._dense[linear][0].numel() * BLOCK_BYTES["f16"]
        return 1 - left / whole

    def parameters(self, kept: Sequence[int]) -> int:
        """Number of parameters of the model at a policy, with the biases of the compensation."""
        count = self._dense_parameters - int(self.space.removed(torch.tensor(kept)))
        for index, units, site, levels in zip(
            self._coupling_indices, kept, self.space.sites, self.bank.levels, strict=True
        ):
            consumer = self.lm.couplings[index].consumer
            if (
                units < site.units
                and levels.biases is not None
                and self._dense[consumer][1] is None
            ):
                count += consumer.out_features
            if not units:  # norms within and in front of the block are removed too
                rest = (self.blocks[index], *self._bypassed[index].values())
                modules = (module for part in rest for module in part.modules())
                others = (module for module in modules if module not in self._dense)
                count -= sum(p.numel() for m in others for p in m.parameters(recurse=False))
        return count

    @torch.no_grad()
    def apply(self, kept: Sequence[int], types: Types = None) -> None:
        """Applies a policy. Only sites that differ from the current policy are changed.

        Args:
            kept: number of units that each site keeps.
            types: number formats that each site's matrices are rounded to; None: no site's are.

        Raises:
            PPFError: the policy does not fit the space.
        """
        kept = [int(k) for k in kept]
        self.space.check_policy(kept)
        new = zip(kept, types or [None] * len(kept), strict=True)
        old = zip(self.kept, self.types, strict=True)
        for site, (wanted, present) in enumerate(zip(new, old, strict=True)):
            if wanted != present or site in self._refitted:
                self.narrow(site, *wanted)

    @torch.no_grad()
    def apply_by_layer(self, kept: Sequence[int], types: Types = None) -> Iterator[int]:
        """Applies a policy one decoder layer at a time, so that each can be run before the next.

        On a GPU, the next layer's weights are computed, or read from disk, while a layer runs.

        Yields:
            Each layer, when its sites are set.

        Raises:
            PPFError: the policy does not fit the space.
        """
        kept = [int(k) for k in kept]
        self.space.check_policy(kept)
        formats = types or [None] * len(kept)
        sites: list[list[int]] = [[] for _ in self.lm.adapter.layers(self.lm.model)]
        for index, site in enumerate(self.space.sites):
            same = (kept[index], formats[index]) == (self.kept[index], self.types[index])
            if not same or index in self._refitted:
                sites[site.layer].append(index)

        def fetch(layer: int) -> list[Tensor | None]:
            return [self._compensated(index, kept[index]) for index in sites[layer]]

        devices = [self.lm.device_of(layer) for layer in range(len(sites))]
        for layer, weights in enumerate(ahead(fetch, devices)):
            for index, weight in zip(sites[layer], weights, strict=True):
                self._narrow(index, kept[index], formats[index], weight)
            yield layer

    @contextmanager
    def at(self, kept: Sequence[int], types: Types = None) -> Iterator[PreTrainedModel]:
        """The model under a policy; on exit, the policy from before is applied again."""
        before = self.kept, self.types
        self.apply(kept, types)
        try:
            yield self.lm.model
        finally:
            self.apply(*before)

    @contextmanager
    def padded(self, kept: Sequence[int]) -> Iterator[PreTrainedModel]:
        """The model under a policy, at the dense model's widths: pruned columns are zeros.

        Its losses are those of the narrowed model, and its gradients reach the pruned units too.
        On exit, the dense policy is applied.
        """
        self.space.check_policy(kept)
        dense = self.space.dense.tolist()
        self.apply(dense)
        pruned = [site for site, units in enumerate(dense) if kept[site] < units]
        try:
            for site in pruned:
                self.narrow(site, int(kept[site]))
                number = self._coupling_indices[site]
                coupling, (atoms, _) = self.lm.couplings[number], self._shapes[number]
                consumer = coupling.consumer
                narrow, bias = consumer.weight, consumer.bias
                every = torch.arange(self._dense[consumer][0].shape[1])
                columns = self.part(consumer, every[None], 1)[0]
                self.narrow(site, dense[site])
                wide = torch.zeros_like(consumer.weight)
                wide[:, columns] = narrow
                _set(consumer, wide, bias)
                if coupling.kind == "experts":
                    self.blocks[number].num_experts = atoms
            yield self.lm.model
        finally:
            for site in pruned:
                self.narrow(site, dense[site])

    def dense_weight(self, coupling: int) -> Tensor:
        """The dense weight of a coupling's consumer, with columns in order of importance."""
        return self._dense[self.lm.couplings[coupling].consumer][0]

    def reset(self) -> None:
        """Undoes all changes that `refit` made to the present policy's weights."""
        for site, (kept, type) in enumerate(zip(self.kept, self.types, strict=True)):
            self.narrow(site, kept, type)

    def restore(self) -> None:
        """Recovers the original model. This pruner must not be used afterwards."""
        self.apply(self.space.dense.tolist())
        for coupling, order in zip(self.lm.couplings, self.bank.orders, strict=True):
            self._permute(coupling, order.inverse)

    @torch.no_grad()
    def narrow(self, index: int, kept: int, type: NumberFormat | None = None) -> None:
        """Sets one site to a level of the bank.

        Args:
            index: position of the site in the space.
            kept: number of units that it keeps.
            type: number format that its matrices are rounded to; None: they are not rounded.
        """
        self._narrow(index, kept, type, self._compensated(index, kept))

    def _compensated(self, index: int, kept: int) -> Tensor | None:
        number = self._coupling_indices[index]
        return self.bank.weight(index, kept, self.dense_weight(number), self.bank.orders[number])

    def _narrow(
        self, index: int, kept: int, type: NumberFormat | None, compensated: Tensor | None
    ) -> None:
        self._refitted.discard(index)
        self.types = [*self.types[:index], type, *self.types[index + 1 :]]
        self.kept = [*self.kept[:index], kept, *self.kept[index + 1 :]]
        site, levels = self.space.sites[index], self.bank.levels[index]
        number = self._coupling_indices[index]
        coupling = self.lm.couplings[number]
        dense = kept * site.atoms_per_unit, coupling.queries
        self._shapes[number] = atoms, queries = site.heads[kept] if site.heads and kept else dense
        for linear in (producer.linear for producer in coupling.producers):
            weight, bias = self._dense[linear]
            kept_bias = None if bias is None else self.part(linear, bias, 0)
            _set(linear, _round(self.part(linear, weight, 0), type), kept_bias)

        consumer = coupling.consumer
        weight, bias = self._dense[consumer]
        if compensated is None:
            leading = self._columns.get(consumer)
            if leading is None:
                weight = self.part(consumer, weight, 1)
            elif queries == coupling.queries:
                weight = leading(atoms * coupling.columns)
            else:
                weight = self.part(consumer, leading(weight.shape[1]), 1).contiguous()
        else:
            weight = compensated.to(weight.device)  # not the GPU if the layers are offloaded
        if levels.biases is not None and kept < site.units:
            shift = levels.biases[kept]  # the dense bias may be offloaded
            bias = shift if bias is None else shift + bias.to(shift.device)
        _set(consumer, _round(weight, type), bias)
        self._install(number)

    @torch.no_grad()
    def refit(self, index: int, weight: Tensor | None, bias: Tensor | None) -> None:
        """Adds to the weight and bias of one site's consumer, until `narrow` resets the site.

        Args:
            index: position of the site in the space.
            weight, bias: changes; None: no change.
        """
        number = self._coupling_indices[index]
        consumer = self.lm.couplings[number].consumer
        device, dtype = consumer.weight.device, consumer.weight.dtype
        total = consumer.weight.data if weight is None else consumer.weight + weight.to(device)
        shift = None if consumer.bias is None else consumer.bias.data
        if bias is not None:
            shift = bias.to(device) if shift is None else shift + bias.to(shift.device)
        total = _round(total.to(dtype), self.types[index])
        _set(consumer, total, None if shift is None else shift.to(dtype))
        self._install(number)
        self._refitted.add(index)

    @torch.no_grad()
    def correct(self, index: int, change: Tensor) -> None:
        """Adds W · change to each producer's weight W of a site, until `narrow` resets the site."""
        coupling = self.lm.couplings[self._coupling_indices[index]]
        for linear in dict.fromkeys(producer.linear for producer in coupling.producers):
            weight = self.part(linear, self._dense[linear][0], 0)
            added = weight.float() @ change.to(weight.device, torch.float)
            changed = (weight.float() + added).to(weight.dtype)
            bias = None if linear.bias is None else linear.bias.data
            _set(linear, _round(changed, self.types[index]), bias)
        self._refitted.add(index)

    def weights(self, index: int) -> dict[str, Tensor]:
        """The present weights and biases of a site's projections, for `set_weights`."""
        linears = self.lm.couplings[self._coupling_indices[index]].linears
        named = (item for i, x in enumerate(linears) for item in x.named_parameters(prefix=f"{i}"))
        return {name: parameter.data for name, parameter in named}

    @torch.no_grad()
    def set_weights(self, index: int, weights: Mapping[str, Tensor]) -> None:
        """Sets weights and biases of a site's projections, until `narrow` resets the site."""
        number = self._coupling_indices[index]
        for i, linear in enumerate(self.lm.couplings[number].linears):
            weight, bias = weights[f"{i}.weight"], weights.get(f"{i}.bias")
            own = linear.weight  # its device and number format
            _set(linear, weight.to(own), None if bias is None else bias.to(own))
        self._install(number)
        self._refitted.add(index)

    def _install(self, index: int) -> None:
        """Sets the block of a coupling in its layer: the original one, or an `EmptyBlock`."""
        coupling, block = self.lm.couplings[index], self.blocks[index]
        atoms, queries = self._shapes[index]
        if coupling.heads:
            setattr(block, coupling.heads, atoms)
        if coupling.ratio:
            setattr(block, coupling.ratio, queries)
        if not atoms:
            bias = coupling.consumer.bias
            block = EmptyBlock(coupling.layer, coupling.kind == "attention", bias)
        coupling.parent.set_submodule(coupling.attribute, block)
        for name, module in self._bypassed[index].items():
            setattr(coupling.parent, name, module if atoms else nn.Identity())

    def _permute(self, coupling: Coupling, order: Order) -> None:
        for producer in coupling.producers:
            weight, bias = self._dense[producer.linear]
            rows = order.rows(producer.rows, by_query=producer.by_query).to(weight.device)
            weight.copy_(weight[rows])
            if bias is not None:
                bias.copy_(bias[rows])
        weight, _ = self._dense[coupling.consumer]
        weight.copy_(weight[:, order.rows(coupling.columns, by_query=True).to(weight.device)])


def _projections(coupling: Coupling) -> Iterator[tuple[nn.Linear, Producer | None]]:
    """The projections of a block; the consumer is not a producer."""
    yield from ((producer.linear, producer) for producer in coupling.producers)
    yield coupling.consumer, None


def _round(weight: Tensor, type: NumberFormat | None) -> Tensor:
    return weight if type in (None, "f16") else rounded(weight, type)


def _set(linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    linear.weight = nn.Parameter(weight, requires_grad=False)
    vector = None if bias is None else nn.Parameter(bias, requires_grad=False)
    linear.register_parameter("bias", vector)
    linear.out_features, linear.in_features = weight.shape
