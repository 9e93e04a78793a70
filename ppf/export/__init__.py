"""Exports pruned models as Hugging Face folders or GGUF files."""

from ppf.export.base import Exporter
from ppf.export.files import check_out
from ppf.export.gguf_tensors import file_bytes, round_weights
from ppf.export.loading import load_folder, read_description, read_pruned
from ppf.export.pruned import Pruned
from ppf.export.stock import counted, smallest, stock
