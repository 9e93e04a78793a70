"""Exports pruned models as Hugging Face folders or GGUF files."""
