import pytest

from ppf.errors import PPFError
from ppf.export import Exporter, Pruned
from ppf.export.decilm import DeciLM
from ppf.export.gguf import GGUF
from ppf.export.huggingface import HuggingFace
from tests.checkpoints import pruner_of, two_ffns


@pytest.mark.parametrize("exporter", [HuggingFace(), GGUF("f16"), DeciLM()])
def test_several_blocks_of_one_kind_in_a_layer_are_refused(exporter: Exporter) -> None:
    with pytest.raises(PPFError, match="no export format supports .* 0.mlp.1: use serve"):
        exporter.check(Pruned.of(pruner_of(two_ffns())))
