"""Trains the models of this study on the Python source of installed packages.

    python experiments/models/make.py outputs/models [NAMES, by default all]

The model NAME is written to outputs/models/NAME. Its `training.json` has the validation loss, and
that of a bigram model. The same command resumes a killed training from its last checkpoint.

No training document is a module of the standard library (`text=code`), or shares 13
consecutive words with one.
"""

import hashlib
import json
import sys
from pathlib import Path
from sysconfig import get_path

import numpy as np
import torch
from jaxtyping import Int
from omegaconf import OmegaConf
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from torch import Tensor, nn
from torch.optim import AdamW, Muon
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)

from ppf.artefacts import draft, get_or_make, write_json
from ppf.conf import read_option
from ppf.evaluation.perplexity import mean_nll
from ppf.llm import load
from ppf.llm.loading import resolve_dtype
from ppf.progress import say, track
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
VOCABULARY, WINDOW = 4096, 256
BATCH, STEPS, SAVE, WARMUP, RATE = 4, 1800, 100, 30, 3e-3
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
_ONE_GROUP = {"num_key_value_heads": 1, "head_dim": 96, "query_pre_attn_scalar": 96}
_GROUPS = {"num_key_value_heads": 8, "head_dim": 16}
CONFIGS: dict[str, PreTrainedConfig] = {
    "gemma3": Gemma3TextConfig(
        **_EVERY, **_ONE_GROUP, num_attention_heads=4, intermediate_size=768, sliding_window=WINDOW
    ),
    "llama": LlamaConfig(**_EVERY, **_GROUPS, num_attention_heads=32, intermediate_size=768),
    "neox": GPTNeoXConfig(**_EVERY, num_attention_heads=8, intermediate_size=1024),
}


def documents() -> list[str]:
    """The training and validation documents, in the order of their SHA-256."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        folder = Path(get_path("purelib"), package)
        if not folder.is_dir():
            raise SystemExit(f"the training text needs the package {package}: install it.")
        for file in folder.rglob("*.py"):
            text = file.read_text(encoding="utf-8", errors="replace")
            if text.strip() and len(text) <= LONGEST:
                found[hashlib.sha256(text.encode()).hexdigest()] = text
    ordered = [found[digest] for digest in sorted(found)]
    ends = np.cumsum([len(text) for text in ordered])
    standard = build_text(read_option("text", "code"), cache="").parts
    return without_overlap(ordered[: np.searchsorted(ends, CHARACTERS)], sum(standard.values(), []))


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, which adds no tokens at the ends of a text."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, VOCABULARY, special_tokens=[END])
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(bpe.to_str()), eos_token=END)


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
    pairs = (training[:, :-1] * VOCABULARY + training[:, 1:]).flatten()
    counts = torch.bincount(pairs, minlength=VOCABULARY**2).view(VOCABULARY, -1).float()
    unigram = (counts.sum(0) + 1) / (counts.sum() + VOCABULARY)
    before, after = validation[:, :-1], validation[:, 1:]
    seen, total = counts[before, after], counts.sum(1)[before]
    return min(
        -((seen + strength * unigram[after]) / (total + strength)).log().mean().item()
        for strength in (1, 10, 100, 1000)
    )


def train(
    config: PreTrainedConfig, training: Int[Tensor, "n window"], file: Path, steps: int = STEPS
) -> PreTrainedModel:
    """Trains a model, from the checkpoint `file` if it exists.

    Muon trains the matrices of attention and FFN, AdamW the rest, both with a cosine schedule.
    """
    torch.manual_seed(0)
    order = torch.randperm(len(training))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    inner, other = list[nn.Parameter](), list[nn.Parameter]()
    for name, weight in model.named_parameters():
        (inner if weight.ndim == 2 and "embed" not in name else other).append(weight)
    optimizers = (
        Muon(inner, lr=RATE, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        AdamW(other, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0),
    )
    schedules = [get_cosine_schedule_with_warmup(each, WARMUP, steps) for each in optimizers]
    parts = (model, *optimizers, *schedules)
    done = 0
    if file.exists():
        done, states = torch.load(file, weights_only=True)
        for part, state in zip(parts, states, strict=True):
            part.load_state_dict(state)
    for step in track(range(done, steps), "Training"):
        batch = training[order[step * BATCH : (step + 1) * BATCH]]
        with torch.autocast("cpu", enabled=resolve_dtype("auto") == torch.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        model.zero_grad()
        if (step + 1) % SAVE == 0:
            say(f"step {step + 1}: {loss.item():.2f} nats per token on the last {BATCH} windows")
            with draft(file) as made:
                torch.save((step + 1, [part.state_dict() for part in parts]), made)
    return model


def make(name: str, folder: Path, steps: int = STEPS) -> None:
    """Trains a model and writes it, unless that is done."""
    if (folder / name / "training.json").exists():
        return
    text = get_or_make(folder / "text", read=lambda path: path, make=write_text)
    training, validation = windows(text, "training"), windows(text, "validation")[:256]
    model = train(CONFIGS[name], training, folder / f"{name}.pt", steps)
    model.save_pretrained(folder / name)
    PreTrainedTokenizerFast.from_pretrained(text).save_pretrained(folder / name)
    written = load(OmegaConf.create({"path": str(folder / name), "dtype": "float32"}), "")
    report = {
        "parameters": model.num_parameters(),
        "training_tokens": steps * BATCH * WINDOW,
        "validation_tokens": validation.numel(),
        "text": hashlib.sha256(training.numpy().tobytes()).hexdigest()[:12],
        "validation_loss": mean_nll(written.model, validation, batch=BATCH),
        "bigram_loss": bigram_loss(training, validation),
    }
    print(name, json.dumps(report))
    write_json(folder / name / "training.json", report)


if __name__ == "__main__":
    for chosen in sys.argv[2:] or CONFIGS:
        make(chosen, Path(sys.argv[1]))
