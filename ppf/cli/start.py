"""The entry point of all commands. Slow imports wait until a command needs its config."""

import os
import sys
from pathlib import Path

import hydra
from hydra._internal.hydra import Hydra
from omegaconf import DictConfig


def main() -> None:
    """Runs the command that the program is named after, as in search.py and ppf-search.

    Its code is `ppf.stages.<name>`, its config `ppf/conf/<name>.yaml`.
    """
    name = Path(sys.argv[0]).stem.removeprefix("ppf-")

    def job(cfg: DictConfig) -> float | None:
        others = (os.environ.get(key, "0") for key in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
        if "torch" not in sys.modules and all(rank == "0" for rank in others):
            print(f"{name}: loading PyTorch and transformers.", flush=True)  # takes seconds
        from ppf.cli.app import run
        from ppf.cli.explain import errors_told
        from ppf.cli.outcome import is_multirun
        from ppf.processes import is_alone

        try:
            with errors_told(with_traceback=cfg.traceback):
                return run(name, cfg)
        except SystemExit:
            # The error has been printed; the other jobs go on, but other ranks must not wait.
            if is_multirun() and is_alone() and not cfg.get("plan"):
                return None
            raise

    job.__module__ = f"ppf.cli.{name}"  # Hydra names the job after it
    if {"--help", "-h"} & {*sys.argv}:  # Hydra's list of groups is slow, and ours is shown
        Hydra.format_config_groups = lambda *_, **__: ""  # type: ignore[method-assign]
    if not any(word.startswith("hydra.mode") for word in sys.argv):
        # Hydra composes the whole config once more to look for this key, which we do not set.
        Hydra.get_mode = lambda *_, **__: None  # type: ignore[method-assign]
    start = hydra.main(config_path="pkg://ppf.conf", config_name=name, version_base="1.3")(job)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors and prints none
    from ppf.cli.explain import errors_told

    try:
        with errors_told(sys.argv[1:], with_traceback="traceback=true" in sys.argv):
            start()
    except KeyboardInterrupt:
        print("Interrupted: the same command resumes.", file=sys.stderr)
        sys.exit(130)
