"""Time and memory of the stages of a search: as `plan=true` predicts them, and as measured.

    python benchmarks/plans.py [--config model_type=qwen2 hidden_size=1536 ...] [HYDRA OVERRIDES]

Searches from an empty folder of artefacts. With --config the model has random weights and the given
Hugging Face config. Prints a table and, last, one line of JSON. Peak memory is that of the resident
set, which is read every tenth of a second.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import psutil
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import OmegaConf
from scale import write_checkpoint

from ppf.cli.app import run
from ppf.plan import GIB, Plan, Speed
from ppf.progress import Stopwatch
from ppf.report.tables import Table, print_table
from ppf.stages import search
from ppf.stages.about import version

PARTS = {
    "preparing the model": "preparing the model",
    "labelling": "labels",
    "measuring the best": "labels",
    "training the predictor": "gradients, predictor, agent",
    "searching on the predictor": "gradients, predictor, agent",
    "gradients of the best policies": "gradients, predictor, agent",
    "measuring the best on the selection part": "selection part",
    "sequential compensation": "sequential compensation",
    "measuring on the test part": "test part",
}


class Watch(Stopwatch):
    """Also knows the largest resident set during each part."""

    seconds_of, gib_of = Counter[str](), Counter[str]()

    def __init__(self) -> None:
        super().__init__()
        self.parts = [""]
        Thread(target=self._watch, daemon=True).start()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        self.parts.append(PARTS[part])
        before = self.seconds.get(part, 0.0)
        try:
            with super().__call__(part):
                yield
        finally:
            self.seconds_of[self.parts.pop()] += self.seconds[part] - before

    def _watch(self) -> None:
        process = psutil.Process()
        while True:
            part, used = self.parts[-1], process.memory_info().rss / GIB
            self.gib_of[part] = max(self.gib_of[part], used)
            time.sleep(0.1)


def main() -> None:
    """Prints the table, and one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--config", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides of search.py")
    arguments = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        places = [f"paths.{name}={folder}/{name}" for name in ("artefacts", "run")]
        if arguments.config:
            shape = OmegaConf.to_container(OmegaConf.from_dotlist(arguments.config))
            write_checkpoint(shape, Path(folder) / "model")  # type: ignore[arg-type]
            places.append(f"model.path={folder}/model")
        with initialize_config_module("ppf.conf", version_base="1.3"):
            cfg = compose("search", [*places, "logger=none", *arguments.overrides])
        device = instantiate(cfg.fabric).device
        speed = Speed.measured(cfg, device)
        plan = Plan(cfg, device)
        planned, (memory, disk) = plan.seconds(speed), plan.gib()
        search.Stopwatch = Watch  # type: ignore[misc]
        start = time.perf_counter()
        run("search", cfg)
        whole = time.perf_counter() - start
        files = [x for x in Path(cfg.paths.artefacts).rglob("*") if x.is_file()]
        stored = sum(file.stat().st_size for file in files) / GIB
    planned["whole run"] = sum(planned.values())
    Watch.seconds_of["whole run"], Watch.gib_of["whole run"] = whole, max(Watch.gib_of.values())
    rows = [
        {
            "stage": stage,
            "planned, s": seconds,
            "measured, s": Watch.seconds_of[stage],
            "ratio": seconds / Watch.seconds_of[stage],
            "measured, GiB": Watch.gib_of[stage],
        }
        for stage, seconds in planned.items()
        if seconds
    ]
    print_table(
        Table(rows, dict.fromkeys(list(rows[0])[1:], "{:.1f}".format) | {"ratio": "{:.2f}".format})
    )
    about = {"version": version(), "overrides": arguments.overrides, "speed": speed._asdict()}
    gib = {"memory": [memory, max(Watch.gib_of.values())], "disk": [disk, stored]}
    print(json.dumps({**about, **gib, "rows": rows}))


if __name__ == "__main__":
    main()
