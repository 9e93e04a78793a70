"""What a config needs is known before it starts, and refused if the machine is too small."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from ppf.context import plan
from ppf.context.plan import Free, Need, Sizes, Speeds, needs, refuse_what_does_not_fit
from ppf.errors import PPFError
from ppf.llm.shapes import known_shapes, skeleton
from tests.test_configs import CONF

CPU = torch.device("cpu")
SPEEDS = Speeds(1e12, 1e12, 1e12)
MODELS = sorted({f.stem for f in (CONF / "model").glob("*.yaml")} - {"local", "tiny"})
BILLIONS = {"llama2_7b": 6.738, "llama3_8b": 8.030, "qwen2_5_0_5b": 0.494, "smollm2_135m": 0.1345}


def config(*overrides: str) -> DictConfig:
    with initialize_config_module("ppf.conf", version_base="1.3"):
        return compose("search", ["model.dtype=bfloat16", *overrides])


def planned(*overrides: str) -> dict[str, Need]:
    return {need.stage: need for need in needs(Sizes.of(config(*overrides), CPU), SPEEDS)}


@pytest.mark.parametrize("name", MODELS)
def test_every_named_model_is_planned_without_its_weights(name: str) -> None:
    assert name in known_shapes()
    sizes = Sizes.of(config(f"model={name}", "space.channel_multiple=1"), CPU)
    assert sizes.parameters / 1e9 == pytest.approx(
        BILLIONS.get(name, sizes.parameters / 1e9), rel=2e-3
    )
    assert all(need.memory > sizes.weights for need in needs(sizes, SPEEDS))


def test_the_structure_of_an_unknown_model_is_asked_for() -> None:
    with pytest.raises(PPFError, match="model.path=FOLDER"):
        skeleton(config("model=local").model)


def test_offloaded_layers_take_no_memory() -> None:
    resident, offloaded = (
        planned("model=llama2_7b"),
        planned("model=llama2_7b", "model.offload=disk"),
    )
    for stage, need in offloaded.items():
        assert resident[stage].memory - need.memory == pytest.approx(11.7, abs=0.3)
    assert (
        sum(need.disk for need in offloaded.values()) > sum(n.disk for n in resident.values()) + 11
    )


def test_moments_take_the_disk_that_they_are_written_to(tmp_path: Path) -> None:
    need = planned("model=llama2_7b")["observing the dense model"]
    assert need.disk == pytest.approx(32 * 4 * (4096**2 + 11008**2) / 2**30)


def test_a_bank_that_fits_is_in_memory_and_not_on_disk() -> None:
    stage = "building the bank"
    small, large = planned("model=llama2_7b"), planned("model=llama2_7b", "bank.max_gib=14.0")
    assert small[stage].disk == pytest.approx(large[stage].disk) == pytest.approx(11.9, abs=0.5)
    assert large[stage].memory - small[stage].memory == pytest.approx(small[stage].disk)
    assert planned("model=llama2_7b", "compensation=none")[stage].disk == 0


@pytest.mark.parametrize(
    ("gib", "remedy"),
    [
        (24, None),
        (15, "give model.offload=disk"),
        (2, "give a smaller model, or use a machine with more memory"),
    ],
)
def test_too_little_memory_is_refused_with_the_override_that_mends_it(
    gib: float, remedy: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan.Free, "on", lambda *_: Free(gib, gib, 100))
    cfg = config("model=llama2_7b", f"paths.artefacts={tmp_path}", f"paths.cache={tmp_path}")
    if remedy is None:
        refuse_what_does_not_fit(cfg, CPU)
        return
    with pytest.raises(PPFError, match=f"GiB are free: {remedy}.$"):
        refuse_what_does_not_fit(cfg, CPU)


def test_too_small_a_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan.Free, "on", lambda *_: Free(100, 100, 3))
    cfg = config("model=llama2_7b", f"paths.artefacts={tmp_path}", f"paths.cache={tmp_path}")
    with pytest.raises(PPFError, match=r"of disk, but 3.0 GiB are free .* paths.artefacts=FOLDER"):
        refuse_what_does_not_fit(cfg, CPU)
    made = tmp_path / "statistics" / plan.signatures(cfg, CPU).statistics / "0000.safetensors"
    made.parent.mkdir(parents=True)
    with made.open("wb") as file:
        file.truncate(30 * 2**30)  # a sparse file
    refuse_what_does_not_fit(cfg, CPU)


def test_small_sizes_are_told_in_mib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan.Free, "on", lambda *_: Free(100, 100, 0.25))
    cfg = config(f"paths.artefacts={tmp_path}", f"paths.cache={tmp_path}")
    with pytest.raises(PPFError, match=r"needs \d\.\d GiB of disk, but 256 MiB are free"):
        refuse_what_does_not_fit(cfg, CPU)


def test_what_is_free_here_is_found(tmp_path: Path) -> None:
    free = Free.on(CPU, tmp_path / "not" / "yet")
    assert free.memory == free.host > 0.01 and free.disk > 0.001
