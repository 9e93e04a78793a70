"""Faults on the tiny model: kills, damaged files, a full disk, attacks, fuzzed files, the server.

    python benchmarks/faults.py            # some minutes
    python benchmarks/faults.py --small    # the version that CI runs

Prints a table, and one line of JSON at the end.
"""

import argparse
import copy
import hashlib
import io
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from ppf.errors import PPFError  # noqa: E402
from ppf.labels.store import LabelRow, LabelStore  # noqa: E402
from ppf.policy_file import read_policy  # noqa: E402
from ppf.progress import say, track  # noqa: E402
from tests.articles import write_articles  # noqa: E402
from tests.commands import exit_code  # noqa: E402
from tests.records.examples import places, policy, spoilt  # noqa: E402
from tests.records.gadgets import gadgets  # noqa: E402

TINY = (
    "model=tiny",
    "labels.count=24",
    "text.window=64",
    "text.windows={calibration:4,labelling:2,test:2}",
    "predictor=additive",
    "predictor.members=2",
    "trainer.max_epochs=3",
    "search.rounds=1",
    "logger=none",
)
SEARCH = (*TINY, "search.top_k=2", "agent=evolution", "agent.generations=5", "agent.children=32")
DYNAMIC = (
    *TINY,
    "mode=dynamic",
    "agent=ppo",
    "agent.episodes=16",
    "agent.iterations=8",
    "search.points=4",
    "search.stride=2",
    "ratios=[0.2,0.4]",
)
UNITS = [3, 24, 3, 24]
Damage = Callable[[Path], None]


class Commands:
    """Runs the commands in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _arguments(self, overrides: tuple[str, ...]) -> list[str]:
        paths = [f"paths.artefacts={self.folder}/artefacts", f"paths.run={self.folder}/run"]
        if "model=tiny" in overrides:  # commands that do not read a policy
            paths.append(f"text.path={write_articles(self.folder)}")
        return [*paths, *overrides]  # Hydra takes the last value of a key

    def start(self, script: str, *overrides: str) -> subprocess.Popen[str]:
        """Starts a process, to be killed."""
        return subprocess.Popen(
            [sys.executable, str(ROOT / f"{script}.py"), *self._arguments(overrides)],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str, *overrides: str) -> tuple[int, str]:
        """Exit code, and all that the command printed; it runs in this process."""
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said), chdir(self.folder):
            code = exit_code(script, self._arguments(overrides))
        return code, said.getvalue()

    def result(self) -> dict[str, Any]:
        """What the run's files say, without times and paths."""
        found: dict[str, Any] = {}
        for shard in (self.folder / "artefacts" / "labels").glob("*"):
            store = LabelStore(shard, shard.name, [4, 3] * 4)
            found["labels"] = sorted((row.kept, round(row.nll, 6)) for row in store._rows.values())
        if (file := self.folder / "run" / "policy.json").is_file():
            found["policy"] = json.loads(file.read_text())["kept"]
        for file in (self.folder / "run").rglob("*.safetensors"):
            tensors = sorted(load_file(file).items())  # the order of metadata is random
            parts = (name.encode() + t.view(-1).numpy().tobytes() for name, t in tensors)
            found[file.name] = hashlib.sha256(b"".join(parts)).hexdigest()
        return found


@contextmanager
def folders() -> Iterator[Callable[[], Commands]]:
    """Makes folders, which are removed at the end."""
    with tempfile.TemporaryDirectory() as root:
        yield lambda: Commands(Path(tempfile.mkdtemp(dir=root)))


Undisturbed = tuple[dict[str, Any], float]
"""What a command leaves, and its seconds."""


def undisturbed(commands: Commands, script: str, *overrides: str) -> Undisturbed:
    """Runs a command to its end."""
    start = time.monotonic()
    code, output = commands.run(script, *overrides)
    assert code == 0, output
    return commands.result(), time.monotonic() - start


def kills(
    stages: list[tuple[str, tuple[str, ...]]], known: dict[tuple[str, ...], Undisturbed], tries: int
) -> dict[str, int]:
    """Kills each stage at random moments; the same command must then end as if undisturbed.

    Args:
        stages: names and overrides of commands.
        known: what is known of stages that have run, by their overrides.
        tries: kills of each stage.
    """
    chance, counts = random.Random(0), Counter[str]()
    with folders() as new:
        for script, overrides in track(stages, "Killing"):
            expected, seconds = known.get(overrides) or undisturbed(new(), script, *overrides)
            left = tries
            while left:
                commands = new()
                process = commands.start(script, *overrides)
                assert process.stdout is not None
                any("loading PyTorch" not in line for line in process.stdout)  # after the imports
                time.sleep(chance.uniform(0, seconds))
                process.send_signal(signal.SIGKILL)
                process.communicate()
                if process.returncode != -signal.SIGKILL:  # it had ended before
                    seconds *= 0.9
                    continue
                left -= 1
                code, _ = commands.run(script, *overrides)
                counts["tried"] += 1
                counts["recovered"] += code == 0 and commands.result() == expected
    return {"tried": counts["tried"], "recovered": counts["recovered"]}


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    if data:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


def _as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Damage] = {
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": _flip,
    "replaced by a folder": _as_folder,
}


def damaged(good: Commands, small: bool) -> dict[str, int]:
    """Damages all artefacts of a search, then policy.json; searches and prunes with them.

    The small version searches once, and each file gets the next kind of damage.
    """
    counts, kinds = Counter[str](), list(DAMAGES.values())
    with folders() as new:
        for turn in track([kinds] if small else [[kind] for kind in kinds], "Damaging files"):
            bad = new()
            shutil.copytree(good.folder, bad.folder, dirs_exist_ok=True)
            files = [p for p in sorted((bad.folder / "artefacts").rglob("*")) if p.is_file()]
            files = [p for p in files if p.suffix != ".lock"]
            record = bad.folder / "run" / "policy.json"
            for damage, file in zip(cycle(turn), (record, *files), strict=False):
                damage(file)
            outputs = [bad.run("prune", f"policy={record}", f"out={bad.folder}/out")[1]]
            outputs.append(bad.run("search", *SEARCH)[1])
            counts["tried"] += len(files) + 1
            counts["tracebacks"] += sum("Traceback" in output for output in outputs)
        for place in ("/proc/ppf", "/dev/full/ppf"):
            code, output = good.run("search", *SEARCH, f"paths.artefacts={place}")
            counts["tried"] += 1
            counts["tracebacks"] += code == 0 or "Traceback" in output
        if not small:
            _full_disk(new(), counts)
    return {"tried": counts["tried"], "tracebacks": counts["tracebacks"]}


def _full_disk(commands: Commands, counts: Counter[str]) -> None:
    """A disk of 256 KiB, too small for a search, which names it; only root can mount one."""
    disk = commands.folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        say("A full disk is not tried: this user cannot mount one.")
        return
    try:
        _, output = commands.run("search", *SEARCH, f"paths.artefacts={disk}")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    counts["tried"] += 1
    counts["tracebacks"] += "Traceback" in output or "paths.artefacts" not in output


def attacks(small: bool) -> dict[str, int]:
    """Puts every gadget at every place of a policy's config, and some into real commands."""
    counts = Counter[str]()
    with tempfile.TemporaryDirectory() as root, folders() as new:
        nodes, marker = gadgets(Path(root)), Path(root) / "ran"
        good, file = policy(), Path(root) / "policy.json"
        at = [place for place in places(good) if place[0] == "config"]
        for node in track(list(nodes.values())[: 3 if small else None], "Attacking"):
            for place in at:
                file.write_text(json.dumps(spoilt(good, place, node)))
                try:
                    read_policy(file, ())
                    counts["executed"] += 1  # an accepted gadget would run later
                except PPFError:
                    pass
                counts["tried"] += 1
        for node in list(nodes.values())[: 1 if small else None]:
            file.write_text(json.dumps(spoilt(good, ("config", "compensation"), node)))
            new().run("prune", f"policy={file}", f"out={root}/out")
            counts["tried"] += 1
        counts["executed"] += marker.exists()
    return {"tried": counts["tried"], "executed": counts["executed"]}


EXTREMES = [
    None, True, False, 0, -1, 1, 3.5, -0.0, 1e308, float("inf"), float("nan"), 2**63, 10**400,
    "", "x", "${x}", "\x1b[31m", "0.mlp", "1", "../..", [], {}, [[]], [1, "a"], {"a": 1},
    {"_target_": "os.system"},
]  # fmt: skip


def mutated(record: Any, chance: random.Random) -> Any:
    """The record with one place changed: another value, one name less, or one more."""
    record = copy.deepcopy(record)
    *above, key = chance.choice(list(places(record)))
    node = record
    for name in above:
        node = node[name]
    how = chance.choice(["value", "value", "less", "more", "swap"])
    if how == "less":
        del node[key]
    elif how == "more" and isinstance(node, dict):
        more = chance.choice(["x", "_target_", "_args_", "0.mlp", "9.mlp", "path"])
        node[more] = chance.choice(EXTREMES)
    elif how == "swap":
        other = chance.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node[key], node[other] = node[other], node[key]
    else:
        node[key] = chance.choice(EXTREMES)
    return record


def fuzz(tries: int) -> dict[str, int]:
    """Mutates policies and label shards, `tries` of each."""
    chance, counts = random.Random(0), Counter[str]()
    with tempfile.TemporaryDirectory() as root:
        file = Path(root) / "policy.json"
        for _ in track(range(tries), "Fuzzing policies"):
            record = mutated(policy(), chance)
            file.write_text(json.dumps(record))
            counts["tried"] += 1
            _attempt(lambda: _in_range(read_policy(file, ())), counts)
        folder = Path(root) / "labels"
        store = LabelStore(folder, "a", UNITS)
        for i in range(8):
            store.add(LabelRow((3, 24 - i, i % 4, 20), 0.1 * i, 3 + i / 7, "sampler", 0.5))
        truth, shard = dict(store._rows), next(folder.glob("*.parquet"))
        whole = shard.read_bytes()
        for _ in track(range(tries), "Fuzzing shards"):
            data = bytearray(whole)
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            shard.write_bytes(data)
            counts["tried"] += 1
            _attempt(lambda: LabelStore(folder, "a", UNITS)._rows.items() <= truth.items(), counts)
    return {key: counts[key] for key in ("tried", "tracebacks", "wrong")}


def _attempt(reads_truth: Callable[[], bool], counts: Counter[str]) -> None:
    try:
        with redirect_stdout(io.StringIO()):  # hundreds of warnings of corrupt shards
            counts["wrong"] += not reads_truth()
    except PPFError:
        pass
    except Exception as error:
        say(f"{type(error).__name__}: {error}")
        counts["tracebacks"] += 1


def _in_range(record: dict[str, Any]) -> bool:
    units, kept = record["units"], record["kept"]
    return units.keys() == kept.keys() and all(
        type(kept[site]) is int and 0 <= kept[site] <= units[site] for site in units
    )


def server(searched: Commands) -> dict[str, float | bool]:
    """Health under load, the body and queue limits, and SIGTERM with open requests."""
    process = searched.start("serve", f"search={searched.folder}/run", "port=0", "limits.queue=8")
    assert process.stdout is not None
    line = next(line for line in process.stdout if "http://" in line)
    address = re.search(r"http://\S+:\d+", line)[0]  # type: ignore[index]
    with ThreadPoolExecutor(32) as threads:  # the server takes 16 and its queue 8
        asked = {"prompt": "Hello", "max_tokens": 900}
        answers = [threads.submit(_post, address, asked) for _ in range(32)]
        time.sleep(1)
        start = time.monotonic()
        httpx.get(f"{address}/health", timeout=60)
        health = time.monotonic() - start
        large = _post(address, {"prompt": "x" * (2 << 20)})
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        seconds = time.monotonic() - start
        codes = Counter(answer.result() for answer in answers)
    return {
        "health_seconds": round(health, 3),
        "sigterm_seconds": round(seconds, 1),
        "body_limit": large == 413,
        "queue_limit": codes[429] > 0,
        "server_errors": codes[500],
    }


def _post(address: str, content: dict[str, Any]) -> int:
    """The status; 0 if the connection was closed."""
    try:
        return httpx.post(f"{address}/v1/completions", json=content, timeout=90).status_code
    except httpx.HTTPError:
        return 0


def measure(small: bool) -> dict[str, dict[str, Any]]:
    """Runs all parts; returns the numbers of each.

    Args:
        small: fewer kills, damages and tries; without the server, which has its own tests.
    """
    with folders() as new:
        searched = new()
        known = {SEARCH: undisturbed(searched, "search", *SEARCH)}
        stages = [("search", SEARCH)]
        if not small:
            prune = (f"policy={searched.folder}/run/policy.json", "logger=none")
            stages += [("prune", prune), ("collect", TINY[:4]), ("train", TINY[:7])]
            stages += [("search", DYNAMIC)]
        found = {
            "fuzz": fuzz(50 if small else 300),
            "attacks": attacks(small),
            "damaged": damaged(searched, small),
            "kills": kills(stages, known, 1 if small else 3),
        }
        return found if small else {**found, "server": server(searched)}


def main() -> None:
    """Prints the numbers of all parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="fewer tries, no server")
    found = measure(parser.parse_args().small)
    for part, numbers in found.items():
        say(f"{part:<8}  " + ", ".join(f"{name} {value}" for name, value in numbers.items()))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
