"""Trains the small models of this study on the default text.

    python experiments/designs/make.py outputs/designs [NAMES, by default all]

Each has a byte tokenizer, 4 decoder layers, 32 query heads of size 8, and about 3 million
parameters. The model NAME is written to outputs/designs/NAME. It reads training documents only,
which share some with calibration and labelling, and none with the test part.
"""

import sys
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from ppf.conf import DEFAULT_TEXT, read_option
from ppf.llm.sources import byte_tokenizer
from ppf.text.parts import build_text
from ppf.text.training import training_text

WINDOW, BATCH, STEPS = 256, 4, 1000
_EVERY = {
    "vocab_size": 257,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
LLAMA = {**_EVERY, "model_type": "llama", "intermediate_size": 704}
DESIGNS = {
    "mha": {**LLAMA, "num_key_value_heads": 32},
    "gqa": {**LLAMA, "num_key_value_heads": 8},
    "opt": {**_EVERY, "model_type": "opt", "ffn_dim": 1024, "word_embed_proj_dim": 256},
    "neox": {**_EVERY, "model_type": "gpt_neox", "intermediate_size": 1024},
}


def windows(tokenizer: PreTrainedTokenizerFast, cache: str) -> list[dict[str, torch.Tensor]]:
    """The windows of the default text's training part."""
    config = read_option("text", DEFAULT_TEXT)
    config.window = WINDOW
    text = build_text(training_text(config), cache)
    return [{"input_ids": ids, "labels": ids} for ids in text.tokens("training", tokenizer)]


def make(name: str, folder: Path) -> None:
    """Trains a model and writes it."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**DESIGNS[name]))
    arguments = TrainingArguments(
        output_dir=str(folder / f"{name}-training"),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=STEPS // 20,
        weight_decay=0.1,
        logging_steps=STEPS // 10,
        save_strategy="no",
        bf16=True,
        use_cpu=True,
        report_to=[],
        seed=0,
    )
    data = windows(tokenizer, str(Path.home() / ".cache" / "ppf"))
    Trainer(model, arguments, train_dataset=data).train()
    model.save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)


if __name__ == "__main__":
    for design in sys.argv[2:] or DESIGNS:
        make(design, Path(sys.argv[1]))
