"""What a config needs is known before it starts."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from transformers import LlamaConfig, T5Config

from ppf.errors import PPFError
from ppf.llm.shapes import known_shapes, skeleton
from ppf.planning.evaluations import drawn_labels, evaluations, gradient_sets
from ppf.planning.plan import GIB, Need, Sizes, Speeds, needs, solving
from ppf.pruning.compensation import Factors, LeastSquares
from tests.memory import peak_bytes
from tests.test_configs import CONF

CPU = torch.device("cpu")
SPEEDS = Speeds(1e12, 1e12, 1e12)
MODELS = sorted({f.stem for f in (CONF / "model").glob("*.yaml")} - {"tiny"})
BILLIONS = {
    "gemma3_1b": 1.000,
    "llama2_7b": 6.738,
    "llama3_8b": 8.030,
    "llama3_70b": 70.55,
    "opt_1_3b": 1.316,
    "pythia_1_4b": 1.415,
    "qwen2_5_0_5b": 0.494,
    "qwen3_0_6b": 0.596,
    "qwen3_4b": 4.022,
    "smollm2_135m": 0.1345,
}


def config(*overrides: str) -> DictConfig:
    with initialize_config_module("ppf.conf", version_base="1.3"):
        return compose("search", ["model.dtype=bfloat16", *overrides])


def planned(*overrides: str, device: torch.device = CPU, processes: int = 1) -> dict[str, Need]:
    sizes = Sizes.of(config(*overrides), device, processes)
    return {need.stage: need for need in needs(sizes, SPEEDS)}


def gpus(monkeypatch: pytest.MonkeyPatch, count: int, gib: float) -> None:
    """Pretends that this machine has GPUs with so much free memory."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(gib * GIB), 80 * GIB))


@pytest.mark.parametrize("name", MODELS)
def test_every_named_model_is_planned_without_its_weights(name: str) -> None:
    assert name in known_shapes()
    sizes = Sizes.of(config(f"model={name}", "space.channel_multiple=1"), CPU)
    assert sizes.parameters / 1e9 == pytest.approx(BILLIONS[name], rel=2e-3)
    assert all(need.memory > sizes.weights for need in needs(sizes, SPEEDS))


def test_the_structure_of_an_unknown_model_is_asked_for() -> None:
    with pytest.raises(PPFError, match="model.path=FOLDER"):
        skeleton(config("model.source=null").model)


def test_a_named_model_of_another_repository_has_a_structure_of_its_own(tmp_path: Path) -> None:
    LlamaConfig(hidden_size=64, num_hidden_layers=1).save_pretrained(tmp_path)
    other = config("model=llama3_8b", f"model.source.repository={tmp_path}")
    assert skeleton(other.model).model.config.hidden_size == 64


def test_families_that_transformers_would_not_build_are_refused_in_one_sentence(
    tmp_path: Path,
) -> None:
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(PPFError, match="model family 't5' is not supported"):
        skeleton(config(f"model.path={tmp_path}").model)


def test_on_a_cpu_layers_cannot_be_offloaded_to_the_cpu() -> None:
    resident = planned("model=llama2_7b")
    assert planned("model=llama2_7b", "model.offload=cpu") == resident


def test_offloaded_layers_take_no_memory() -> None:
    resident, offloaded = (
        planned("model=llama2_7b"),
        planned("model=llama2_7b", "model.offload=disk"),
    )
    for stage, need in offloaded.items():
        assert resident[stage].memory - need.memory == pytest.approx(11.7, abs=0.3)
    assert sum(need.offloaded for need in offloaded.values()) == pytest.approx(12.06, abs=0.05)
    assert sum(need.offloaded for need in resident.values()) == 0


def test_moments_take_the_disk_that_they_are_written_to() -> None:
    need = planned("model=llama2_7b")["observing the dense model"]
    assert need.disk == pytest.approx(32 * 4 * (4096**2 + 11008**2) / 2**30)


def test_a_bank_that_fits_is_in_memory_and_not_on_disk() -> None:
    stage = "building the bank"
    small, large = planned("model=llama2_7b"), planned("model=llama2_7b", "bank.max_gib=14.0")
    assert small[stage].disk == pytest.approx(large[stage].disk) == pytest.approx(11.9, abs=0.5)
    later = large["expected losses"].memory - small["expected losses"].memory
    assert later == pytest.approx(small[stage].disk)
    assert planned("model=llama2_7b", "compensation=none")[stage].disk == 0


@pytest.mark.parametrize(("rows", "columns"), [(384, 1344), (768, 768)])
def test_no_solution_takes_more_memory_than_planned(rows: int, columns: int) -> None:
    weight, gram = torch.randn(rows, columns), torch.eye(columns)
    method, widths = LeastSquares(damping=0.01, refit_damping=0.1), range(0, columns + 1, 64)

    def solve() -> None:
        moments = gram.flip(0).flip(1)  # as `Bank.build`, which brings and permutes the moments
        method.levels(weight.clone(), moments, gram[0], widths, factored=True)

    peak = peak_bytes(solve) + gram.nbytes
    planned = GIB * solving([(rows, columns)])
    assert 0.6 * planned < peak <= planned


def test_factors_are_not_in_memory_while_sites_are_solved() -> None:
    sizes = Sizes.of(config("model=llama2_7b", "bank.max_gib=14.0"), CPU)
    building = {need.stage: need for need in needs(sizes, SPEEDS)}["building the bank"]
    assert sizes.bank_in_memory == pytest.approx(11.9, abs=0.1)
    assert building.memory == pytest.approx(sizes.weights + sizes.bank_in_memory + 0.7)


def test_every_process_on_a_machine_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = planned("model=llama2_7b"), planned("model=llama2_7b", processes=2)
    for stage in ("observing the dense model", "building the bank", "48 labels"):
        assert two[stage].memory == two[stage].host == pytest.approx(2 * one[stage].memory)
        assert two[stage].disk == one[stage].disk  # artefacts are shared
    losses = two["expected losses"].memory  # only rank 0 has their hidden states
    assert one["expected losses"].memory + 12 < losses < 2 * one["expected losses"].memory
    gpus(monkeypatch, 8, 79)
    given = "model=llama3_70b", "model.offload=cpu"
    eight = planned(*given, device=torch.device("cuda"), processes=8)["48 labels"]
    assert 8 * (131 + 45) < eight.host < 8 * (135 + 45)  # 45: compensated weights
    assert eight.memory < 40
    held = planned("model=llama2_7b", "model.offload=disk", processes=2)
    assert held["observing the dense model"].offloaded == pytest.approx(24.1, abs=0.1)


def test_sequential_re_estimation_holds_the_hidden_states_five_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = "sequential re-estimation"
    given = ("model=llama3_8b", "text.window=2048", "text.windows.calibration=128")
    asked = (*given, "report_test=true", "sequential=true")
    needed = planned(*asked)
    more = 10 + solving([(4096, 14336)])
    assert needed[stage].memory - needed["48 labels"].memory == pytest.approx(more)
    assert needed[stage].host == needed[stage].memory
    two = planned(*asked, processes=2)  # only rank 0 re-estimates
    assert two[stage].memory - two["48 labels"].memory == pytest.approx(more)
    gpus(monkeypatch, 1, 79)
    on_gpu = planned(*asked, device=torch.device("cuda"))
    assert on_gpu[stage].memory - on_gpu["48 labels"].memory == pytest.approx(more)
    assert on_gpu[stage].host == on_gpu["48 labels"].host
    for other in (
        (*given, "sequential=true"),  # without report_test nothing is re-estimated
        (*asked, "compensation=none"),
        (*asked, "model=gemma3_1b"),
    ):
        assert stage not in planned(*other)


def test_rounded_matrices_of_a_policy_count() -> None:
    given = ("model=llama2_7b", "space=mlp", "compensation=none")
    for more in ((), ("model.offload=disk",)):
        found = planned(*given, *more, "budget=bytes", "rules=bytes")
        (need,) = (need for stage, need in found.items() if stage.endswith(" labels"))
        before = planned(*given, *more)["48 labels"]
        copied = 2 * 32 * 3 * 4096 * 11008 / GIB
        assert need.memory - before.memory == pytest.approx(copied)


class Counting:
    """A matrix that counts the numbers that are read from it."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix, self.read = matrix, 0

    def __getitem__(self, part: Any) -> torch.Tensor:
        found = self.matrix[part]
        self.read += found.numel()
        return found


def test_the_table_of_sizes_is_what_a_label_reads() -> None:
    rows, columns, kept = 80, 320, 224  # 70 % of the columns
    projected, inverse = (Counting(torch.zeros(n, columns)) for n in (rows, columns))
    Factors(projected, inverse, [kept])[0]
    assert projected.read == 0.7 * rows * columns
    assert inverse.read == pytest.approx(0.28 * columns**2, rel=0.02)
    page = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith("| bytes of the factors"))
    shown = [float(number) for number in re.findall(r"([\d.]+) GiB", row)]
    for name, gib in zip(("llama2_1b", "llama2_7b", "llama3_8b", "llama3_70b"), shown, strict=True):
        of_name = [f"model={name}"] if name in MODELS else ["model=llama2_7b", f"model.name={name}"]
        sizes = Sizes.of(config(*of_name), CPU)
        read = sum(0.7 * h * n + 0.28 * n**2 for h, n in sizes.consumers)
        assert 2 * read / GIB == pytest.approx(gib, rel=0.01, abs=0.05)


def test_gradients_are_counted_for_every_round_but_the_last() -> None:
    # After the first round, the best of seven rules and four proposals may have ten after it.
    assert gradient_sets(config()) == (8, 3 + 8)
    # Of 48 policies, five rounds measure eight, one measures four, and the last has four reserved.
    assert gradient_sets(config("search.neighbours=1")) == (8, 4 + 5 * 2)
    assert gradient_sets(config("agent=uniform")) == (8, 0)
    assert gradient_sets(config("predictor.windows=0")) == (0, 0)
    assert gradient_sets(config("budget=bytes")) == (0, 0)
    # Six searches of five rounds each; the last round of the last one is not counted. Five searches
    # measure uniform pruning in addition.
    assert gradient_sets(config("mode=chain")) == (8, 3 + 28 + 5)


@pytest.mark.parametrize(
    ("given", "count"),
    [((), 1), (("labels.count=64",), 64), (("predictor=residual",), 128)],
)
def test_the_predictor_decides_how_many_policies_are_drawn_unless_it_is_given(
    given: tuple[str, ...], count: int
) -> None:
    assert drawn_labels(config(*given)) == count
    assert evaluations(config(*given)) == count + 40 + 7


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ((), 1 + 6 * (1 + 19) + 6 + 2 * 5),  # six of the eleven ratios are searched
        (("ratios=[0.15,0.12]",), 1 + 6 * (1 + 19) + 6 + 2),
        (("agent=uniform",), 1 + 6 * 2 + 2 * 5),
        (
            ("predictor=oracle", "agent=evolution", "search.rounds=1"),
            1 + 6 * (1 + 2 + 40 * 192) + 5 + 6 + 2 * 5,
        ),
    ],
)
def test_the_policies_of_a_chain_are_counted(given: tuple[str, ...], count: int) -> None:
    assert evaluations(config("mode=chain", *given)) == count
