"""Trains the models of this study on the Python source of installed packages.

    python experiments/models/make.py outputs/models [NAMES, by default all]

The model NAME is written to outputs/models/NAME. Its `training.json` has the validation loss, and
that of a bigram model. The same command resumes a killed training from its last checkpoint.

No training document is a module of the standard library (`text=python_source`), or shares 13
consecutive words with one.
"""

import hashlib
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from ppf.artefacts import get_or_make, write_json
from ppf.conf import read_option
from ppf.llm.loading import resolve_dtype
from ppf.text.parts import build_text
from ppf.text.training import without_overlap

PACKAGES = (
    *("accelerate", "datasets", "gensim", "gpytorch", "lightning", "matplotlib", "networkx"),
    *("nltk", "numpy", "optuna", "pandas", "peft", "scipy", "sklearn", "sqlalchemy", "sympy"),
    *("torch", "torchmetrics", "torchrl", "transformers"),
)
CHARACTERS = 24_000_000  # of all documents, before those like the standard library are left out
LONGEST = 100_000  # characters of a document; longer ones are mostly tables
HELD_OUT = 50  # every 50th document is for validation
VOCABULARY, WINDOW, BATCH, STEPS, SAVE = 4096, 256, 8, 1300, 100
VALIDATION = 256  # windows
END = "<|endoftext|>"
_EVERY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "num_hidden_layers": 8,
    "max_position_embeddings": WINDOW,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
SHAPES: dict[str, dict[str, Any]] = {
    "gemma3": {
        **_EVERY,
        "model_type": "gemma3_text",
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 96,
        "query_pre_attn_scalar": 96,
        "sliding_window": WINDOW,
        "intermediate_size": 768,
    },
    "llama": {
        **_EVERY,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 16,
        "intermediate_size": 768,
    },
    "neox": {
        **_EVERY,
        "model_type": "gpt_neox",
        "num_attention_heads": 8,
        "intermediate_size": 1024,
    },
}


def documents() -> list[str]:
    """The training and validation documents, in the order of their SHA-256."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        spec = find_spec(package)
        if not (spec and spec.origin):
            raise SystemExit(f"the training text needs the package {package}: install it.")
        for file in Path(spec.origin).parent.rglob("*.py"):
            text = file.read_text(encoding="utf-8", errors="replace")
            if text.strip() and len(text) <= LONGEST:
                found[hashlib.sha256(text.encode()).hexdigest()] = text
    ordered = [found[digest] for digest in sorted(found)]
    ends = np.cumsum([len(text) for text in ordered])
    standard = build_text(read_option("text", "python_source"), cache="").parts
    return without_overlap(ordered[: np.searchsorted(ends, CHARACTERS)], sum(standard.values(), []))


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, which adds no tokens at the ends of a text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END)


def write_text(folder: Path) -> None:
    """Writes the tokenizer, and the tokens of both parts; END follows each document."""
    every = documents()
    parts = {
        "validation": every[::HELD_OUT],
        "training": [text for place, text in enumerate(every) if place % HELD_OUT],
    }
    tokenizer = train_tokenizer(parts["training"])
    tokenizer.save_pretrained(folder)
    for part, texts in parts.items():
        ids = tokenizer([text + END for text in texts])["input_ids"]
        np.save(folder / f"{part}.npy", np.concatenate(ids).astype(np.uint16))


def windows(folder: Path, part: str) -> Int[Tensor, "windows window"]:
    """The tokens of a part, cut into windows."""
    ids = torch.from_numpy(np.load(folder / f"{part}.npy").astype(np.int64))
    return ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)


def bigram_loss(training: Int[Tensor, "n window"], validation: Int[Tensor, "m window"]) -> float:
    """Nats per token of the best of four bigram models, which smooth with unigram frequencies."""
    size = VOCABULARY
    pairs = training[:, :-1] * size + training[:, 1:]
    counts = torch.bincount(pairs.flatten(), minlength=size * size).view(size, size).float()
    unigram = (counts.sum(0) + 1) / (counts.sum() + size)
    before, after = validation[:, :-1].flatten(), validation[:, 1:].flatten()
    seen, total = counts[before, after], counts.sum(1)[before]
    return min(
        -((seen + strength * unigram[after]) / (total + strength)).log().mean().item()
        for strength in (1, 10, 100, 1000)
    )


def train(
    shape: dict[str, Any],
    training: Int[Tensor, "n window"],
    validation: Int[Tensor, "m window"],
    folder: Path,
    **given: Any,
) -> Trainer:
    """Trains a model, from the last checkpoint of `folder` if there is one.

    Args:
        given: replaces keys of the TrainingArguments.
    """
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape), dtype=torch.float32)
    defaults = {
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": BATCH,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 100,
        "adam_beta2": 0.95,
        "weight_decay": 0.1,
        "logging_steps": 50,
        "save_steps": SAVE,
        "save_total_limit": 2,
        "bf16": resolve_dtype("auto") == torch.bfloat16,
        "use_cpu": True,
        "report_to": [],
        "seed": 0,
    }
    trainer = Trainer(
        model,
        TrainingArguments(str(folder), **defaults | given),
        train_dataset=[{"input_ids": ids, "labels": ids} for ids in training],
        eval_dataset=[{"input_ids": ids, "labels": ids} for ids in validation],
    )
    whole = [file.parent for file in folder.glob("checkpoint-*/trainer_state.json")]
    last = max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    return trainer


def make(name: str, folder: Path, **given: Any) -> None:
    """Trains a model and writes it, unless that is done; `given` is for `train`."""
    if (folder / name / "training.json").exists():
        return
    text = get_or_make(folder / "text", read=lambda path: path, make=lambda path: write_text(path))
    training, validation = windows(text, "training"), windows(text, "validation")[:VALIDATION]
    bigram = bigram_loss(training, validation)
    trainer = train(SHAPES[name], training, validation, folder / f"{name}-training", **given)
    trainer.save_model(folder / name)
    PreTrainedTokenizerFast.from_pretrained(text).save_pretrained(folder / name)
    report = {
        "parameters": trainer.model.num_parameters(),
        "training_tokens": trainer.state.global_step * BATCH * WINDOW,
        "validation_tokens": validation.numel(),
        "text": hashlib.sha256(training.numpy().tobytes()).hexdigest()[:12],
        "validation_loss": trainer.evaluate()["eval_loss"],
        "bigram_loss": bigram,
    }
    print(name, json.dumps(report))
    write_json(folder / name / "training.json", report)


if __name__ == "__main__":
    for chosen in sys.argv[2:] or SHAPES:
        make(chosen, Path(sys.argv[1]))
