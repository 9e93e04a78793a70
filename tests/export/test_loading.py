"""Exported folders are read as data: no code in them runs."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file

from ppf.errors import PPFError
from ppf.export.gguf import GGUF
from ppf.export.huggingface import HuggingFace
from ppf.export.loading import read_pruned
from ppf.export.pruned import Pruned
from ppf.llm.sources import byte_tokenizer
from ppf.pruning import LivePruner
from ppf.pruning.compensation import Bias
from tests.checkpoints import CHECKPOINTS, pruner_of, random_model, random_windows
from tests.export.conftest import POLICY, assert_same_logits, export_folder, loaded, own


@pytest.fixture
def marker(folder: Path) -> Iterator[Path]:
    """A file that the folder's own modelling code makes."""
    file = folder.parent / "ran"
    code = folder / "modeling_pruned.py"
    code.write_text(f"open({str(file)!r}, 'w').close()\n" + code.read_text())
    yield file


def test_our_own_code_builds_what_we_exported(
    pruner: LivePruner, folder: Path, marker: Path
) -> None:
    assert_same_logits(own(folder), pruner.lm.model)
    assert not marker.exists()


def changed(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("pruner", ["llama-groups-of-3-tied"], indirect=True)
class TestOneFamily:
    def test_recovery_writes_its_own_code(self, folder: Path, marker: Path, tmp_path: Path) -> None:
        (folder / "notes.txt").write_text("a file of the folder")
        config = json.loads((folder / "config.json").read_text())
        foreign = config["auto_map"] | {"AutoConfig": "other.Config"}
        changed(folder, auto_map=foreign, attn_implementation="stranger/kernel")
        model, out = read_pruned(folder, torch.float32), tmp_path / "recovered"
        HuggingFace().write(model, out, POLICY)
        assert not (out / "notes.txt").exists()
        written = json.loads((out / "config.json").read_text())
        assert written["auto_map"] == config["auto_map"] and "attn_implementation" not in written
        ids = random_windows()
        with torch.inference_mode():
            torch.testing.assert_close(loaded(out)(ids).logits, own(folder)(ids).logits)
        assert not marker.exists()

    def test_a_folder_must_have_all_weights(self, folder: Path) -> None:
        (file,) = folder.glob("*.safetensors")
        tensors = load_file(file)
        del tensors["model.layers.0.mlp.down_proj.weight"]
        save_file(tensors, file, metadata={"format": "pt"})
        with pytest.raises(PPFError, match=r"model\.layers\.0\.mlp\.down_proj\.weight"):
            own(folder)

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda c: c["pruned_blocks"]["mlp"].update(consumer="mlp.up_proj"),
            lambda c: c["pruned_blocks"]["mlp"].update(name="__class__"),
            lambda c: c["pruned_blocks"]["attention"].update(heads="forward"),
            lambda c: c["pruned_blocks"]["attention"].update(columns=2**40),
            lambda c: c["pruned_blocks"]["attention"].update(more=1),
            lambda c: c["pruned_blocks"]["mlp"].update(empty=[1, 2]),
            lambda c: c["per_layer_config"]["0"].update(num_attention_heads=0),
            lambda c: c["pruned_blocks"].pop("mlp"),
            lambda c: c["pruned_blocks"].update({"mlp\x1b[31m": {}}),
            lambda c: c.update(pruned_blocks="${oc.env:HOME}"),
            lambda c: c["per_layer_config"]["2"].update(intermediate_size=10**9),
            lambda c: c["per_layer_config"]["2"].update(intermediate_size=-1),
            lambda c: c["per_layer_config"]["2"].update(num_attention_heads=5),
            lambda c: c.update(per_layer_config=[]),
            lambda c: c.update(num_hidden_layers=4),
            lambda c: c.update(vocab_size=[]),
        ],
    )
    def test_a_wrong_config_is_refused_in_one_sentence(self, folder: Path, spoil: Any) -> None:
        file = folder / "config.json"
        config = json.loads(file.read_text())
        spoil(config)
        file.write_text(json.dumps(config))
        with pytest.raises(PPFError) as caught:
            own(folder)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("model_type", ["evil", "llama"])
@pytest.mark.parametrize("more", [{}, {"pruned_blocks": {}}])
def test_code_of_a_foreign_folder_does_not_run_by_default(
    tmp_path: Path, model_type: str, more: dict[str, Any]
) -> None:
    ran = tmp_path / "ran"
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    classes = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    config = {"model_type": model_type, "auto_map": classes} | more
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PPFError) as caught:
        own(tmp_path)
    assert str(caught.value).isprintable() and not ran.exists()


def test_a_model_of_more_than_ten_layers_is_read(tmp_path: Path) -> None:
    config = copy.deepcopy(CHECKPOINTS["llama-groups-of-3-tied"])
    config.num_hidden_layers = 11
    pruner = pruner_of(random_model(config), Bias())
    pruner.apply([1] * len(pruner.space.sites))
    folder = export_folder(pruner, tmp_path, POLICY)
    assert "00" in json.loads((folder / "config.json").read_text())["per_layer_config"]
    assert_same_logits(own(folder), pruner.lm.model)


@pytest.mark.parametrize(
    "pruner", ["llama-groups-of-3-tied", "llama-biases", "qwen3-groups-of-2-tied"], indirect=True
)
def test_a_folder_holds_the_same_parts_as_the_live_model(pruner: LivePruner, folder: Path) -> None:
    live, found = Pruned.of(pruner), read_pruned(folder, torch.float32)
    assert (found.shapes, found.whole) == (live.shapes, live.whole)
    filled = [
        (max(atoms, 2), whole[1]) for (atoms, _), whole in zip(live.shapes, live.whole, strict=True)
    ]
    for wanted in (live.shapes, filled):
        tensors, expected = dict(found.tensors(wanted)), dict(live.tensors(wanted))
        assert tensors.keys() == expected.keys()
        for name, tensor in expected.items():
            if "q_norm" not in name and "k_norm" not in name:  # unknown where no head is left
                torch.testing.assert_close(tensors[name], tensor, atol=0, rtol=0)


def test_a_dense_folder_is_written_without_policy_and_card(tmp_path: Path) -> None:
    lm = random_model(CHECKPOINTS["llama-groups-of-3-tied"])
    dense = tmp_path / "dense"
    lm.model.save_pretrained(dense)
    lm.tokenizer.save_pretrained(dense)
    model, out = read_pruned(dense, torch.float32), tmp_path / "out"
    assert model.plain and model.shapes == model.whole
    file = GGUF("q8_0", 0).write(model, out, {})
    assert [path.name for path in out.iterdir()] == ["dense-q8_0.gguf"]
    reader = GGUFReader(file)
    assert "ppf.policy" not in reader.fields and reader.tensors
    assert reader.fields["general.architecture"].contents() == "llama"
    HuggingFace().write(model, tmp_path / "copy", {})
    assert not {"policy.json", "README.md"} & {path.name for path in (tmp_path / "copy").iterdir()}
    ids = random_windows()
    assert torch.equal(own(tmp_path / "copy")(ids).logits, lm.model(ids).logits)


def test_a_folder_without_lists_of_removed_blocks_is_read(tmp_path: Path) -> None:
    """Earlier versions wrote no such lists."""
    pruner = pruner_of(random_model(CHECKPOINTS["llama-groups-of-3-tied"]))
    pruner.apply([1] * len(pruner.space.sites))
    folder = export_folder(pruner, tmp_path, POLICY)
    config = json.loads((folder / "config.json").read_text())
    for block in config["pruned_blocks"].values():
        del block["empty"]
    changed(folder, **config)
    assert_same_logits(own(folder), pruner.lm.model)
