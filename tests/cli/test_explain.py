"""Each error that a user can mend becomes one sentence; all others keep their traceback."""

import errno
import re
import sys

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ppf.cli.explain import errors_explained, explain_config, explain_run
from ppf.errors import PPFError
from tests.test_configs import STAGES


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["logger=foo"], "logger=foo is unknown: give one of csv,"),
        (["model=a/b"], "model=a/b is unknown: give one of gemma3_1b,"),
        (["model=/data/a"], "tiny; for a Hugging Face folder give model=local model.path=FOLDER."),
        (["model=~/a"], "as in seed=1; for a Hugging Face folder give model=local model.path=F"),
        (["text=my/a.txt"], "wikitext2_raw; for a file give text.path=FILE."),
        (["hydra/sweeper=foo"], "hydra/sweeper=foo is unknown: give one of basic"),
        (["experiment=search/agentz"], "experiment=search/agentz is unknown: give one of bytes/"),
        (["experiment=agents"], "search/agents, search/candidates"),
        (["labels.cuont=3"], "there is no key labels.cuont: do you mean labels.count?"),
        (["rato=0.3"], "there is no key rato: do you mean ratio?"),
        (["agent=evolution", "agent.childen=3"], "do you mean agent.children?"),
        (["labels.count.foo=3"], "there is no key labels.count.foo: --cfg job lists all keys."),
        (["agent=3"], "Config group override must be a string or a list."),
        (["agent=[ppo,sac]"], "appears more than once in the final defaults list."),
        (["foo=["], "foo=[ is not an override: give KEY=VALUE, as in seed=1."),
        (["ratio", "0.3"], "ratio is not an override: give KEY=VALUE, as in seed=1."),
        (["ratio=0.2,0.3"], "ratio has several values: give -m for one job each, or ratio=[...]"),
        (["export=gguf"], "search has no option group export: --help lists those that it has."),
        (["~foo"], "Could not delete from config. 'foo' does not exist."),
    ],
)
def test_what_hydra_refuses(overrides: list[str], sentence: str) -> None:
    hydra = initialize_config_module("ppf.conf", version_base="1.3")
    with hydra, pytest.raises(Exception) as error:
        compose("search", overrides)
    told = explain_config("search", overrides)(error.value)
    assert told is not None and sentence in told and "\n" not in told


def test_evaluate_needs_a_text_for_its_keys() -> None:
    hydra = initialize_config_module("ppf.conf", version_base="1.3")
    with hydra, pytest.raises(Exception) as error:
        compose("evaluate", ["path=x", "text.path=FILE"])
    told = explain_config("evaluate", ["path=x", "text.path=FILE"])(error.value)
    assert told is not None and "give text=wikipedia_sample" in told


def refused() -> InstantiationException:
    with pytest.raises(InstantiationException) as error:
        instantiate({"a": {"_target_": "torch.nn.Linear"}})
    return error.value


def interpolated() -> Exception:
    with pytest.raises(Exception) as error:
        OmegaConf.create({"a": {"b": "${c}"}}).a.b  # noqa: B018
    return error.value


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PPFError("as it is."), "as it is."),
        (refused(), "a does not work with these settings ("),
        (interpolated(), "a.b: Interpolation key 'c' not found."),
        (OSError(errno.ENOSPC, "No space left on device", "x.pt"), "cannot write x.pt (No space"),
        (OSError(errno.EACCES, "Permission denied", "x.pt"), "cannot read or write x.pt"),
        (RuntimeError("I/O error: File too large (os error 27)"), "cannot write a file (I/O error"),
        (torch.OutOfMemoryError("CUDA out of memory"), "give a smaller labels.batch"),
        (MemoryError(), "give a smaller labels.batch"),
    ],
)
def test_what_goes_wrong_at_work(error: Exception, sentence: str) -> None:
    assert sentence in str(explain_run("search")(error))


def test_a_full_allocator_is_told() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**50)
    assert "give a smaller labels.batch" in str(explain_run("search")(error.value))


@pytest.mark.parametrize("command", STAGES)
def test_memory_is_saved_with_keys_of_the_command(command: str) -> None:
    told = explain_run(command)(MemoryError())
    with initialize_config_module("ppf.conf", version_base="1.3"):
        cfg = compose(command, [])
    named = re.findall(r"(?:smaller|shorter) ([a-z_.]+[a-z])|([a-z_.]+)=", told or "")
    for key in map("".join, named):
        section, _, name = key.rpartition(".")
        assert name in (OmegaConf.select(cfg, section) if section else cfg), told
    assert len(named) >= 3


@pytest.mark.parametrize(
    "error", [ValueError("bug"), FileNotFoundError(2, "bug", "x"), BrokenPipeError("of a worker")]
)
def test_a_bug_keeps_its_traceback(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end, errors_explained(explain_run("search")):
        raise error
    assert end.value.code == 1 and "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("with_traceback", "shown"), [(False, "Error: wrong.\n"), (True, "Traceback")]
)
def test_an_error_is_shown_with_its_traceback_on_request(
    capsys: pytest.CaptureFixture[str], with_traceback: bool, shown: str
) -> None:
    with (
        pytest.raises(SystemExit),
        errors_explained(explain_run("search"), with_traceback=with_traceback),
    ):
        raise PPFError("wrong.")
    assert capsys.readouterr().err.startswith(shown)


def test_an_interrupt_during_lightnings_training_stays_one() -> None:
    with pytest.raises(KeyboardInterrupt), errors_explained(explain_run("search")):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)


@pytest.mark.parametrize(("alone", "code"), [(True, 1), (False, 9)])
def test_a_rank_that_fails_does_not_wait_for_others(
    monkeypatch: pytest.MonkeyPatch, alone: bool, code: int
) -> None:
    """A normal exit would close NCCL's connections, which the other ranks still use."""

    def leave(_: int) -> None:
        raise SystemExit(9)

    monkeypatch.setattr("ppf.processes.is_alone", lambda: alone)
    monkeypatch.setattr("os._exit", leave)
    with pytest.raises(SystemExit) as ended, errors_explained(explain_run("search")):
        raise PPFError("broken")
    assert ended.value.code == code
