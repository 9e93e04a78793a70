"""What schemas take: all that our own commands write, and nothing that does not fit."""

from typing import Any

import pytest

from ppf.agents.agent_file import AgentRecord
from ppf.errors import PPFError
from ppf.records import check
from ppf.records.policy import ConfigRecord, PolicyRecord
from ppf.records.values import Record
from tests.records import examples
from tests.records.examples import CONF

RECORDED = ("model", "text", "space", "importance", "compensation")
OPTIONS = [(group, file.stem) for group in RECORDED for file in (CONF / group).glob("*.yaml")]
LS = "ppf.pruning.compensation.LeastSquares"


def fits(
    content: Any, schema: type[Record] = PolicyRecord, trusted: str | tuple[str, ...] = ()
) -> None:
    check(content, schema, "this", "mend it", trusted)


def test_every_packaged_option_can_be_recorded() -> None:
    for group, name in OPTIONS:
        fits(examples.config(**{group: examples.option(group, name)}), ConfigRecord)


def test_exported_weights_have_a_number_format_of_torch() -> None:
    exported = {"compensation": "one_shot", "measured": {}, "part": "labelling", "windows": 2}
    exported |= {"window": 64}
    fits(examples.policy(exported=exported | {"dtype": "bfloat16"}))
    with pytest.raises(PPFError, match="exported.dtype should be"):
        fits(examples.policy(exported=exported | {"dtype": "manual_seed"}))


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("compensation.more", 1, "compensation has no key more"),
        ("compensation.damping", -1, "damping=-1 should be greater than 0"),
        ("compensation.damping", {"_target_": LS}, "compensation"),
        ("space.channel_multiple", 2.5, "channel_multiple=2.5 should be a valid integer"),
        ("space._target_", "ppf.space.uniform", "space names a class that is neither"),
        ("importance._target_", "ppf.pruning.importance.No", "importance names a class that is"),
        ("importance._partial_", True, "importance._partial_ should"),
        ("model.source.config.auto_map", "x", "model.source has no key auto_map"),
        ("model.dtype", "int8", "model.dtype should be"),
        ("labels.batch", 0, "labels.batch should be greater"),
    ],
)
def test_other_sections_are_refused(place: str, value: Any, said: str) -> None:
    with pytest.raises(PPFError, match=said):
        fits(examples.config(**{place: value}), ConfigRecord)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        *(("smollm2_135m", key, "evil") for key in ("package", "file", "requirement")),
        ("qwen2_5_coder_0_5b", "parts", ["../evil-1.whl/evil.bin"]),
        ("qwen2_5_coder_0_5b", "sha256", "0" * 64),
    ],
)
def test_a_wheel_is_one_of_the_packaged_ones(name: str, key: str, value: Any) -> None:
    """A message tells users to install it, or it is downloaded."""
    model = examples.option("model", name)
    model["source"][key] = value
    with pytest.raises(PPFError, match=f"model.source cannot have another {key}"):
        fits(examples.config(model=model), ConfigRecord)


def test_classes_of_the_users_own_are_taken_where_they_are_trusted() -> None:
    own = {"_target_": "mine.Compensation", "rank": 3, "name": None, "scales": [0.5, 1]}
    own |= {"weights": {"attention": 1.0, "mlp": [[0.5], {"up": 2}]}}
    config = examples.config() | {"compensation": own}
    with pytest.raises(PPFError, match="neither PPF's own nor in trust_targets"):
        fits(config, ConfigRecord)
    fits(config, ConfigRecord, ("mine.Compensation",))
    with pytest.raises(PPFError, match="trust_targets"):
        fits(config, ConfigRecord, "not.mine.Compensation")  # one class, and no part of its name
    for more in ({"of": {"_target_": "mine.Compensation"}}, {"_partial_": True}, {"a": "${b}"}):
        with pytest.raises(PPFError, match="compensation"):
            fits(config | {"compensation": own | more}, ConfigRecord, ("mine.Compensation",))


@pytest.mark.parametrize("units", [2.0, True, "2", -1, 5, 2**80, None, {"2": 2}])
def test_units_are_whole_numbers_in_range(units: Any) -> None:
    for record in (
        examples.policy(examples.policy()["kept"] | {"2.mlp": units}),
        examples.policy(uniform=examples.policy()["uniform"] | {"kept": {"2.mlp": units}}),
    ):
        with pytest.raises(PPFError, match=r"^this: (uniform\.)?kept"):
            fits(record)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("kept", {"0.mlp": 1}, "kept should name the same sites as units"),
        ("kept", dict.fromkeys([*examples.UNITS, "9.mlp"], 1), "kept should name the same"),
        ("ratio.asked", float("nan"), "ratio.asked should be"),
        ("predicted.std", "0.3", "predicted.std should be"),
        ("measured.nll", True, "measured.nll should be"),
        ("budget.saved", 10**400, "budget.saved should be"),
    ],
)
def test_sites_are_those_of_the_space_and_numbers_finite(place: str, value: Any, said: str) -> None:
    with pytest.raises(PPFError, match=f"^this: {said}"):
        fits(examples.spoilt(examples.policy(), tuple(place.split(".")), value))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": "../agent.safetensors"}, "weights should be 'agent.safetensors'"),
        ({"space": None}, "space should be an object"),
        ({"ratios": [0.0]}, "ratios"),
    ],
)
def test_agents_are_checked(change: dict[str, Any], said: str) -> None:
    fits(examples.agent(), AgentRecord)
    with pytest.raises(PPFError, match=said):
        fits(examples.agent(**change), AgentRecord)


def of_heads(*heads: tuple[int, int], units: int = 3) -> dict[str, Any]:
    site = {"layer": 0, "kind": "attention", "units": units, "atoms_per_unit": 1, "params": 8}
    return {"sites": [site | {"heads": [list(level) for level in heads], "shared": 4}]}


CHAIN = of_heads((0, 0), (1, 1), (1, 2), (2, 2))


def test_sites_of_query_heads_fit() -> None:
    for prices in (None, [[0, 8]]):
        space = examples.agent()["space"] | CHAIN | {"prices": prices}
        fits(examples.agent(space=space), AgentRecord)


@pytest.mark.parametrize(
    "change",
    [
        {"sites": []},
        of_heads((0, 0), (1, 1), (2, 2)),
        of_heads((0, 0), (1, 1), (2, 2), units=2),
        of_heads((0, 0), (1, 1), (1, 2), (1, 1)),
        CHAIN | {"prices": [5]},
        CHAIN | {"prices": [[0, 0]]},
        {"prices": [[1, 1]] * 8},
        {"sites": [{"layer": 0, "kind": "mlp", "units": 10**9, "atoms_per_unit": 1, "params": 1}]},
        {"sites": examples.agent()["space"]["sites"] * 2},
        {"prices": [1]},
        {"prices": [0] * 8},
        {"prices": [2**62] * 8},
    ],
)
def test_spaces_are_checked(change: dict[str, Any]) -> None:
    with pytest.raises(PPFError, match="space"):
        fits(examples.agent(space=examples.agent()["space"] | change), AgentRecord)
