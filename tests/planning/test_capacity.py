"""A config that does not fit on this machine is refused, with an override that makes it fit."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from tests.context.test_plan import CPU, config, gpus

from ppf.conf import plain
from ppf.context import capacity
from ppf.errors import PPFError
from ppf.llm.divide import check_division
from ppf.planning.capacity import Comparison, Free, refusal, refuse_what_does_not_fit
from ppf.policy_file import policy_config
from ppf.pruning.signatures import recorded, signatures

CUDA = torch.device("cuda")
LARGE = ("model=llama3_70b",)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, ...]:
    return tuple(f"paths.{name}={tmp_path}" for name in ("artefacts", "cache", "run"))


def free(monkeypatch: pytest.MonkeyPatch, *gib: float) -> None:
    monkeypatch.setattr(capacity.Free, "on", lambda *_: Free(*gib))


def refused(cfg: DictConfig, device: torch.device, processes: int) -> str | None:
    return refusal(cfg, device, Comparison.of(cfg, device, processes))


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
    monkeypatch.setattr(capacity.Free, "on", lambda *_: Free(gib, gib, 100))
    cfg = config("model=llama2_7b", f"paths.artefacts={tmp_path}", f"paths.cache={tmp_path}")
    if remedy is None:
        refuse_what_does_not_fit(cfg, CPU, 1)
        return
    with pytest.raises(PPFError, match=f"GiB are free: {remedy}.$"):
        refuse_what_does_not_fit(cfg, CPU, 1)


def test_too_small_a_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity.Free, "on", lambda *_: Free(100, 100, 3))
    cfg = config("model=llama2_7b", f"paths.artefacts={tmp_path}", f"paths.cache={tmp_path}")
    with pytest.raises(PPFError, match=r"of disk, but 3.0 GiB are free .* paths.artefacts=FOLDER"):
        refuse_what_does_not_fit(cfg, CPU, 1)
    made = tmp_path / "statistics" / signatures(cfg, CPU).statistics / "0000.safetensors"
    made.parent.mkdir(parents=True)
    with made.open("wb") as file:
        file.truncate(30 * 2**30)  # a sparse file
    refuse_what_does_not_fit(cfg, CPU, 1)


def test_small_sizes_are_told_in_mib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity.Free, "on", lambda *_: Free(100, 100, 0.25))
    cfg = config(f"paths.artefacts={tmp_path}", f"paths.cache={tmp_path}")
    with pytest.raises(PPFError, match=r"needs \d\.\d GiB of disk, but 256 MiB are free"):
        refuse_what_does_not_fit(cfg, CPU, 1)


def test_what_is_free_here_is_found(tmp_path: Path) -> None:
    free = Free.on(CPU, tmp_path / "not" / "yet", tmp_path)
    assert free.memory == free.host > 0.01 and free.disk > 0.001 and free.cache is None


def test_no_more_is_free_than_the_limit_of_a_container_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "left_by_groups", lambda: 2**20)
    free = Free.on(CPU, tmp_path, tmp_path)
    assert free.memory == free.host == 2**-10


def test_a_large_model_fits_on_eight_gpus(
    folders: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, 8, 79)
    free(monkeypatch, 79, 900, 900)
    cfg = config(*LARGE, *folders, "model.device_map=auto")
    assert refused(cfg, CUDA, 1) is None
    assert Comparison.of(cfg, CUDA, 1).sizes.bank.resident


@pytest.mark.parametrize(
    ("overrides", "count", "memory", "processes", "remedy"),
    [
        ([], 8, 79, 1, "model.device_map=auto"),
        ([], 8, 79, 8, "model.device_map=auto fabric.devices=1"),
        ([], 8, 50, 8, "model.offload=cpu fabric.devices=5"),
        ([], 1, 79, 1, "model.offload=cpu"),
        (["model.device_map=auto"], 2, 79, 1, "model.device_map=null model.offload=cpu"),
        (["model.offload=cpu"], 8, 79, 8, "fabric.devices=5"),
    ],
)
def test_the_remedy_makes_it_fit(
    overrides: list[str],
    count: int,
    memory: float,
    processes: int,
    remedy: str,
    folders: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpus(monkeypatch, count, memory)
    free(monkeypatch, memory, 900, 900)
    given = [*LARGE, *folders, f"fabric.devices={processes}", *overrides]
    told = refused(config(*given), CUDA, processes)
    assert told and told.endswith(f"are free: give {remedy}."), told
    words = remedy.split()
    mended = config(*given, *words)
    left = next((int(w[15:]) for w in words if w.startswith("fabric.devices=")), processes)
    check_division(mended.model, CUDA, left)
    assert refused(mended, CUDA, left) is None


def test_two_processes_need_twice_the_memory(
    folders: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 20, 20, 100)
    cfg = config("model=llama2_7b", "fabric.devices=2", *folders)
    refuse_what_does_not_fit(cfg, CPU, 1)
    with pytest.raises(PPFError, match="GiB of memory for 2 processes.*: give fabric.devices=1.$"):
        refuse_what_does_not_fit(cfg, CPU, 2)


def test_offloaded_weights_need_the_disk_of_the_cache(
    folders: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 100, 100, 30, 5)
    cfg = config("model=llama2_7b", "model.offload=disk", *folders)
    with pytest.raises(PPFError, match="needs 12.1 GiB .* 5.0 GiB are free .* paths.cache=FOLDER"):
        refuse_what_does_not_fit(cfg, CPU, 1)
    free(monkeypatch, 100, 100, 30)
    with pytest.raises(PPFError, match="needs 40.4 GiB of disk"):
        refuse_what_does_not_fit(cfg, CPU, 1)
    free(monkeypatch, 15, 15, 30, 5)  # offload=disk would mend the memory, but not here
    with pytest.raises(PPFError, match="use a machine with more memory"):
        refuse_what_does_not_fit(config("model=llama2_7b", *folders), CPU, 1)


def test_the_remedy_for_a_policy_is_a_key_of_its_commands(
    folders: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config("model=llama2_7b", "bank.max_gib=14.0", *folders)
    record = {"config": plain(recorded(cfg))}
    free(monkeypatch, 24, 24, 100)
    with pytest.raises(PPFError, match="free: give bank.max_gib=0.0.$"):
        refuse_what_does_not_fit(policy_config(record, cfg), CPU, 1)
    free(monkeypatch, 15, 15, 100)  # model.offload=disk is for commands with a key `model`
    with pytest.raises(PPFError, match="free: use a machine with more memory.$"):
        refuse_what_does_not_fit(policy_config(record, cfg), CPU, 1)


@pytest.mark.parametrize(
    ("command", "gib", "remedy"),
    [
        ("prune", 40, "bank.max_gib=0.0"),
        ("prune", 31, "dtype=bfloat16"),
        ("prune", 22, "dtype=bfloat16 bank.max_gib=0.0"),
        ("recover", 22, None),
        ("prune", 15, None),
    ],
)
def test_weights_are_loaded_in_the_number_format_of_the_search_where_that_helps(
    command: str,
    gib: float,
    remedy: str | None,
    folders: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record = {"config": plain(recorded(config("model=llama2_7b", *folders)))}
    with initialize_config_module("ppf.conf", version_base="1.3"):
        cfg = compose(command, ["dtype=float32", "bank.max_gib=24.0", *folders])
    free(monkeypatch, gib, gib, 100)
    told = f"give {remedy}" if remedy else "use a machine with more memory"
    with pytest.raises(PPFError, match=f"in float32 needs .* free: {told}.$"):
        refuse_what_does_not_fit(policy_config(record, cfg), CPU, 1, "float32")


def test_the_memory_of_sequential_re_estimation_can_be_saved(
    folders: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("model=llama2_7b", "text.window=2048", *folders)
    cfg = config(*given, "report_test=true", "sequential=true")
    free(monkeypatch, 24, 24, 100)
    refuse_what_does_not_fit(config(*given), CPU, 1)
    told = "^sequential re-estimation of .* free: give sequential=false.$"
    with pytest.raises(PPFError, match=told):
        refuse_what_does_not_fit(cfg, CPU, 1)
    of_policy = policy_config({"config": plain(recorded(cfg))}, cfg)
    refuse_what_does_not_fit(of_policy, CPU, 1)
    of_policy.sequential = True
    with pytest.raises(PPFError, match=told):
        refuse_what_does_not_fit(of_policy, CPU, 1)


def test_the_memory_is_that_of_the_dtype_in_which_weights_are_loaded(
    folders: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config("model=llama2_7b", "model.dtype=bfloat16", "bank.max_gib=0.0", *folders)
    free(monkeypatch, 24, 24, 100)
    refuse_what_does_not_fit(cfg, CPU, 1)
    with pytest.raises(PPFError, match="of model=llama2_7b in float32 needs"):
        refuse_what_does_not_fit(cfg, CPU, 1, "float32")
    cfg.model.dtype = "float32"  # in which the weights are loaded first
    with pytest.raises(PPFError, match="of model=llama2_7b in float32 needs"):
        refuse_what_does_not_fit(cfg, CPU, 1, "bfloat16")
