"""Folders of searches of the tiny model, for tests of what uses them."""

import json
from pathlib import Path

import torch
from lightning import Fabric
from omegaconf import DictConfig

from ppf.agents.ratio_agent import RatioAgent
from ppf.labels.context import PruningContext, prepare
from ppf.policy_file import by_site, policy_record, provenance
from ppf.space import uniform
from tests.articles import write_articles
from tests.composing import command_config
from tests.records import examples

QUICK = ["text.windows.calibration=2", "text.windows.labelling=1", "text.window=64"]


def write_search(folder: Path, cache: str, *overrides: str) -> tuple[DictConfig, PruningContext]:
    """Writes policy.json with the uniform policy at 0.3; artefacts lie in `folder` too."""
    text = write_articles(folder)
    paths = [f"paths.run={folder}", f"paths.artefacts={folder}/artefacts", f"text.path={text}"]
    given = ["model=tiny", f"paths.cache={cache}", *QUICK, *paths, *overrides]
    config = command_config("search", given)
    context = prepare(config, Fabric(accelerator="cpu", devices=1))
    kept = uniform(context.model.space, torch.tensor([0.3]))[0].tolist()
    numbers = examples.numbers(by_site(context.model.space, kept))
    record = policy_record(context, kept, numbers, predictor="0")
    (folder / "policy.json").write_text(json.dumps(record))
    return config, context


def write_agent(folder: Path, context: PruningContext, highest: float = 0.55) -> None:
    """Writes agent.json, whose policies are uniform; float32 would round a ratio of 0.55 up."""
    knots = torch.tensor([0.0, 0.1, highest], dtype=torch.double)
    kept = torch.cat([context.model.space.dense[None], uniform(context.model.space, knots[1:])])
    nats = torch.tensor([3.0, 3.2, 4.0])
    agent = RatioAgent(
        context.model.space, knots, kept.double(), nats, nats / 10, provenance(context)
    )
    agent.save(folder)
