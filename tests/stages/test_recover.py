"""Recovery of the tiny model, from a policy or a folder to a Hugging Face folder."""

import json
import multiprocessing
import random
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock, Timeout
from gguf import GGUFReader
from hydra import compose, initialize_config_module
from lightning import Fabric
from lightning.pytorch.loggers import CSVLogger
from omegaconf import DictConfig
from transformers import AutoModelForCausalLM, PreTrainedModel

from ppf.cli.checks import check
from ppf.conf import read_option
from ppf.errors import PPFError
from ppf.evaluation.perplexity import mean_nll
from ppf.export.loading import load_folder
from ppf.llm import load
from ppf.policy_file import read_policy
from ppf.pruning.observed import Observed
from ppf.recovery import fit, token_losses
from ppf.recovery.data import WindowSampler
from ppf.recovery.likeliest import read_likeliest
from ppf.recovery.losses import KL, distance
from ppf.recovery.module import BlockModule, RecoveryModule, TunedModule
from ppf.recovery.results import RecoveryScore
from ppf.recovery.settings import TrainingRun
from ppf.stages import prune
from ppf.stages.recover import recover
from ppf.text.parts import build_text
from ppf.text.training import training_text
from ppf.threads import cpu_threads
from tests.recoveries import KilledError, kill, recovery_config
from tests.searched import write_search

AVERAGED = ("recovery.tokens=1536", "recovery.ema=0.9", "recovery.validate_every=3")
LR = {"full": 3e-3, "lora": 1e-2, "norms_and_biases": 1e-2}


@pytest.fixture(scope="module")
def searched(cache: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with policy.json, text.txt and artefacts; the uniform policy at 0.3.

    Bias compensation loses more than the default, so there is more to recover.
    """
    folder = tmp_path_factory.mktemp("searched")
    write_search(folder, cache, "compensation=bias")
    return folder


@pytest.fixture(scope="module")
def start(searched: Path, cache: str) -> Path:
    """The folder of the pruned model."""
    paths = [f"paths.{name}={searched}/{name}" for name in ("run", "artefacts")]
    given = [f"policy={searched}/policy.json", f"paths.cache={cache}", *paths]
    cfg = compose_prune(*given, f"out={searched}/pruned")
    prune.main(cfg, Fabric(accelerator="cpu", devices=1))
    return Path(cfg.out)


def configured(searched: Path, start: Path, cache: str, folder: Path, *given: str) -> DictConfig:
    own = (f"path={start}", "recovery.tokens=1024", "recovery.validate_every=4")
    artefacts = f"paths.artefacts={folder}/artefacts"
    return recovery_config(searched, cache, folder, *own, artefacts, *given)


@pytest.fixture
def config(searched: Path, start: Path, cache: str, tmp_path: Path) -> Any:
    return partial(configured, searched, start, cache, tmp_path)


@pytest.fixture(scope="module")
def unbroken(
    searched: Path, start: Path, cache: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[DictConfig, dict[str, torch.Tensor]]:
    """The config of a finished run, and the weights that it has written."""
    cfg = configured(searched, start, cache, tmp_path_factory.mktemp("unbroken"), *AVERAGED)
    return cfg, recovered(cfg)


def compose_prune(*overrides: str) -> DictConfig:
    with initialize_config_module("ppf.conf", version_base="1.3"):
        return compose("prune", list(overrides))


def run(cfg: DictConfig) -> RecoveryScore:
    (score,) = recover(cfg, Fabric(accelerator="cpu", devices=1)).scores
    return score


def recovered(cfg: DictConfig) -> dict[str, torch.Tensor]:
    """The weights that a run writes."""
    run(cfg)
    return weights(Path(cfg.out))


def read_folder(folder: Path) -> PreTrainedModel:
    model = load_folder(folder, torch.float32, trust_remote_code=False)[0]
    return model.eval().requires_grad_(False)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_folder(folder).state_dict()


@pytest.mark.parametrize("tune", LR)
def test_each_tuner_wins_nats_back_and_exports_a_plain_folder(
    config: Any, start: Path, tune: str
) -> None:
    cfg = config(f"tune={tune}", f"tune.{tune}.lr={LR[tune]}")
    found, folder = run(cfg), Path(cfg.out)
    assert found.won_back is not None and found.won_back > 0.02
    assert {f.name for f in folder.iterdir()} == {f.name for f in start.iterdir()}
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert model.state_dict().keys() == weights(start).keys()
    changed = {k for k, w in weights(start).items() if not torch.equal(w, model.state_dict()[k])}
    vectors = {k for k, w in weights(start).items() if w.ndim == 1}
    projections = {k for k, w in weights(start).items() if "proj" in k and w.ndim == 2}
    layers = {k for k in weights(start) if "embed" not in k and "lm_head" not in k}
    assert changed == {"full": layers, "lora": projections, "norms_and_biases": vectors}[tune]


@pytest.mark.gpu
@pytest.mark.parametrize("tune", ["full", "lora", "blockwise"])
def test_a_gpu_trains_and_measures(config: Any, tune: str) -> None:
    cfg = config(f"tune={tune}", "fabric.accelerator=gpu", "trainer.precision=bf16-mixed")
    (score,) = recover(cfg, Fabric(accelerator="gpu", devices=1)).scores
    assert score.recovered != score.pruned


def test_recovered_weights_are_written_for_llama_cpp(config: Any, tmp_path: Path) -> None:
    cfg = config("tune=norms_and_biases", "recovery.tokens=256")
    expected = recovered(cfg)
    given = (f"path={cfg.out}", f"paths.run={tmp_path}/run", f"out={tmp_path}/gguf")
    wanted = compose_prune(*given, "export=gguf")
    check(wanted)
    prune.main(wanted, Fabric(accelerator="cpu", devices=1))
    (file,) = (tmp_path / "gguf").glob("*.gguf")
    record = read_policy(tmp_path / "gguf" / "policy.json", ())
    reader = GGUFReader(file)
    tensors = {t.name: torch.tensor(t.data) for t in reader.tensors}
    for name, own in {
        "blk.1.ffn_norm.weight": "model.layers.1.post_attention_layernorm.weight",
        "blk.2.attn_output.bias": "model.layers.2.self_attn.o_proj.bias",
    }.items():
        assert torch.equal(tensors[name], expected[own])
    assert json.loads(reader.fields["ppf.policy"].contents()) == record
    assert record["recovered"]["tune"] == ["norms_and_biases"]
    policy = Path(cfg.out, "policy.json")
    false = json.loads(policy.read_text())
    false["kept"] = {name: max(kept - 1, 0) for name, kept in false["kept"].items()}
    policy.write_text(json.dumps(false))
    with pytest.raises(PPFError, match=r"policy\.json does not describe the weights beside it"):
        prune.main(wanted, Fabric(accelerator="cpu", devices=1))
    again = compose_prune(f"policy={policy}", f"paths.run={tmp_path}/run")
    with pytest.raises(PPFError, match=f"give path={cfg.out}"):
        prune.check(again)


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_16_bit_training_keeps_float32_weights_and_wins_nats_back(
    config: Any, start: Path, tune: str
) -> None:
    cfg = config(f"tune={tune}", f"tune.{tune}.lr={LR[tune]}", "trainer.precision=bf16-mixed")
    assert (run(cfg).won_back or 0) > 0.02
    before, after = weights(start), weights(Path(cfg.out))
    changed = [w for k, w in after.items() if not torch.equal(w, before[k])]
    assert changed and not any(torch.equal(w, w.bfloat16().float()) for w in changed)


def test_blockwise_brings_the_stream_closer_to_the_dense_one_and_resumes_at_its_layer(
    config: Any, start: Path, cache: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = ("tune=blockwise", "tune.blockwise.lr=3e-3", "tune.blockwise.layers=2")
    whole = recovered(config(*given, f"paths.artefacts={tmp_path}/whole"))
    taken = kill(monkeypatch, BlockModule, 26)
    cfg = config(*given)
    with pytest.raises(KilledError):
        run(cfg)
    run(cfg)
    out = Path(cfg.out)
    assert len(taken) == 26 + 2 * 16 - 24  # the second pair of layers goes on from its checkpoint
    assert all(torch.equal(whole[name], found) for name, found in weights(out).items())

    ids = torch.randint(257, (4, 32), generator=torch.Generator().manual_seed(0))
    dense = load(read_option("model", "tiny"), cache).model
    streams = [
        model(ids, output_hidden_states=True).hidden_states[-2]
        for model in (dense, read_folder(start), read_folder(out))
    ]
    assert float(distance(streams[2], streams[0])) < float(distance(streams[1], streams[0]))
    changed = {k for k, w in weights(start).items() if not torch.equal(w, whole[k])}
    assert changed == {k for k in whole if "layers" in k}
    assert json.loads((out / "policy.json").read_text())["recovered"]["loss"] == []
    run(config(*given, "loss=ce"))  # which no layer reads
    assert len(taken) == 26 + 2 * 16 - 24


def test_a_later_tuner_reads_on_where_the_one_before_has_ended(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = []

    def sampler(*given: Any, **settings: Any) -> WindowSampler:
        first.append(settings["first"])
        return WindowSampler(*given, **settings)

    monkeypatch.setattr("ppf.recovery.fit.WindowSampler", sampler)
    run(config("tune=[norms_and_biases,lora]"))
    assert first == [0, 4]  # each trains for four steps


def test_a_tuner_that_undoes_an_earlier_one_is_told(config: Any, capsys: Any) -> None:
    told = "Warning: tune=full ends with a higher loss than tune=norms_and_biases before it"
    rates = ("tune.norms_and_biases.lr=1e-5", "tune.full.lr=3.0")
    for loss, worse in (("kl", True), ("ce", False)):
        run(config("tune=[norms_and_biases,full]", *rates, f"loss={loss}"))
        assert (told in capsys.readouterr().out) == worse


@pytest.mark.parametrize("trained", [False, True])
def test_embeddings_are_trained_on_request(config: Any, start: Path, trained: bool) -> None:
    given, before = ["tune.full.embeddings=true"] if trained else [], weights(start)
    found = recovered(config(*given))
    same = {name for name, weight in before.items() if torch.equal(weight, found[name])}
    embeddings = {name for name in before if "embed" in name or "lm_head" in name}
    assert same == (set() if trained else embeddings)


def test_what_several_trainings_log_has_their_names(config: Any, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path / "log", flush_logs_every_n_steps=1)
    fabric = Fabric(accelerator="cpu", devices=1, loggers=[logger])
    shape = ("tune.blockwise.layers=2", "recovery.tokens=512", "trainer.log_every_n_steps=1")
    recover(config("tune=[blockwise,norms_and_biases]", *shape), fabric)
    header = Path(logger.log_dir, "metrics.csv").read_text().splitlines()[0]
    found = {name for name in header.split(",") if "training" in name or "validation" in name}
    layers = {f"blockwise/layer-{first}/" for first in (0, 2)}
    assert found == {
        *(f"{layer}{part}/distance" for layer in layers for part in ("training", "validation")),
        "norms_and_biases/training/kl",
        "norms_and_biases/validation/nll",
    }


def test_blockwise_passes_over_a_layer_that_has_lost_all_its_parts(
    cache: str, tmp_path: Path
) -> None:
    write_search(tmp_path, cache, "compensation=none")
    policy = read_policy(tmp_path / "policy.json", [])
    policy["kept"] |= {"1.attention": 0, "1.mlp": 0}
    (tmp_path / "policy.json").write_text(json.dumps(policy))
    given = (f"policy={tmp_path}/policy.json", f"paths.artefacts={tmp_path}/artefacts")
    own = ("tune=blockwise", "tune.blockwise.layers=1", "recovery.tokens=32", "sequential=false")
    found = run(recovery_config(tmp_path, cache, tmp_path, *given, *own))
    assert found.recovered != found.pruned


def test_rotary_frequencies_are_not_rounded(config: Any, start: Path) -> None:
    cfg = config("trainer.precision=bf16-mixed", "recovery.tokens=32")
    model, tokenizer = load_folder(start, torch.bfloat16, trust_remote_code=False)
    text = build_text(training_text(cfg.text), cfg.paths.cache)
    expected = mean_nll(model.eval(), text.tokens("validation", tokenizer), batch=2)
    assert run(cfg).pruned == pytest.approx(expected, rel=1e-6)


def test_a_search_with_offloaded_weights_is_recovered(
    config: Any, start: Path, tmp_path: Path
) -> None:
    offloaded = tmp_path / "offloaded"
    shutil.copytree(start, offloaded)
    record = json.loads((start / "policy.json").read_text())
    record["config"]["model"]["offload"] = "disk"
    (offloaded / "policy.json").write_text(json.dumps(record))
    found = run(config(f"path={offloaded}", "recovery.tokens=32"))
    assert found == run(config("recovery.tokens=32", f"paths.artefacts={tmp_path}/others"))


def test_a_policy_is_pruned_once_and_then_recovered(
    config: Any, searched: Path, start: Path, capsys: pytest.CaptureFixture
) -> None:
    given = ("path=null", f"policy={searched}/policy.json", f"paths.artefacts={searched}/artefacts")
    found = run(config(*given, "recovery.tokens=32"))
    assert found.pruned == run(config("recovery.tokens=32")).pruned
    assert "Reusing" not in capsys.readouterr().out
    run(config(*given, "recovery.tokens=64"))
    assert "Reusing the pruned model" in capsys.readouterr().out
    moved = read_policy(searched / "policy.json", [])
    (searched / "moved.txt").write_bytes((searched / "text.txt").read_bytes())
    moved["config"]["text"]["path"] = str(searched / "moved.txt")
    (searched / "moved.json").write_text(json.dumps(moved))
    (stored,) = (searched / "artefacts" / "pruned").glob("*/policy.json")
    gone = json.loads(stored.read_text())
    gone["config"]["text"]["path"] = str(searched / "gone.txt")
    stored.write_text(json.dumps(gone))  # as if the text had lain elsewhere when it was made
    again = config(*given, f"policy={searched}/moved.json", "recovery.tokens=32")
    assert run(again).pruned == found.pruned
    assert "Reusing the pruned model" in capsys.readouterr().out
    (weights,) = (searched / "artefacts" / "pruned").glob("*/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    assert run(config(*given, "recovery.tokens=32")).pruned == found.pruned
    assert "Reusing" not in capsys.readouterr().out
    (weights,) = (searched / "artefacts" / "pruned").glob("*/model.safetensors")
    weights.unlink()
    (weights.parent / "chat_template.jinja").write_text("of an earlier tokenizer")
    assert run(config(*given, "recovery.tokens=32")).pruned == found.pruned
    assert "Reusing" not in capsys.readouterr().out
    (weights.parent / "chat_template.jinja").write_text("of an earlier tokenizer")
    cfg = config(*given, "recovery.tokens=32", f"out={searched}/recovered")
    run(cfg)
    assert "Reusing the pruned model" in capsys.readouterr().out
    assert not (Path(cfg.out) / "chat_template.jinja").exists()  # nor has the dense model one


def test_too_little_training_text_is_refused_before_the_model_is_pruned(
    config: Any, searched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def calibrate(observed: object) -> None:
        raise AssertionError("the long work has begun")

    monkeypatch.setattr(Observed, "make", calibrate)
    given = ("path=null", f"policy={searched}/policy.json", "text.training.windows.validation=9999")
    with pytest.raises(PPFError, match="the validation part of text=.* has"):
        run(config(*given))


def test_a_killed_run_resumes_with_the_weights_of_an_unbroken_one(
    config: Any, monkeypatch: pytest.MonkeyPatch, unbroken: tuple[DictConfig, Any]
) -> None:
    taken, cfg = kill(monkeypatch, RecoveryModule, 5, 13, 22), config(*AVERAGED)
    for _ in range(3):
        with pytest.raises(KilledError):
            run(cfg)
    resumed = recovered(cfg)
    assert len(taken) < 2 * 24 + 3  # not every time from the start
    assert all(torch.equal(weight, resumed[name]) for name, weight in unbroken[1].items())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks processes")
def test_five_sigkills_at_random_moments_do_not_change_the_weights(
    config: Any, tmp_path: Path
) -> None:
    given = ("recovery.tokens=5120", "recovery.validate_every=1", "recovery.patience=100")
    cfg = config(*given, f"paths.artefacts={tmp_path}/broken")
    moments = random.Random(0)
    with cpu_threads(1):  # a forked process cannot use the threads of its parent
        whole = recovered(config(*given, f"paths.artefacts={tmp_path}/whole"))
        for _ in range(5):
            killed(cfg, tmp_path / "broken", moments.uniform(0, 0.1))
        resumed = recovered(cfg)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def killed(cfg: DictConfig, artefacts: Path, seconds: float) -> None:
    """Kills a run some seconds after its first checkpoint."""

    def written() -> int:
        return sum(file.stat().st_mtime_ns for file in artefacts.rglob("last.ckpt"))

    before = written()
    process = multiprocessing.get_context("fork").Process(target=run, args=(cfg,))
    process.start()
    deadline = time.monotonic() + 120
    while written() == before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert written() != before, "no checkpoint"
    time.sleep(seconds)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_a_finished_training_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch, unbroken: tuple[DictConfig, Any]
) -> None:
    cfg, first = unbroken
    monkeypatch.setattr(fit, "_trainer", None)
    again = recovered(cfg)
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("name", ["finished.ckpt", "curve.json"])
def test_a_damaged_training_is_repeated(
    config: Any, unbroken: tuple[DictConfig, Any], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    cfg, first = unbroken
    (file,) = Path(cfg.paths.artefacts).glob(f"recovery/*/{name}")
    file.write_bytes(file.read_bytes()[:-100])
    again = recovered(cfg)
    assert "it is made again" in capsys.readouterr().out.replace("\n", " ")
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_killed_run_with_a_damaged_checkpoint_starts_anew(
    config: Any, monkeypatch: pytest.MonkeyPatch, unbroken: tuple[DictConfig, Any], tmp_path: Path
) -> None:
    kill(monkeypatch, RecoveryModule, 13)
    cfg = config(*AVERAGED)
    with pytest.raises(KilledError):
        run(cfg)
    (last,) = tmp_path.rglob("last.ckpt")
    stale = last.with_name(".last.ckpt.0123.draft")
    stale.write_bytes(b"of a killed process")
    last.write_bytes(last.read_bytes()[:-100])
    again = recovered(cfg)
    assert all(torch.equal(weight, again[name]) for name, weight in unbroken[1].items())
    assert not stale.exists()


def test_a_second_run_waits_for_the_first_one(
    config: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train, waited = fit._train, []

    def second(module: TunedModule, loaders: Any, this: TrainingRun) -> None:
        with pytest.raises(Timeout):
            FileLock(this.folder / ".finished.ckpt.lock").acquire(timeout=0)
        waited.append(this.folder)
        train(module, loaders, this)

    monkeypatch.setattr(fit, "_train", second)
    run(config(f"paths.artefacts={tmp_path}", "recovery.tokens=128"))
    assert len(waited) == 1


def test_a_changed_file_of_a_users_loss_or_tuner_starts_another_training(
    config: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    files = [tmp_path / "loss_of_a_user.py", tmp_path / "tuner_of_a_user.py"]
    for file, parent in zip(files, ("losses import KL", "tuners import LoRA"), strict=True):
        code = f"from ppf.recovery.{parent}\n\nclass Own({parent.split()[-1]}): ...\n"
        file.write_text(code)
    own = ("loss.kl._target_=loss_of_a_user.Own", "tune.lora._target_=tuner_of_a_user.Own")
    cfg = config("tune=lora", *own, "recovery.tokens=128")
    for file in files:
        run(cfg)
        file.write_text(file.read_text() + "# changed\n")
    run(cfg)
    run(cfg)
    assert len(list((tmp_path / "artefacts" / "recovery").iterdir())) == 3


def test_stored_likeliest_tokens_train_as_the_dense_model_itself_does(
    config: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = ("loss.kl.top_k=8", "recovery.tokens=256")
    stored = recovered(config(*given, f"paths.artefacts={tmp_path}/stored"))
    (file,) = (tmp_path / "stored" / "likeliest").glob("*.safetensors")
    assert read_likeliest(file).tokens.shape[1:] == (31, 8)
    monkeypatch.setattr("ppf.stages.recover.likeliest_needed", lambda losses: 0)
    live = recovered(config(*given, f"paths.artefacts={tmp_path}/live"))
    for name, weight in live.items():
        torch.testing.assert_close(stored[name], weight, atol=1e-4, rtol=1e-3)


ON_A_CPU = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), RuntimeError(ON_A_CPU)])
def test_a_smaller_micro_batch_gives_the_same_weights(
    error: Exception,
    config: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    unbroken: tuple[DictConfig, Any],
) -> None:
    step = RecoveryModule.training_step

    def too_large(self: RecoveryModule, windows: Any, batch: int) -> torch.Tensor:
        if self.global_step == 5 and len(windows[0]) == 2:
            raise error
        return step(self, windows, batch)

    monkeypatch.setattr(RecoveryModule, "training_step", too_large)
    found = recovered(config(*AVERAGED))
    assert "going on with 1 windows at a time" in capsys.readouterr().out
    for name, weight in unbroken[1].items():
        torch.testing.assert_close(found[name], weight, atol=1e-4, rtol=1e-3)


def test_a_loss_that_is_not_finite_stops_at_its_step(
    config: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original = KL.of_rows

    calls = 0

    def spoilt(self: KL, *given: Any) -> tuple[Any, Any]:
        nonlocal calls
        calls += 1  # one for each micro-batch
        value, slope = original(self, *given)
        return value * float("nan" if calls > 2 * 5 else 1), slope

    monkeypatch.setattr(token_losses, "_CACHED_ROWS", 512)
    monkeypatch.setattr(KL, "of_rows", spoilt)
    with pytest.raises(PPFError, match="not finite at step 5: give a lower learning rate"):
        run(config(f"paths.artefacts={tmp_path}"))
    (kept,) = (tmp_path / "recovery").rglob("last.ckpt")
    assert torch.load(kept, weights_only=True)["global_step"] == 4


def test_weights_that_are_not_finite_replace_no_checkpoint(
    config: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original = RecoveryModule.validation_step

    def spoilt(self: RecoveryModule, *given: Any) -> None:
        if self.global_step == 8:
            self.student.lm_head.weight.data.fill_(torch.nan)
        original(self, *given)

    monkeypatch.setattr(RecoveryModule, "validation_step", spoilt)
    with pytest.raises(PPFError, match="not finite at step 8"):
        run(config(f"paths.artefacts={tmp_path}"))
    (kept,) = (tmp_path / "recovery").rglob("last.ckpt")
    assert torch.load(kept, weights_only=True)["global_step"] == 4


def test_a_folder_is_recovered_and_says_so(config: Any, tmp_path: Path) -> None:
    out = tmp_path / "again"
    losses = ("loss=[kl,ce,hidden]", "tune=[norms_and_biases,lora]", "loss.ce.weight=0.5")
    found = run(
        config(f"out={out}", "dtype=bfloat16", "recovery.gradient_checkpointing=true", *losses)
    )
    record = json.loads((out / "policy.json").read_text())["recovered"]
    assert record["tune"] == ["norms_and_biases", "lora"]
    assert record["loss"] == ["kl", "ce", "hidden"]
    assert record["recovered"]["nll"] == found.recovered < found.pruned
    assert record["tokens"] == 1024  # 512 for each tuner
    card = (out / "README.md").read_text()
    assert f" | {found.recovered:.4g} |" in card and "In this folder: recovered." in card
    scores = json.loads((out / "policy.json").read_text())["exported"]["measured"]
    assert f" | {scores['recovered']['nll']:.4g} |" in card
    assert scores["recovered"]["nll"] < scores["one_shot"]["nll"]
    model = load_folder(out, torch.bfloat16, trust_remote_code=False)[0]
    assert model.dtype == torch.bfloat16
    assert json.loads((tmp_path / "summary.json").read_text()) == record | {"test": []}


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["text.window=4096"], "text.window=4096 exceeds the model's 1024 positions"),
        (["recovery.batch=1000", "recovery.micro_batch=1"], "fewer than recovery.batch=1000"),
        (
            ["recovery.batch=5"],
            "recovery.batch=5 is not a multiple of 2, which is recovery.micro_batch",
        ),
        (["text.training.windows.validation=9999"], "the validation part of text=.* has"),
    ],
)
def test_wrong_settings_are_one_sentence(config: Any, overrides: list[str], sentence: str) -> None:
    with pytest.raises(PPFError, match=sentence):
        run(config(*overrides))


def test_test_documents_that_the_search_has_read_are_told(
    config: Any, capsys: pytest.CaptureFixture
) -> None:
    given = ("text.windows.test=4", "text.seed=5", "text.training.windows.validation=2")
    cfg = config("report_test=true", "recovery.tokens=32", *given)
    run(cfg)
    assert "the policy was found with documents that are now in the test part" in (
        capsys.readouterr().out
    )


def test_the_test_part_is_measured_on_request(config: Any, start: Path, tmp_path: Path) -> None:
    file = shutil.copytree(start, tmp_path / "pruned") / "policy.json"
    record = json.loads(file.read_text()) | {"budget": {"name": "kv", "saved": 0.4}}
    file.write_text(json.dumps(record))
    given = (f"path={file.parent}", "text.windows.test=4", "recovery.tokens=256")
    cfg = config("report_test=true", *given)
    (score,) = recover(cfg, Fabric(accelerator="cpu", devices=1)).test
    assert score.ratio == 0.4
    text = build_text(cfg.text, cfg.paths.cache)
    for folder, nll in ((start, score.pruned), (Path(cfg.out), score.recovered)):
        model, tokenizer = load_folder(folder, torch.float32, trust_remote_code=False)
        found = mean_nll(model.eval(), text.tokens("test", tokenizer), batch=2)
        assert nll == pytest.approx(found, rel=1e-5)
    assert score.recovered != score.pruned != score.dense
