"""Student and teacher of a recovery at one ratio: where they are from, and where the student goes.

The student is the pruned model, the teacher is the dense one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Fabric
from omegaconf import DictConfig, OmegaConf
from safetensors import safe_open

from ppf.artefacts import get_or_make, read_if_whole, signature
from ppf.evaluation import LogPerplexity
from ppf.export import Pruned, counted, read_description, smallest
from ppf.export.huggingface import HuggingFace
from ppf.llm.loading import LanguageModel, dtype_name, load, resolve_dtype
from ppf.policy_file import read_policy
from ppf.progress import say
from ppf.recovery.inputs import labelling_nll
from ppf.stages.prune import compensated


def pruned_folder(cfg: DictConfig, fabric: Fabric, record: dict[str, Any]) -> Path:
    """The folder that prune writes for the policy of a record, in float32; made once.

    Args:
        cfg: of recover.
    """
    refitted = cfg.sequential and {"windows": cfg.refit_windows}
    name = signature("pruned", record["signatures"]["labels"], record["kept"], refitted)
    folder = Path(cfg.paths.artefacts) / "pruned" / name

    def read(path: Path) -> Path:
        read_policy(path / "policy.json", cfg.trust_targets)
        read_description(path)
        for file in path.glob("*.safetensors"):
            with safe_open(file, "pt"):  # fails if the file is damaged
                pass
        return path

    if fabric.broadcast(fabric.is_global_zero and read_if_whole(folder, read)):
        say(f"Reusing the pruned model in {folder}.")
        return folder
    in_float32 = OmegaConf.create({**cfg, "dtype": "float32"})
    context, record = compensated(in_float32, fabric, record, HuggingFace())

    def make(draft: Path) -> None:
        model = Pruned.of(context.model.pruner)
        written = smallest(model, record)
        HuggingFace().write(written, draft, counted(record, model, written))

    return get_or_make(folder, read=read, make=make, ranks=fabric)


def load_teacher(config: DictConfig, dtype: torch.dtype, fabric: Fabric) -> LanguageModel:
    """The dense model of a policy.

    Args:
        config: that the policy was found with.
        dtype: number format of the computation.
    """
    model = DictConfig({**config.model, "dtype": dtype_name(dtype)})
    return load(model, config.paths.cache, device=fabric.device)


def write_recovered(
    cfg: DictConfig,
    student: Pruned,
    record: dict[str, Any],
    config: DictConfig,
    training: Mapping[str, Any],
    losses: Mapping[str, float],
) -> None:
    """Writes the trained model, with its policy and a model card, to `cfg.out`.

    Args:
        record: policy.json of the pruned model.
        config: that the policy was found with.
        training: how it was trained.
        losses: of the models dense, pruned and recovered on the validation part, nats per token,
            and `won_back`.
    """
    models = ("dense", "pruned", "recovered")
    scores = {name: LogPerplexity(losses[name]).record() for name in models}
    record["recovered"] = {**training, **scores, "won_back": losses["won_back"]}
    if known := record.get("exported"):
        # In the number format in which prune measured the other values of the model card.
        nll = labelling_nll(student.lm, config, getattr(torch, known["dtype"]))
        known["measured"]["recovered"] = LogPerplexity(nll).record()
        known["compensation"] = "recovered"
    model: Any = student.lm.model
    model.to(resolve_dtype(cfg.dtype))
    HuggingFace().write(student, Path(cfg.out), record)
