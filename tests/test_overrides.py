"""Values and sections of configs in the grammar of Hydra's overrides."""

import numpy as np
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser

from ppf.overrides import quoted, text, written


@pytest.mark.parametrize(
    "given",
    [
        "/home/josé/run/policy.json",
        "a folder/b",
        "outputs/types-[q8_0,q4_0]/policy.json",
        "it's (new), or = old",
        "back\\slash and \\' both\\",
        'a "quote"',
        "2024",
        "1e-4",
        ".5",
        "null",
        "True",
        "~/models",
        "",
        "../here/at_0.3",
    ],
)
def test_hydra_reads_the_same_string(given: str) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"path={quoted(given)}"])
    assert override.value() == given
    (several,) = OverridesParser.create().parse_overrides([f"path=[{quoted(given)},end]"])
    assert several.value() == [given, "end"]


def test_numbers_of_numpy_and_pytorch_are_numbers() -> None:
    assert text(np.int64(3)) == "3" and text([np.float64(0.3), torch.tensor(2)]) == "[0.3,2]"
    for value in (object(), np.arange(3), {1, 2}):
        with pytest.raises(TypeError, match="is no number, text, list or dictionary"):
            text(value)


def test_an_empty_section_is_not_lost() -> None:
    assert list(written({"ratio": 0.3, "logger": {}})) == ["ratio=0.3", "logger={}"]
