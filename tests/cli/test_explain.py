"""Errors that a user can fix are one line; all others keep their traceback."""

import errno
import sys
from collections.abc import Callable

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ppf.cli.explain import errors_told, sentence
from ppf.errors import PPFError
from tests.composing import command_config


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["agent=foo"], "agent=foo is unknown: give one of alphapruning, block_influence"),
        (["model=/data/model"], "smollm2_135m, tiny, or model.path=FOLDER."),
        (["text=my/words.txt"], "wikitext2_raw, or text.path=FILE."),
        (["labels.cuont=3"], "there is no key labels.cuont: do you mean labels.count?"),
        (["model.path=/a=b"], "cannot be read: quote the value, as in 'model.path=\"/a=b\"'."),
        (["foo=["], "no viable alternative at input '['"),
        (["export=gguf"], "Could not override 'export'. No match in the defaults list."),
    ],
)
def test_what_hydra_refuses(overrides: list[str], told: str) -> None:
    with pytest.raises(Exception) as error:
        command_config("search", overrides)
    line = sentence(error.value, overrides)
    assert line is not None and told in line and "\n" not in line


def raised(work: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as error:
        work()
    return error.value


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PPFError("as it is."), "as it is."),
        (
            raised(lambda: instantiate({"a": {"_target_": "torch.nn.Linear"}})),
            "a does not work with these settings (",
        ),
        (
            raised(lambda: OmegaConf.create({"a": {"b": "${c}"}}).a.b),
            "a.b: Interpolation key 'c' not found.",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "x.pt"), "cannot read or write x.pt (No"),
        (OSError(errno.EACCES, "Permission denied", "x.pt"), "cannot read or write x.pt"),
        (RuntimeError("I/O error: File too large (os error 27)"), "cannot read or write a file"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory: lower labels.batch"),
        (raised(lambda: torch.empty(2**50)), "out of memory"),
        (ModuleNotFoundError(name="uvicorn"), "uvicorn is not installed: run `pip install"),
        (ModuleNotFoundError(name="ppf.absent"), "None"),
        (ValueError("bug"), "None"),
    ],
)
def test_what_goes_wrong_at_work(error: Exception, told: str) -> None:
    assert str(sentence(error)).startswith(told)


@pytest.mark.parametrize(
    ("error", "with_traceback", "shown"),
    [
        (PPFError("wrong."), False, "Error: wrong.\n"),
        (PPFError("wrong."), True, "Traceback"),
        (ValueError("bug"), False, "Traceback"),
    ],
)
def test_the_exit_code_is_1_and_bugs_keep_their_traceback(
    capsys: pytest.CaptureFixture[str], error: Exception, with_traceback: bool, shown: str
) -> None:
    with pytest.raises(SystemExit) as end, errors_told(with_traceback=with_traceback):
        raise error
    assert end.value.code == 1 and capsys.readouterr().err.startswith(shown)


def test_an_interrupt_during_lightnings_training_stays_one() -> None:
    with pytest.raises(KeyboardInterrupt), errors_told():
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
    with pytest.raises(SystemExit) as ended, errors_told():
        raise PPFError("broken")
    assert ended.value.code == code
