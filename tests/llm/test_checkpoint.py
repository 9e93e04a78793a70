"""Damaged checkpoints are refused, and no checkpoint can run code."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor

from ppf.conf import read_option
from ppf.errors import PPFError
from ppf.evaluation.size import parameters
from ppf.export.loading import load_folder
from ppf.llm import LanguageModel, load
from ppf.llm.checkpoint import read_config, read_tokenizer
from ppf.llm.shapes import skeleton
from ppf.llm.sources import byte_tokenizer, model_identity
from tests.checkpoints import CHECKPOINTS, each, random_model, random_weights

FORM = "llama-wide-heads"
LAYER = "model.layers.1.mlp.up_proj.weight"


def saved(folder: Path, form: str = FORM) -> Path:
    random_weights(CHECKPOINTS[form]).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved(tmp_path)


def loaded(folder: Path, **options: Any) -> LanguageModel:
    return load(config_of(folder), "unused", **options)


def config_of(folder: Path, **own: Any) -> DictConfig:
    return OmegaConf.create({"path": str(folder), "source": None, "dtype": "float32", **own})


def refusal(folder: Path, **options: Any) -> str:
    """The error message of a refused checkpoint."""
    with pytest.raises(PPFError) as caught:
        loaded(folder, **options)
    sentence = str(caught.value)
    assert "give another folder" in sentence and "\n" not in sentence
    return sentence


def change(folder: Path, alter: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    alter(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def configure(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@each("name")
def test_checkpoints_of_every_family_load(name: str, tmp_path: Path) -> None:
    first = random_model(CHECKPOINTS[name]).model.state_dict()
    again = loaded(saved(tmp_path, name)).model.state_dict()
    assert again.keys() == first.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())


@pytest.mark.parametrize(
    ("form", "obsolete"),
    [
        ("llama-groups-of-3-tied", "model.layers.0.self_attn.rotary_emb.inv_freq"),
        ("llama-groups-of-3-tied", "lm_head.weight"),
        ("gpt-neox-32-heads-untied", "gpt_neox.layers.0.attention.masked_bias"),
    ],
)
def test_obsolete_tensors_of_old_checkpoints_are_accepted(
    form: str, obsolete: str, tmp_path: Path
) -> None:
    def add(tensors: dict[str, Tensor]) -> None:
        tied = tensors.get("model.embed_tokens.weight")
        tensors[obsolete] = tied.clone() if "lm_head" in obsolete else torch.ones(3)

    change(saved(tmp_path, form), add)
    loaded(tmp_path)


@pytest.mark.parametrize(("factor", "tied"), [(1, True), (2, False)])
def test_a_head_of_its_own_is_not_taken_for_a_tied_one(
    tmp_path: Path, factor: int, tied: bool
) -> None:
    def add(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = factor * tensors["model.embed_tokens.weight"]

    change(saved(tmp_path, "llama-groups-of-3-tied"), add)
    model = loaded(tmp_path).model
    assert model.config.tie_word_embeddings == tied
    same = torch.equal(model.get_output_embeddings().weight, model.get_input_embeddings().weight)
    assert same == tied
    read, _ = load_folder(tmp_path, torch.float32)
    read.tie_weights()  # as lm-evaluation-harness does
    assert torch.equal(read.lm_head.weight, model.lm_head.weight)


def test_embeddings_that_differ_by_rounding_can_be_tied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def add(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].bfloat16().float()

    change(saved(tmp_path, "llama-groups-of-3-tied"), add)
    configure(tmp_path, tie_word_embeddings=False)
    apart, wanted = loaded(tmp_path).model, config_of(tmp_path, tie_embeddings=True)
    assert "model.tie_embeddings=true saves" in capsys.readouterr().out
    tied = load(wanted, "unused").model
    assert tied.model.embed_tokens.weight is tied.lm_head.weight
    assert torch.equal(tied.lm_head.weight, apart.lm_head.weight)
    assert tied.config.tie_word_embeddings and not apart.config.tie_word_embeddings
    assert parameters(skeleton(wanted)[0]) == parameters(tied) < parameters(apart)
    cache = tmp_path / "cache"
    assert model_identity(wanted, cache) != model_identity(config_of(tmp_path), cache)
    assert "model.tie" not in capsys.readouterr().out
    change(tmp_path, lambda tensors: tensors["lm_head.weight"].mul_(2))
    with pytest.raises(PPFError, match="differ by more than rounding"):
        load(wanted, "unused")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file outside the checkpoint's folder."""
    file = tmp_path / "secret"
    file.write_text("password")
    return file


def esm(folder: Path, **config: Any) -> Path:
    """A checkpoint whose tokenizer reads each line of vocab.txt as a token."""
    saved(folder, "llama-groups-of-3-tied")
    (folder / "tokenizer.json").unlink()
    config = {"tokenizer_class": "EsmTokenizer"} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("<unk>\na\n")
    return folder


def refuses_tokenizer(folder: Path, sentence: str) -> None:
    """Each line of a file elsewhere would become a token, which exports and the server show."""
    with pytest.raises(PPFError, match=sentence):
        read_tokenizer(str(folder), read_config(str(folder)))


@pytest.mark.parametrize("key", ["vocab", "init_inputs", "deep"])
def test_a_tokenizer_that_reads_a_file_elsewhere_is_refused(secret: Path, key: str) -> None:
    folder, name = secret.with_name("model"), str(secret)
    values = {"vocab": name, "init_inputs": [name], "deep": {"a": [{"b": name}]}}
    own = {"tokenizer_class": "BertTokenizer", "other": str(folder / "x.json")}
    esm(folder, **own, **{key: values[key]})
    (folder / "x.json").write_text("{}")
    refuses_tokenizer(folder, "tokenizer_config.json names the file .*secret")


@pytest.mark.parametrize("key", ["vocab_file", "gguf_file", "name_or_path", "unk_token"])
def test_a_map_of_special_tokens_cannot_name_a_vocabulary(secret: Path, key: str) -> None:
    folder = esm(secret.with_name("model"))
    (folder / "special_tokens_map.json").write_text(json.dumps({key: str(secret)}))
    said = "names the file .*secret" if key == "unk_token" else f"has the entry {key}, which is no"
    refuses_tokenizer(folder, f"special_tokens_map.json {said}")


def test_an_open_file_is_no_vocabulary(tmp_path: Path) -> None:
    folder = esm(tmp_path, vocab_file=0)
    refuses_tokenizer(folder, "tokenizer_config.json has the entry vocab_file=0: remove")


def test_a_tokenizer_file_of_another_folder_is_refused(tmp_path: Path) -> None:
    folder, other = saved(tmp_path / "model"), saved(tmp_path / "other")
    (other / "tokenizer.json").rename(other / "tokenizer.1.0.json")
    config = {"fast_tokenizer_files": ["../other/tokenizer.1.0.json"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    refuses_tokenizer(folder, "names the file ../other/tokenizer.1.0.json")


@pytest.mark.parametrize(
    "name", ["vocab.txt", "chat_template.jinja", "additional_chat_templates/rag.jinja"]
)
def test_links_to_files_elsewhere_are_refused(secret: Path, name: str) -> None:
    folder = esm(secret.with_name("model"))
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.unlink(missing_ok=True)
    file.symlink_to(secret)
    assert f"{file} is a link to a file elsewhere" in refusal(folder)


def test_a_folder_in_the_cache_of_the_hub_is_read(tmp_path: Path) -> None:
    """Its files are links, and may have entries that are too long for a path."""
    blobs, folder = tmp_path / "blobs", saved(tmp_path / "snapshots" / "1a2b")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_file": "tokenizer.json", "chat_template": 300 * "a"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    blobs.mkdir()
    for file in list(folder.iterdir()):
        file.rename(blobs / file.name)
        file.symlink_to(Path("..", "..", "blobs", file.name))
    loaded(folder)
    (tmp_path / "secret").write_text("password")
    (folder / "vocab.txt").symlink_to(Path("..", "..", "secret"))
    assert "vocab.txt is a link to a file elsewhere" in refusal(folder)


def test_code_that_a_tokenizer_names_is_not_named_in_exports(tmp_path: Path) -> None:
    saved(tmp_path, "llama-groups-of-3-tied")
    file = tmp_path / "tokenizer_config.json"
    own = {"auto_map": {"AutoTokenizer": ["other/repo--code.Tokenizer", None]}}
    file.write_text(json.dumps(json.loads(file.read_text()) | own))
    read_tokenizer(str(tmp_path), read_config(str(tmp_path))).save_pretrained(tmp_path / "again")
    assert "auto_map" not in (tmp_path / "again" / "tokenizer_config.json").read_text()


@pytest.mark.parametrize(
    ("alter", "fault"),
    [
        (lambda t: [t.pop(n) for n in (LAYER, "model.norm.weight")], f"lacks {LAYER} and 1 more"),
        (lambda t: t.pop("lm_head.weight"), "lacks lm_head.weight"),
        (lambda t: t.update({"model.extra": torch.ones(2)}), "an unknown tensor model.extra"),
        (lambda t: t.update({LAYER: torch.ones(5, 64)}), f"{LAYER} of shape (5, 64), not (96, 64)"),
        (lambda t: t[LAYER][-1, -1].fill_(torch.nan), f"has NaN or infinite values in {LAYER}"),
        (lambda t: t[LAYER][-1, -1].fill_(-torch.inf), f"has NaN or infinite values in {LAYER}"),
    ],
)
def test_faulty_weights_are_named(
    folder: Path, alter: Callable[[dict[str, Tensor]], Any], fault: str, capfd: Any
) -> None:
    change(folder, alter)
    assert fault in refusal(folder)
    assert capfd.readouterr() == ("", "")


def test_weights_that_need_other_programs_are_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert "has an adapter (adapter_config.json)" in refusal(folder)
    configure(folder, quantization_config={"quant_method": "bitnet"})
    assert "has quantised weights, which PPF does not read" in refusal(folder)


def test_a_truncated_weight_file_is_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    assert f"cannot load '{folder}' (SafetensorError: " in refusal(folder)


def test_pickled_weights_are_not_read(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "no file named model.safetensors" in refusal(folder)


@pytest.fixture
def code(folder: Path) -> Path:
    """A module in the checkpoint's folder that writes a file if it is run."""
    ran = folder / "ran"
    (folder / "own.py").write_text(
        f"open({str(ran)!r}, 'w')\n"
        "from transformers import LlamaConfig as Config, LlamaForCausalLM as Model\n"
        "from transformers import PreTrainedTokenizerFast as Tokenizer\n"
    )
    return ran


@pytest.mark.parametrize("model_type", ["llama", "unknown"])
@pytest.mark.parametrize(
    "auto_map",
    [
        {"AutoModelForCausalLM": "own.Model"},
        {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
    ],
)
def test_modelling_code_of_a_checkpoint_is_not_run(
    folder: Path, code: Path, model_type: str, auto_map: dict[str, str], capfd: Any
) -> None:
    configure(folder, model_type=model_type, auto_map=auto_map)
    refusal(folder)
    assert not code.exists() and "[y/N]" not in "".join(capfd.readouterr())


def test_tokenizer_code_of_a_checkpoint_is_not_run(folder: Path, code: Path) -> None:
    file = folder / "tokenizer_config.json"
    own = {"auto_map": {"AutoTokenizer": [None, "own.Tokenizer"]}, "tokenizer_class": "Tokenizer"}
    file.write_text(json.dumps(json.loads(file.read_text()) | own))
    (folder / "tokenizer.json").unlink()
    refusal(folder)
    assert not code.exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_config_cannot_choose_an_attention_kernel(folder: Path, key: str) -> None:
    configure(folder, **{key: "stranger/kernel"})
    assert loaded(folder).model.config._attn_implementation == "sdpa"


def test_a_too_long_window_is_refused_before_weights_are_read(folder: Path) -> None:
    loaded(folder, window=2048)
    (folder / "model.safetensors").unlink()
    with pytest.raises(PPFError, match=r"text\.window=2049 exceeds the model's 2048 positions"):
        loaded(folder, window=2049)


def test_an_unknown_family_is_refused_before_weights_are_read(folder: Path) -> None:
    configure(folder, model_type="gpt2")
    (folder / "model.safetensors").unlink()
    with pytest.raises(PPFError, match="'gpt2' is not supported"):
        loaded(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_damaged_checkpoint_in_the_cache_is_made_again(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = instantiate(read_option("model", "tiny").source, _partial_=True, _convert_="all")
    damaged = Path(source(str(tmp_path))) / name
    whole = damaged.read_bytes()
    flipped = bytes([*whole[:-5], whole[-5] ^ 0x40, *whole[-4:]])
    for content in (whole[:20], flipped):
        damaged.write_bytes(content)
        source(str(tmp_path))
        # Metadata has no fixed order in a safetensors file.
        assert sorted(damaged.read_bytes()) == sorted(whole)
    assert "a checksum is wrong): it is made again" in capsys.readouterr().out
    monkeypatch.setattr("hashlib.file_digest", None)  # what has not changed is not hashed again
    source(str(tmp_path))
