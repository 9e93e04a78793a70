"""Processes that start from nothing: what two find, and how they end."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from pyarrow import parquet

from tests.articles import write_articles
from tests.cli.conftest import HASTY, TINY, only
from tests.commands import exit_code
from tests.ranks import free_port

PPO = (
    *("space.channel_multiple=16", "search.rounds=1", "agent=ppo", "agent.episodes=16"),
    *("agent.iterations=3", "agent.polish.generations=3"),
)
WITHIN = 60  # seconds


def labels_in(outputs: Path) -> dict[str, dict[tuple[int, ...], float]]:
    """Log-perplexities of labelled policies, by source. No policy may have two labels."""
    files = (outputs / "artefacts" / "labels").rglob("*.parquet")
    rows = [row for file in files for row in parquet.read_table(file).to_pylist()]
    assert len({tuple(row["kept"]) for row in rows}) == len(rows)
    found = defaultdict[str, dict[tuple[int, ...], float]](dict)
    for row in rows:
        found[row["source"]][tuple(row["kept"])] = row["nll"]
    return found


@pytest.mark.slow
def test_two_processes_of_fabric_run_find_what_one_finds(
    root: Path, cache: str, text: str, tmp_path: Path
) -> None:
    # Ranks draw other episodes than one process, so the best of several policies are compared.
    best = ["search.top_k=8", "search.selection_windows=0", "agent.polish.generations=20"]
    given = [*TINY, *PPO, *HASTY, text, *best]
    two, one = tmp_path / "two", tmp_path / "one"
    fabric = [str(Path(sys.executable).with_name("fabric")), "run", "--accelerator=cpu"]
    started = [*fabric, "--devices=2", f"--main-port={free_port()}", "search.py"]  # by torchrun
    done = subprocess.run(
        [*started, *given, "fabric=cpu", "fabric.devices=2", f"paths.outputs={two}"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # The other process may have measured some policies before rank 0 counts them.
    for line in ("Labelling 2[0-4] policies", "Training the predictor on 24", "against uniform"):
        assert len(re.findall(line, done.stdout)) == 1, done.stdout
    policy = json.loads(only(two, "policy.json").read_text())
    assert policy["measured"]["nll"] <= policy["uniform"]["measured"]["nll"]
    for file in ("metrics.csv", "report.html", "offline-run-*"):
        only(two, file)
    assert len(list(two.glob("search/*/*"))) == 1

    assert exit_code("search", [*given, "logger=none", f"paths.outputs={one}"]) == 0
    labels, expected = labels_in(two), labels_in(one)
    assert labels["sampler"] == pytest.approx(expected["sampler"])
    states = [torch.load(only(at, "predictor.ckpt"), weights_only=True) for at in (two, one)]
    torch.testing.assert_close(*states)
    own = json.loads(only(one, "policy.json").read_text())
    # Both gain about 0.16 nats per token over uniform pruning.
    assert policy["measured"]["nll"] <= own["measured"]["nll"] + 0.03


@pytest.mark.slow
def test_a_rank_ends_with_rank_0(root: Path, tmp_path: Path) -> None:
    windows = "text.windows={calibration:2,labelling:64,test:2}"
    long = [f"text.path={write_articles(tmp_path, 1024)}", "text.window=256", windows]
    given = ["model=tiny", "sampler=rough", "labels.count=2000", *long, "fabric.devices=2"]
    process = subprocess.Popen(
        [sys.executable, "collect.py", *given, "logger=none", f"paths.outputs={tmp_path}"],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 400
        while len(list(tmp_path.rglob("*.parquet"))) < 2:  # both label, for minutes
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.2)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=WITHIN)  # until both have closed their output
        assert process.returncode
    finally:
        with process, suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_an_interrupt_is_one_line(root: Path, tmp_path: Path) -> None:
    started = subprocess.Popen(
        [sys.executable, "search.py", *TINY, f"paths.outputs={tmp_path}"],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert started.stdout
    assert any("loading PyTorch" in line for line in started.stdout)
    said = ""
    while started.returncode is None:  # a module that is imported may swallow the first one
        started.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            said = started.communicate(timeout=15)[1]
    assert (started.returncode, said) == (130, "Interrupted: the same command resumes.\n")
