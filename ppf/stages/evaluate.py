"""evaluate: test perplexity, size, speed and tasks, of a policy or of folders."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import Fabric
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ppf.artefacts import write_json
from ppf.errors import PPFError
from ppf.evaluation import (
    Evaluation,
    ModelResult,
    Piece,
    Tasks,
    parameters,
    pieces_loss,
    sliding,
    weight_bytes,
)
from ppf.export import load_folder, read_description
from ppf.identity import warn_of_shared_documents
from ppf.labels.compensating import keep_better
from ppf.llm import check_head
from ppf.llm.loading import check_window, dtype_name, local_folder, resolve_dtype
from ppf.policy_file import policy_config, prepared, read_policy, refuse_recovered, types_of
from ppf.progress import say
from ppf.records.run import Outcome
from ppf.report.evaluation import report_evaluation
from ppf.stages.lineage import folders, used
from ppf.text import Text, build_text

ONE_PROCESS = True
