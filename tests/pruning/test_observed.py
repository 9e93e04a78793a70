"""Statistics, order and traits are made layer by layer, by several processes, and found again."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ppf.artefacts import Artefacts
from ppf.pruning.allocation import OWL, AlphaPruning
from ppf.pruning.importance import OBS, Importance, Taylor
from ppf.pruning.observed import Observed, reads_spectra
from ppf.pruning.tensor_files import LayerFiles
from ppf.threads import cpu_threads
from tests.composing import command_config
from tests.observing import by_name, collect_statistics, collect_traits, score_atoms
from tests.ranks import FakeRanks
from tests.tiny import TinySetup

LAYERS = 4
FIRST = torch.arange(0, 200, 4)[:, None]  # further first tokens of windows


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """With more threads, several layers are solved at a time."""
    with cpu_threads(1):
        yield


def observed(
    tiny: TinySetup,
    folder: Path,
    ranks: FakeRanks,
    importance: Importance | None = None,
    spectra: bool = True,
) -> Observed:
    return Observed(
        tiny.lm,
        tiny.windows,
        FIRST,
        importance or OBS(0.01, 4),
        Artefacts(folder, ranks),
        statistics="s",
        order="o",
        spectra=spectra,
    )


def one() -> FakeRanks:
    ranks = FakeRanks(0, [])
    ranks.world_size = 1
    return ranks


def test_layer_by_layer_finds_what_the_whole_model_shows(tiny: TinySetup, tmp_path: Path) -> None:
    found = observed(tiny, tmp_path, one())
    found.make()
    statistics = collect_statistics(tiny.lm, tiny.windows, FIRST)
    scores = score_atoms(tiny.lm, OBS(0.01, 4), statistics, tiny.windows)
    traits = by_name(collect_traits(tiny.lm, tiny.windows[::4]))
    for own, whole in zip(found.statistics.gram, statistics.gram, strict=True):
        assert torch.equal(own, whole)
    for own, whole in zip(found.scores(), scores, strict=True):
        torch.testing.assert_close(own, whole)
    assert by_name(found.traits()).keys() == traits.keys()
    for name, own in by_name(found.traits()).items():
        torch.testing.assert_close(own, traits[name])


def kill_at(files: LayerFiles, layer: int) -> None:
    """The process is killed when it has made a layer's tensors, before they are stored."""
    original = files._make

    def make(number: int) -> dict[str, torch.Tensor]:
        found = original(number)
        if number == layer:
            raise KeyboardInterrupt
        return found

    files._make = make


def runs_of(tiny: TinySetup) -> list[int]:
    """The layers that run from now on."""
    runs: list[int] = []
    for number, layer in enumerate(tiny.lm.adapter.layers(tiny.lm.model)):
        layer.mlp.register_forward_pre_hook(lambda *_, number=number: runs.append(number))
    return runs


def test_a_killed_run_goes_on_at_the_layer_where_it_was(tiny: TinySetup, tmp_path: Path) -> None:
    killed = observed(tiny, tmp_path, one())
    kill_at(killed._scores, 1)
    with pytest.raises(KeyboardInterrupt):
        killed.make()
    made = {file: file.stat().st_ino for file in tmp_path.rglob("0000.safetensors")}
    assert len(made) == 4  # moments, scores, traits and spectra of the first layer
    observed(tiny, tmp_path, one()).make()
    assert {file: file.stat().st_ino for file in made} == made
    assert len(list(tmp_path.rglob("0*.safetensors"))) == 4 * LAYERS


def test_ranks_make_different_layers_and_run_none_twice(tiny: TinySetup, tmp_path: Path) -> None:
    runs = runs_of(tiny)
    sent: list[object] = []
    first, second = (observed(tiny, tmp_path, FakeRanks(rank, sent)) for rank in (0, 1))
    scored: list[int] = []
    original = first._make_scores
    first._scores._make = lambda layer: scored.append(layer) or original(layer)
    for ranked in (first, second):
        ranked.make()
    assert scored[:2] == [0, 2]  # its own layers come first
    # 8 windows are two batches, every fourth window one, and the first tokens one.
    assert sorted(runs) == sorted([layer for layer in range(LAYERS) for _ in range(4)])
    assert not (tmp_path / "statistics" / "s-states").exists()


def test_a_killed_run_of_two_ranks_runs_no_finished_layer_again(
    tiny: TinySetup, tmp_path: Path
) -> None:
    killed = observed(tiny, tmp_path, FakeRanks(0, []))
    kill_at(killed._moments, 2)  # its states are on disk, but not its moments
    with pytest.raises(KeyboardInterrupt):
        killed.make()
    runs = runs_of(tiny)
    observed(tiny, tmp_path, FakeRanks(0, [])).make()
    assert sorted(runs) == [2, 2, 2, 2, 3, 3, 3, 3]  # the batches as in the test before


def test_the_first_rank_differentiates_for_all(tiny: TinySetup, tmp_path: Path) -> None:
    sent: list[object] = []
    found = []
    for rank in (0, 1):
        ranked = observed(tiny, tmp_path, FakeRanks(rank, sent), Taylor())
        ranked.make()
        found.append(ranked.scores())
    statistics = collect_statistics(tiny.lm, tiny.windows, FIRST)
    expected = score_atoms(tiny.lm, Taylor(), statistics, tiny.windows)
    for scores in found:
        torch.testing.assert_close(scores, expected)


def test_spectra_are_computed_only_for_the_rule_that_reads_them(
    tiny: TinySetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppf.pruning.observed.layer_exponent", None)  # it is not called
    found = observed(tiny, tmp_path, one(), spectra=False)
    found.make()
    traits = found.traits()
    assert traits.exponents is None
    features = replace(tiny.features, traits=traits)
    OWL(5, 0.08).wanted(features, torch.tensor([0.3]))
    with pytest.raises(AssertionError, match="AlphaPruning"):
        AlphaPruning().wanted(features, torch.tensor([0.3]))


@pytest.mark.parametrize(
    "overrides, reads",
    [([], True), (["~rules.alphapruning"], False), (["rules=bytes", "sampler=smooth"], False)],
)
def test_a_config_tells_whether_spectra_are_read(overrides: list[str], reads: bool) -> None:
    assert reads_spectra(command_config("search", [*overrides, "paths.run=outputs"])) == reads
