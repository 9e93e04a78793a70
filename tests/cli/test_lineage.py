"""Commands name what they read as the command that made it has named it."""

import json
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ppf.stages.lineage import made, used
from tests.agents.test_ratio_agent import ratio_agent
from tests.records import examples


def config(**given: object) -> DictConfig:
    return OmegaConf.create({"policy": None, "trust_targets": []} | given)


def test_a_policy_an_agent_and_folders_have_names_of_their_own(tmp_path: Path) -> None:
    policy, agent = tmp_path / "policy.json", ratio_agent().save(tmp_path)
    policy.write_text(json.dumps(examples.policy()))
    (found,) = used(config(policy=str(policy)))
    assert (found.paths, found.name, found.type) == ([policy], "tiny-policy", "policy")
    for search in (tmp_path, agent):  # a file may be given in place of its folder
        (found,) = used(config(search=str(search)))
        assert [path.name for path in found.paths] == ["agent.json", "agent.safetensors"]
        assert (found.name, found.type, found.used) == ("tiny-agent", "agent", True)
    folders = used(config(path=["a/dense", "b/pruned"]))
    assert [(found.name, found.used) for found in folders] == [("dense", True), ("pruned", True)]
    assert [found.name for found in used(config(path="b/pruned"))] == ["pruned"]


def test_a_model_is_made_under_the_name_that_it_is_read_by(tmp_path: Path) -> None:
    written = made(tmp_path / "pruned", {"achieved": 0.3})
    (read,) = used(config(path=str(tmp_path / "pruned")))
    assert (written.name, written.type, written.used) == (read.name, read.type, False)
    assert written.metadata == {"achieved": 0.3} and written.by_reference
