"""Refuses experiments, and searches of hyper-parameters, of another command."""

from collections.abc import Iterable

from ppf.commands import invocation
from ppf.conf import command_of
from ppf.errors import PPFError

_GROUPS = ("experiment", "hparams_search")


def check_studies(command: str, overrides: Iterable[str]) -> None:
    """Checks the overrides of a command before Hydra composes its config.

    Raises:
        PPFError: one of them chooses the study of another command.
    """
    for override in overrides:
        group, _, options = override.partition("=")
        for option in options.split(",") if group in _GROUPS else ():
            if (owner := command_of(group, option)) not in (None, command):
                raise PPFError(
                    f"{group}={option} is for {owner}, not for {command}: give"
                    f" {invocation(owner, '-m', f'{group}={option}')}."
                )
