"""What a model writes after a text, for readers to compare."""

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOKENS = 96  # longest answer


@torch.inference_mode()
def answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The model's most likely continuation; with a chat template, its answer to the message."""
    if tokenizer.chat_template:
        message = [{"role": "user", "content": text}]
        text = str(
            tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        )
    tokens: Any = tokenizer(text, return_tensors="pt").to(model.device)
    tokens.pop("token_type_ids", None)  # which generation does not take
    padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    written = model.generate(  # type: ignore[operator]
        **tokens, max_new_tokens=_TOKENS, do_sample=False, pad_token_id=padding
    )
    return str(tokenizer.decode(written[0, tokens.input_ids.shape[1] :], skip_special_tokens=True))
