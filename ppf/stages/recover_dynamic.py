"""recover, search=FOLDER: one set of adapters for every ratio of a dynamic search."""

import copy
import shutil
from pathlib import Path

import torch
from lightning import Fabric
from omegaconf import DictConfig
from torch.utils.data import TensorDataset

from ppf.agents.ratio_agent import load_agent
from ppf.artefacts import write_json
from ppf.conf import plain
from ppf.errors import PPFError
from ppf.evaluation.perplexity import mean_nll
from ppf.policy_file import policy_config
from ppf.pruning.elastic import TRAINING, Adapters
from ppf.records.agent import AGENT, WEIGHTS, agent_folder
from ppf.recovery.curve import Trace
from ppf.recovery.elastic import ElasticModule
from ppf.recovery.fit import fit
from ppf.recovery.inputs import (
    RecoveryText,
    check_batch,
    in_float32,
    losses_of,
    machine_of,
    recovered_of,
    run_of,
    test_windows,
    with_enough_memory,
)
from ppf.recovery.results import Recovered, RecoveryScore
from ppf.recovery.settings import RecoverySettings
from ppf.runtime.resident import origin, resident
from ppf.text.training import training_name


def recover_dynamic(cfg: DictConfig, fabric: Fabric) -> Recovered:
    """Trains adapters for all ratios of the search in `cfg.search`.

    Writes the agent and the adapters to `cfg.out`, which can then replace the search's folder.

    Raises:
        PPFError: there is no dynamic search, or its model or the text cannot be used.
    """
    check_batch(cfg, fabric)
    agent = load_agent(cfg.search, cfg.trust_targets)
    if fabric.device.type != "cpu" and agent.record["config"]["model"].get("offload"):
        raise PPFError("recovery with search= cannot train offloaded weights: give fabric=cpu.")
    given, text = in_float32(cfg), RecoveryText(cfg, policy_config(agent.record, cfg))
    new = {"adapted": False, "as_trained": False}
    context = resident(given, fabric, agent.record, **new, check=text.check)
    lm, pruner, machine = context.model.lm, context.model.pruner, machine_of(cfg, fabric)
    agent.check_sites(pruner.space)
    training, validation = text.windows(lm)
    parts = [validation, *test_windows(cfg, lm)]

    def measure(kept: list[int]) -> list[float]:
        with pruner.at(kept) as model, machine.autocast(model):
            return [mean_nll(model, part, batch=cfg.recovery.micro_batch) for part in parts]

    policies = {ratio: agent.policy(ratio) for ratio in cfg.ratios}
    dense = measure(context.model.space.dense.tolist())
    pruned = {ratio: measure(kept) for ratio, kept in policies.items()}
    elastic, highest = cfg.elastic, float(agent.knots[-1])
    torch.manual_seed(cfg.seed)
    adapters = Adapters(pruner, elastic.rank, elastic.alpha / elastic.rank)
    untrained = copy.deepcopy(adapters.state_dict())

    def train(settings: RecoverySettings) -> Trace:
        # An attempt before may have taken too much memory.
        adapters.to(lm.device).load_state_dict(untrained)
        ratios = list(cfg.ratios)
        determined = (context.signatures.labels, origin(context), agent.record["ratios"], ratios)
        experts = agent.knots.tolist(), agent.widths.tolist(), agent.space.prices
        run = run_of(text, machine, settings, "elastic", determined, experts, plain(elastic))
        module = ElasticModule(
            adapters,
            pruner,
            agent.policy,
            losses_of(cfg),
            ratios=(min(_LOWEST, highest), highest),
            validated=ratios,
            draws=elastic.draws,
            seed=cfg.seed,
            optimization=run.optimization(elastic.lr),
        )
        return fit(module, TensorDataset(training), TensorDataset(validation), run)

    fitted = with_enough_memory(cfg, fabric, train)
    measured = [
        (ratio, zip(dense, pruned[ratio], measure(kept), strict=True))
        for ratio, kept in policies.items()
    ]
    rows = [[RecoveryScore(ratio, *each) for each in scores] for ratio, scores in measured]
    scores, *test = (list(part) for part in zip(*rows, strict=True))
    found = recovered_of(fitted, scores, test[0] if test else [])
    if fabric.is_global_zero:
        _write(cfg, adapters, origin(context), found)
    return found


def _write(
    cfg: DictConfig,
    adapters: Adapters,
    origin: dict[str, str],
    found: Recovered,
) -> None:
    out, search = Path(cfg.out), agent_folder(cfg.search)
    out.mkdir(parents=True, exist_ok=True)
    for name in (AGENT, WEIGHTS):
        shutil.copy(search / name, out)
    adapters.save(out, origin)
    training = {
        "tokens": found.tokens,
        "minutes": round(found.minutes, 2),
        "text": training_name(cfg.text),
    }
    write_json(out / TRAINING, training)
    results, test = ([score.record() for score in part] for part in (found.scores, found.test))
    summary = training | {"part": "validation", "results": results, "test": test}
    write_json(Path(cfg.paths.run) / "summary.json", summary)


_LOWEST = 0.01  # ratio; the adapters are off only under the dense policy
