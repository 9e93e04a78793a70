"""What a config needs is known before it starts."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from transformers import LlamaConfig, T5Config

from ppf import plan as module
from ppf.conf import options, read_option
from ppf.errors import PPFError
from ppf.llm.shapes import known_shapes, skeleton
from ppf.plan import GIB, Plan, Speed, check_capacity, free_gib, group_limit, show
from ppf.predictor.base import drawn_labels
from ppf.pruning.bank import solving_gib
from ppf.pruning.compensation import LeastSquares
from ppf.pruning.signatures import signatures
from tests.agents.synthetic import one_process
from tests.checkpoints import CHECKPOINTS, each
from tests.composing import command_config
from tests.memory import peak_bytes

CPU = torch.device("cpu")
BILLIONS = {
    "gemma3_1b": 1.000,
    "llama2_7b": 6.738,
    "llama3_8b": 8.030,
    "llama3_70b": 70.55,
    "opt_1_3b": 1.316,
    "pythia_1_4b": 1.415,
    "qwen2_5_0_5b": 0.494,
    "qwen2_5_coder_0_5b": 0.630,
    "qwen3_0_6b": 0.596,
    "qwen3_4b": 4.022,
    "qwen3_30b_a3b": 30.532,
    "smollm2_135m": 0.1345,
}
SPEED = Speed(layer=1e-3, product=1e-11)


def config(*overrides: str) -> DictConfig:
    return command_config("search", ["model.dtype=bfloat16", "fabric=cpu", *overrides])


def gib(*overrides: str, processes: int = 1) -> tuple[float, float]:
    return Plan(config(*overrides), CPU).gib(processes)


def test_every_named_model_is_planned_without_its_weights() -> None:
    cfg = config("space.channel_multiple=1")
    assert BILLIONS.keys() == {*options("model")} - {"local", "tiny"} <= known_shapes().keys()
    for name, billions in BILLIONS.items():
        cfg.model = read_option("model", name)
        plan = Plan(cfg, CPU)
        assert plan.parameters / 1e9 == pytest.approx(billions, rel=2e-3)


def test_a_model_of_an_unknown_structure_is_not_planned(tmp_path: Path) -> None:
    LlamaConfig(hidden_size=64, num_hidden_layers=1).save_pretrained(tmp_path)
    other = config("model=llama3_8b", f"model.source.repository={tmp_path}")
    assert skeleton(other.model)[0].config.hidden_size == 64
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(PPFError, match="model family 't5' is not supported"):
        Plan(config(f"model.path={tmp_path}"), CPU)


def test_offloaded_layers_take_no_memory_and_levels_what_they_may() -> None:
    memory, disk = gib("model=llama2_7b")
    assert memory - gib("model=llama2_7b", "model.offload=disk")[0] == pytest.approx(11.7, abs=0.3)
    large = [gib("model=llama2_7b", f"bank.max_gib={most}")[0] for most in (14, 24)]
    assert large[1] - large[0] == pytest.approx(10)
    assert disk - gib("model=llama2_7b", "compensation=none")[1] == pytest.approx(8.3, abs=0.5)
    two = gib("model=llama2_7b", processes=2)
    assert two == (pytest.approx(2 * memory), disk)  # artefacts are shared


@each("name", [name for name in CHECKPOINTS if "32" not in name])
def test_a_layer_of_every_family_is_timed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TIMED", 0.01)
    CHECKPOINTS[name].save_pretrained(tmp_path)
    speed = Speed.measured(config(f"model.path={tmp_path}", "text.window=16"), CPU)
    assert all(0 < seconds < 1 for seconds in speed)


@pytest.mark.parametrize(("rows", "columns"), [(384, 1344), (768, 768)])
def test_no_solution_takes_more_memory_than_planned(rows: int, columns: int) -> None:
    weight, gram = torch.randn(rows, columns), torch.eye(columns)
    method, widths = LeastSquares(damping=0.01, refit_damping=0.1), range(0, columns + 1, 64)

    def solve() -> None:
        moments = gram.flip(0).flip(1)  # as `Bank.build`, which brings and permutes the moments
        method.levels(weight.clone(), moments, gram[0], widths)

    peak = peak_bytes(solve) + gram.nbytes
    allowed = GIB * solving_gib(rows, columns)
    assert 0.6 * allowed < peak <= allowed


@pytest.mark.parametrize(
    ("given", "drawn", "count"),
    [
        ((), 1, 1 + 40 + 7),
        (("labels.count=64",), 64, 64 + 40 + 7),
        (("predictor=residual",), 128, 128 + 40 + 7),
        (("search.rounds=3",), 1, 1 + 12 + 7),
        (("mode=chain",), 1, 1 + 6 * (1 + 20) + 6 + 2 * 11),
        (("mode=dynamic",), 128, 128 + 5 * 12 + 2 * 11),
    ],
)
def test_the_policies_of_a_search_are_counted(
    given: tuple[str, ...], drawn: int, count: int
) -> None:
    cfg = config("model=tiny", *given)
    assert drawn_labels(cfg) == drawn
    assert Plan(cfg, CPU).labels == count


def has(monkeypatch: pytest.MonkeyPatch, memory: float, disk: float) -> None:
    monkeypatch.setattr(module, "free_gib", lambda *_: (memory, disk))


@pytest.mark.parametrize(
    ("memory", "disk", "told"),
    [
        (12, 40, r"needs 19\.\d GiB of memory, but 12\.0 GiB are free: lower bank\.max_gib"),
        (24, 20, r"needs 24\.\d GiB of disk, but 20\.0 GiB are free: give .* paths\.artefacts="),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    memory: float, disk: float, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config("model=llama2_7b")
    has(monkeypatch, 24, 40)
    check_capacity(cfg, one_process())
    has(monkeypatch, memory, disk)
    with pytest.raises(PPFError, match=told) as caught:
        check_capacity(cfg, one_process())
    assert "dtype" not in str(caught.value), "the weights have bfloat16 already"


def test_a_plan_is_a_table_and_a_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    has(monkeypatch, 24, 40)
    monkeypatch.setattr(Speed, "measured", lambda *_: SPEED)
    show(config("model=llama2_7b", f"paths.artefacts={tmp_path}", f"paths.cache={tmp_path}"))
    told = " ".join(capsys.readouterr().out.split())
    for said in ("6.74 billion parameters", "about 8.9 GiB", "1 ms for a token", "100 GFLOP/s",
                 "24.8 GiB of 40.0 of disk."):  # fmt: skip
        assert said in told
    assert "whole run" in told and told.endswith("It fits.")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_lowest_limit_of_the_groups_above_counts(tmp_path: Path) -> None:
    own = tmp_path / "jobs" / "mine"
    own.mkdir(parents=True)
    membership = tmp_path / "cgroup"
    membership.write_text("0::/jobs/mine\n")
    assert group_limit(membership, tmp_path) == math.inf
    (own / "memory.max").write_text("max\n")
    (own.parent / "memory.max").write_text("100\n")
    assert group_limit(membership, tmp_path) == 100


def test_files_that_exist_need_no_further_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config("model=tiny", f"paths.artefacts={tmp_path}", f"paths.cache={tmp_path}")
    free = partial(free_gib, cfg, CPU)
    names = signatures(cfg, CPU)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("", (), {"free": GIB})())
    assert free()[1] == 1
    for file in (f"statistics/{names.statistics}/0", f"bank/{names.bank}/torch.bfloat16/0"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_bytes(bytes(2**20))
    assert free()[1] == pytest.approx(1 + 2 * 2**20 / GIB)
