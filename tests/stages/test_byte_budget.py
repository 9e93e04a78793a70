"""Searches under a budget of bytes on the tiny model, whose FFNs have six units of 32 channels."""

import copy
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from lightning import Fabric
from omegaconf import DictConfig

from ppf.conf import read_option
from ppf.errors import PPFError
from ppf.labels.context import PruningContext, prepare
from ppf.labels.labelling import Labelling
from ppf.llm.shapes import skeleton
from ppf.policy_file import described, refuse_types
from ppf.pruning.options import check_blocks
from ppf.space import uniform
from ppf.stages.budgets import priced, saved
from ppf.stages.byte_budget import _weight, check_bytes, in_bytes
from tests.articles import write_articles
from tests.composing import command_config

Prepared = tuple[DictConfig, PruningContext]
BYTES = ("budget=bytes", "rules=bytes", "agent=evolution")
SMALL = ("space=mlp", "space.channel_multiple=32", "text.windows.calibration=4",
         "text.windows.labelling=2", "text.window=64")  # fmt: skip


def config(folder: Path, cache: str, *overrides: str) -> DictConfig:
    text = write_articles(folder)
    paths = (f"paths.artefacts={folder}/artefacts", f"paths.cache={cache}", f"paths.run={folder}")
    return command_config("search", ["model=tiny", f"text.path={text}", *BYTES, *paths, *overrides])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, cache: str) -> Prepared:
    cfg = config(tmp_path_factory.mktemp("bytes"), cache, *SMALL)
    return cfg, prepare(cfg, Fabric(accelerator="cpu", devices=1))


def test_policies_are_measured_rounded_and_described_by_units(prepared: Prepared) -> None:
    cfg, units = prepared
    context = in_bytes(units, cfg)
    levels = uniform(context.model.space, torch.tensor([0.85]).double())[0].tolist()
    kept, types = context.model.decode(levels)
    assert {"f16"} != set(types) and kept != units.model.space.dense.tolist()
    with units.model.pruner.at(kept, types):
        expected = units.labelling.present_nll()
    measured = context.labelling.labeller.score(levels)
    assert measured == pytest.approx(expected, rel=1e-5)
    with units.model.pruner.at(kept):
        assert abs(units.labelling.present_nll() - expected) > 1e-4
    names = [site.name for site in units.model.space.sites]
    policy = described(context, levels)
    assert policy == {"kept": dict(zip(names, kept, strict=True)),
                      "types": dict(zip(names, types, strict=True))}  # fmt: skip
    assert described(units, kept) == {"kept": policy["kept"]}
    with pytest.raises(PPFError, match="export=gguf"):
        refuse_types(policy, "a training")
    refuse_types(described(units, kept), "a training")
    assert context.labelling.name != units.labelling.name and context.signatures == units.signatures


def test_budgets_count_what_policies_keep(prepared: Prepared) -> None:
    cfg, units = prepared
    context = in_bytes(units, cfg)
    assert priced(context, cfg.budget) is context.model.space
    levels = uniform(context.model.space, torch.tensor([0.6]).double())
    kept, types = context.model.decode(levels[0].tolist())
    sizes = {"f16": 2, "q8_0": 34 / 32, "q5_0": 22 / 32, "q4_0": 18 / 32}
    left = sum(k * 32 * 3 * 64 * sizes[t] for k, t in zip(kept, types, strict=True))
    whole = 4 * 192 * 3 * 64 * 2
    assert float(saved(context, cfg.budget, levels)) == pytest.approx(1 - left / whole)
    assert float(saved(context, read_option("budget", "params"), levels)) == pytest.approx(
        1 - sum(kept) / 24
    )
    assert context.sites.features.losses.shape == (4, 6 * 32 + 1)


def test_rounding_is_weighed_against_pruning_of_the_same_expected_loss(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, units = prepared
    losses, dense = units.sites.features.losses, units.model.space.dense.tolist()
    rounding = losses[:, 3:4].expand(4, 7)  # as if half of the units of each site were gone
    measured, policies = iter([3.0, 3.1, 3.4]), []

    def measure(labelling: Labelling) -> float:
        pruner = labelling.model.pruner
        policies.append((pruner.kept, set(pruner.types)))
        return next(measured)

    monkeypatch.setattr(Labelling, "present_nll", measure)
    weight = _weight(units.labelling, units.sites.features, rounding)
    assert weight.tolist() == pytest.approx([0.25], rel=1e-5)
    pruned, _ = policies[2]
    assert policies == [(dense, {None}), (dense, {"q4_0"}), (pruned, {None})]
    expected = float(losses[range(4), pruned].sum())
    assert expected == pytest.approx(float(rounding[:, 0].sum()), rel=0.3)


def test_a_ratio_that_rounding_alone_cannot_reach_is_refused(prepared: Prepared) -> None:
    cfg, units = copy.deepcopy(prepared[0]), prepared[1]
    cfg.budget.cost.prune, cfg.ratio = False, 0.7
    assert in_bytes(units, cfg) is not units
    cfg.ratio = 0.75
    with pytest.raises(PPFError, match="ratio=0.718 or less"):
        in_bytes(units, cfg)


def test_rows_that_do_not_divide_into_blocks_are_refused(prepared: Prepared) -> None:
    cfg, units = prepared
    model, adapter = skeleton(cfg.model)
    units_of = [coupling.prunable for coupling in adapter.couplings(model)]
    width = instantiate(read_option("space", "width"), units_of, query_heads=False)
    with pytest.raises(PPFError, match="row length of 0.attention"):
        check_blocks(units.model.lm, width)


def test_what_would_count_units_is_refused(tmp_path: Path, cache: str) -> None:
    check_bytes(config(tmp_path, cache))
    check_bytes(config(tmp_path, cache, "budget=params", "rules=all", "agent=gradient"))
    for override in ("mode=dynamic", "agent=gradient"):
        with pytest.raises(PPFError, match="give agent=evolution rules=bytes"):
            check_bytes(config(tmp_path, cache, override))
