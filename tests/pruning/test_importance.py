import copy

import pytest
import torch
from torch import Tensor, nn

from ppf.llm import LanguageModel
from ppf.llm.adapter import Coupling
from ppf.pruning import Statistics
from ppf.pruning.importance import OBS, Fluctuation, Taylor, Wanda
from ppf.pruning.statistics import damped
from ppf.threads import cpu_threads
from tests.checkpoints import CHECKPOINTS, random_model, random_windows
from tests.pruning.conftest import error_without


@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_obs_removes_the_atom_of_least_added_error(
    lm: LanguageModel, statistics: Statistics, kind: str
) -> None:
    index = next(i for i, c in enumerate(lm.couplings) if c.kind == kind)
    coupling, gram = lm.couplings[index], statistics.gram[index]
    scores = OBS(damping=0.01, rounds=10_000).scores(coupling, gram, statistics.mean[index])
    removal = scores.argsort().tolist()
    weight = coupling.consumer.weight.double()
    ridged, _ = damped(gram, 0.01)
    for step in range(0, coupling.atoms - 1, -(-coupling.atoms // 8)):
        errors = {
            atom: error_without(weight, ridged, [*removal[:step], atom], coupling.columns)
            for atom in removal[step:]
        }
        assert min(errors, key=lambda atom: errors[atom]) == removal[step]


def test_obs_of_large_atoms_works_on_several_threads() -> None:
    """MKL's batched LU fails for systems of more than about 150 unknowns."""
    torch.manual_seed(0)
    inputs = torch.randn(1000, 576).double()
    consumer = nn.Linear(576, 8).requires_grad_(requires_grad=False)
    coupling = Coupling(0, "attention", 3, (), consumer, 192, nn.Module(), "block")
    with cpu_threads(2):
        scores = OBS(damping=0.01, rounds=1).scores(coupling, inputs.T @ inputs, torch.empty(0))
    ridged, _ = damped(inputs.T @ inputs, 0.01)
    errors = [error_without(consumer.weight.double(), ridged, [atom], 192) for atom in range(3)]
    expected = torch.tensor(errors) / max(errors) / 2
    torch.testing.assert_close(scores, expected.float(), rtol=1e-4, atol=0)


def test_scores_of_two_columns_follow_their_formulas() -> None:
    torch.manual_seed(0)
    x = torch.randn(500, 6) * torch.arange(1, 7) + 3
    consumer = nn.Linear(6, 4).requires_grad_(requires_grad=False)
    coupling = Coupling(0, "attention", 3, (), consumer, 2, nn.Module(), "block")
    norms, moments = consumer.weight.square().sum(0), (x.T @ x / len(x), x.mean(0))
    for importance, factor in (
        (Wanda(), x.square().mean(0)),
        (Fluctuation(), x.var(0, correction=0)),
    ):
        expected = (norms * factor).view(3, 2).sum(1)
        torch.testing.assert_close(
            importance.scores(coupling, *moments), expected, rtol=1e-4, atol=0
        )


@pytest.mark.parametrize(("number", "atom"), [(2, 1), (3, 5)], ids=["attention", "mlp"])
def test_taylor_is_the_squared_derivative_with_respect_to_a_gate(
    lm: LanguageModel, number: int, atom: int
) -> None:
    windows = random_windows()
    taylor = Taylor()
    taylor.observe(lm, lm.couplings, windows)
    coupling, step = lm.couplings[number], 1e-2
    columns = slice(atom * coupling.columns, (atom + 1) * coupling.columns)

    def loss(gate: float, window: Tensor) -> float:
        model = copy.deepcopy(lm.model).double()
        layer = model.model.layers[coupling.layer]
        consumer = {"attention": layer.self_attn.o_proj, "mlp": layer.mlp.down_proj}[coupling.kind]
        consumer.weight.data[:, columns] *= gate
        return float(model(window[None], labels=window[None]).loss)

    slopes = [(loss(1 + step, w) - loss(1 - step, w)) / (2 * step) for w in windows]
    expected = sum(slope**2 for slope in slopes)
    found = taylor.scores(coupling, torch.empty(0), torch.empty(0))[atom]
    assert float(found) == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("name", ["opt-32-heads-tied", "llama-biases"])
def test_taylor_sums_over_windows(name: str) -> None:
    lm, windows, taylor = random_model(CHECKPOINTS[name]), random_windows(), Taylor()
    found = []
    for some in (windows, *windows[:, None]):
        taylor.observe(lm, lm.couplings, some)
        found.append(taylor._squared)
    for site, squared in found[0].items():
        torch.testing.assert_close(squared, sum(x[site] for x in found[1:]), rtol=1e-3, atol=0)
