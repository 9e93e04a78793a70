"""A config is refused in one sentence before any work starts, whichever number in it is wrong."""

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from ppf.arguments import Keys, check_component, components
from ppf.cli.checks import check_folder, check_values
from ppf.errors import PPFError
from ppf.stages import train
from tests.composing import command_config
from tests.test_configs import CONF, FILES, STAGES, composed, resolved

WRONG = [-1, math.nan, "abc"]
NEGATIVE = {"spread_penalty"}  # numbers that may be negative
# For transformers and for Lightning (`check_launch`) to judge.
NOT_OURS = {*OmegaConf.load(CONF / "model" / "tiny.yaml").source.config, "devices"}
# For Lightning and PyTorch to judge.
FOREIGN = {
    "check_val_every_n_epoch",
    "gradient_clip_val",
    "history_size",
    "max_epochs",
    "num_sanity_val_steps",
}


def options_file(file: Path) -> dict[str, Any]:
    content: Any = OmegaConf.to_container(OmegaConf.load(file))
    for key in ("defaults", "hydra"):  # for Hydra to judge
        content.pop(key, None)
    return {key: value for key, value in content.items() if "${" not in str(value)}


def is_number(value: Any) -> bool:
    if isinstance(value, list):
        return value != [] and is_number(value[0])
    return type(value) in (int, float)


def numbers(node: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """All numbers, and lists of them, with the keys that lead there."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from numbers(value, (*keys, key))
    elif is_number(node):
        yield keys, node


def changed(given: dict[str, Any], keys: Keys, value: Any) -> dict[str, Any]:
    given = copy.deepcopy(given)
    part = given
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    return given


def passing(keys: Keys, value: Any, check: Callable[[Any], None]) -> list[Any]:
    """The wrong values for a key that are not refused in one sentence."""
    passed = []
    for wrong in WRONG:
        try:
            check([wrong] if isinstance(value, list) else wrong)
            passed.append(wrong)
        except PPFError as error:
            assert "\n" not in str(error) and str(error).endswith((".", "?")), error
    return [] if passed == [-1] and keys[-1] in NEGATIVE else passed


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, dict[str, Any]]]:
    """The config of each command; of `search` also one whose agent merges two files."""
    chosen: list[tuple[str, dict[str, str]]] = [("search", {"agent": "ppo"})]
    chosen += [(stage, {}) for stage in STAGES]
    folder = tmp_path_factory.mktemp("run")
    return [(stage, resolved(composed(stage, choices), folder)) for stage, choices in chosen]


def test_every_number_has_a_range(commands: list[tuple[str, dict[str, Any]]]) -> None:
    files = [options_file(file) for file in FILES]
    ranged, parts = set[str](), [*files, *(cfg for _, cfg in commands)]
    found = [each for part in parts for _, each in components(part)]
    judged = {str(each): each for each in found if each["_target_"].startswith("ppf.")}
    for component in judged.values():
        own = {key: value for key, value in component.items() if not any(components(value))}
        for keys, value in numbers(own):
            check = partial(check_component, ())
            passed = passing(keys, value, lambda x: check(changed(component, keys, x)))  # noqa: B023
            assert keys[-1] in NOT_OURS or not passed, (component, keys)
            ranged.add(keys[-1])
    for command, cfg in commands:
        components_at = [keys for keys, _ in components(cfg)]
        for keys, value in numbers(cfg):
            if not any(keys[: len(outer)] == outer for outer in components_at):
                own = {keys[0]: cfg[keys[0]]}
                passed = passing(keys, value, lambda x: check_values(changed(own, keys, x)))  # noqa: B023
                assert not passed, (command, keys)
                ranged.add(keys[-1])
    assert {keys[-1] for part in files for keys, _ in numbers(part)} <= ranged | FOREIGN


@pytest.mark.parametrize(
    ("command", "key", "value", "sentence"),
    [
        ("search", "labels.count", 0, "labels.count=0 should be greater than or equal to 1."),
        ("search", "ratio", [0.2, 0.4], "ratio=[0.2, 0.4] should be a valid number."),
        ("search", "space.kinds", [], "space.kinds=[] should have at least 1 item."),
        ("search", "space.kinds", ["ffn"], "should be 'attention', 'mlp' or 'experts'."),
        ("search", "sampler.ratio", 1, "there is no key sampler.ratio: --cfg job lists all keys."),
        ("search", "agent.iteration", 1, "iteration: do you mean agent.iterations?"),
        ("search", "agent.polish", 3, "agent.polish=3 should name a _target_."),
        ("search", "agent._target_", "no.Agent", "cannot be imported (No module named 'no')"),
        ("search", "mode", "dynamics", "mode=dynamics should be 'static', 'dynamic' or 'chain'."),
        ("recover", "ratios", [0.5, 0.3], "ratios=[0.5, 0.3] should ascend."),
        ("evaluate", "latency", 1, "latency=1 should be a valid boolean."),
        ("serve", "port", 65536, "port=65536 should be less than 65536."),
        (
            "search",
            "predictor",
            {"_target_": "ppf.predictor.oracle.Oracle", "screening": [{"windows": 0, "keep": 4}]},
            "predictor.screening.0.windows=0 should be greater than",
        ),
    ],
)
def test_what_is_wrong_is_named(
    commands: list[tuple[str, dict[str, Any]]], command: str, key: str, value: Any, sentence: str
) -> None:
    given = changed(dict(commands)[command], tuple(key.split(".")), value)
    with pytest.raises(PPFError) as error:
        check_values(given)
    assert sentence in str(error.value)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    check_folder(tmp_path / "new" / "folder")
    (tmp_path / "file").touch()
    for folder in (Path("/proc/ppf"), tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(
            PPFError, match=rf"cannot write {folder} \(.*\): .* with paths\.outputs, .* or out\.$"
        ):
            check_folder(folder)


def test_a_predictor_that_cannot_be_scored_is_refused_before_labelling() -> None:
    own = ["predictor=sensitivity", "paths.run=."]
    alone, scored = (command_config("train", [*own, *more]) for more in ([], ["test_policies=32"]))
    train.check(scored)
    with pytest.raises(PPFError, match="give test_policies=256"):
        train.check(alone)
