"""Entry points of the commands. Slow imports wait until a command needs its config."""

import os
import sys
from collections.abc import Callable

import hydra
from omegaconf import DictConfig


def _entry(name: str) -> Callable[[], None]:
    """The Hydra application of the command `name`, whose code is `ppf.stages.<name>`."""

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
    start = hydra.main(config_path="pkg://ppf.conf", config_name=name, version_base="1.3")(job)

    def main() -> None:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors and prints none
        from ppf.cli.explain import errors_told

        try:
            with errors_told(sys.argv[1:], with_traceback="traceback=true" in sys.argv):
                start()
        except KeyboardInterrupt:
            print("Interrupted: the same command resumes.", file=sys.stderr)
            sys.exit(130)

    return main


collect = _entry("collect")
train = _entry("train")
search = _entry("search")
prune = _entry("prune")
recover = _entry("recover")
evaluate = _entry("evaluate")
serve = _entry("serve")
