import json

import pytest

from ppf.errors import PPFError
from ppf.space import Prunable, Space, build_space


def one_layer() -> Space:
    blocks = [Prunable(0, "attention", 2, 50), Prunable(0, "mlp", 8, 30)]
    return build_space(
        blocks, name="width", kinds=["attention", "mlp"], channel_multiple=4, whole_sites=False
    )


def test_a_policy_names_every_site() -> None:
    space = one_layer()
    assert space.policy({"0.mlp": 1, "0.attention": 0}) == [0, 1]
    with pytest.raises(PPFError, match="does not fit space=width"):
        space.policy({"0.attention": 1, "0.mlp": 1, "1.mlp": 1})


def test_a_unit_has_the_parameters_of_its_atoms() -> None:
    space = one_layer()
    assert [(site.units, site.params) for site in space.sites] == [(2, 50), (2, 120)]
    assert space.total == 2 * 50 + 8 * 30


def test_a_description_restores_the_space() -> None:
    description = json.loads(json.dumps(one_layer().describe()))
    assert Space.restore(description) == one_layer()
    description["sites"][0]["index"] = 0  # of earlier versions
    assert Space.restore(description) == one_layer()
