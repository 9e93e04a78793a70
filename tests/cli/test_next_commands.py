"""The commands that a run prints at its end run as printed: they have what the run was given."""

import shlex
from types import SimpleNamespace

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from ppf.stages import results
from tests.composing import command_config

CARRIED = ["bank.max_gib=8", "trust_targets=[my.Agent]", "paths.outputs=a"]
TEXT = ["text=c4", "text.window=64"]
SEARCH = ["model=tiny", *TEXT, "text.windows.labelling=2", *CARRIED]


def composed(command: str, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> DictConfig:
    """The config of a command that runs with these overrides."""
    cfg = command_config(command, [*overrides, "paths.run=R"])
    hydra = SimpleNamespace(
        overrides=SimpleNamespace(task=list(overrides)),
        runtime=SimpleNamespace(config_sources=[], choices={"text": cfg.text.name}),
    )
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra)
    return cfg


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_a_search_hands_on_its_text_bank_and_classes(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = composed("search", monkeypatch, f"mode={mode}", *SEARCH)
    if mode == "static":
        told = results._after_policy(cfg, rounded=False)
    else:
        told = results._after_agent(cfg)
        assert "\"import ppf; print(ppf.load_agent('R', ['my.Agent']).policy(" in " ".join(
            told.values()
        )
    words = {
        line.split()[0]: shlex.split(line)[1:] for line in told.values() if line.startswith("ppf-")
    }
    assert words.keys() >= {"ppf-recover", "ppf-serve"}
    assert all({*CARRIED} <= {*given} for given in words.values())
    assert {*TEXT} <= {*words["ppf-recover"]}
    assert not any("windows" in word for word in words["ppf-recover"])
    monkeypatch.undo()
    for name, given in words.items():
        command_config(name.removeprefix("ppf-"), given)


@pytest.mark.parametrize("folder", ["it's mine", "$(touch ran)", 'a "b" c'])
def test_python_code_is_quoted(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = composed("search", monkeypatch, "mode=dynamic", *SEARCH)
    cfg.paths.run = folder
    told = results._after_agent(cfg)["Ask the agent for a policy"]
    _, _, code = shlex.split(told)
    assert repr(folder) in code
    compile(code, "command", "exec")
    assert "$(" not in told or told.startswith("python -c '")
