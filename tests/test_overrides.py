"""Values and sections of configs in the grammar of Hydra's overrides."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from ppf.overrides import quoted


@pytest.mark.parametrize(
    "text",
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
def test_hydra_reads_the_same_string(text: str) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"path={quoted(text)}"])
    assert override.value() == text
    (several,) = OverridesParser.create().parse_overrides([f"path=[{quoted(text)},end]"])
    assert several.value() == [text, "end"]


def test_plain_paths_need_no_quotes() -> None:
    for text in ("/scratch/me/policy.json", "outputs/search/2026-11-28/a_b-c+d", "./x", "wandb"):
        assert quoted(text) == text
