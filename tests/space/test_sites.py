import json

import pytest

from ppf.errors import PPFError
from ppf.space import Prunable, Space, build_space


def mixture(experts: int) -> Space:
    """One layer with an attention block and several experts."""
    blocks = [Prunable(0, "attention", 2, 50)]
    blocks += [Prunable(0, "mlp", 8, 30, index) for index in range(experts)]
    return build_space(
        blocks, name="width", kinds=["attention", "mlp"], channel_multiple=4, whole_sites=False
    )


def test_every_expert_is_a_site_with_its_own_name() -> None:
    space = mixture(3)
    assert [site.name for site in space.sites] == ["0.attention", "0.mlp", "0.mlp.1", "0.mlp.2"]
    named = {site.name: i for i, site in enumerate(space.sites)}
    assert space.policy({name: i // 2 for name, i in named.items()}) == [0, 0, 1, 1]
    with pytest.raises(PPFError, match="does not fit space=width"):
        space.policy({**dict.fromkeys(named, 1), "0.mlp.3": 1})


def test_a_unit_has_the_parameters_of_its_atoms() -> None:
    space = mixture(1)
    assert [(site.units, site.params) for site in space.sites] == [(2, 50), (2, 120)]
    assert space.total == 2 * 50 + 8 * 30


def test_a_description_restores_the_experts() -> None:
    space = mixture(2)
    assert Space.restore(json.loads(json.dumps(space.describe()))) == space
