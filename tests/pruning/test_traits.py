import pytest
import torch

from ppf.pruning.traits import _exponent
from tests.checkpoints import CHECKPOINTS, random_model, random_windows
from tests.observing import collect_traits
from tests.tiny import TinySetup


def test_influence_is_the_cosine_distance_across_a_layer(tiny: TinySetup) -> None:
    traits = collect_traits(tiny.lm, tiny.windows)
    states = tiny.lm.model(tiny.windows, output_hidden_states=True).hidden_states
    cosine = torch.nn.functional.cosine_similarity(states[0], states[1], dim=-1)
    torch.testing.assert_close(traits.influence[0], 1 - cosine.mean())
    assert traits.influence.shape == (4,) and (traits.influence > 0).all()


def test_the_exponent_of_a_known_spectrum_is_found() -> None:
    spectrum = torch.linspace(0.001, 0.999, 500) ** (-1 / 1.5)
    weight = torch.diag(spectrum.sqrt())  # eigenvalues with density λ^-2.5 above 1
    assert abs(_exponent(weight) - 2.5) < 0.1


@pytest.mark.parametrize("gemma", [False, True])
def test_energy_is_the_share_of_a_site_in_the_hidden_state(tiny: TinySetup, gemma: bool) -> None:
    lm = random_model(CHECKPOINTS["gemma3-one-kv-head-tied"]) if gemma else tiny.lm
    windows = random_windows() if gemma else tiny.windows
    energy = collect_traits(lm, windows).energy["1.mlp"]
    layer, seen = lm.adapter.layers(lm.model)[1], {}
    last = layer.post_feedforward_layernorm if gemma else layer.mlp
    layer.register_forward_pre_hook(lambda _, inputs: seen.update(state=inputs[0]))
    last.register_forward_hook(lambda _, inputs, output: seen.update(added=output))
    lm.model(windows)
    state, added = (seen[name].square().sum(-1) for name in ("state", "added"))
    torch.testing.assert_close(energy, (added / (state + added)).mean())


def test_outliers_and_fluctuations_follow_their_formulas(tiny: TinySetup) -> None:
    traits, seen = collect_traits(tiny.lm, tiny.windows), dict[torch.nn.Module, torch.Tensor]()
    couplings = [coupling for coupling in tiny.lm.couplings if coupling.layer == 1]
    linears = list(dict.fromkeys(linear for c in couplings for linear in c.linears))
    for linear in linears:
        linear.register_forward_pre_hook(lambda w, x: seen.update({w: x[0].flatten(0, -2)}))
    tiny.lm.model(tiny.windows)
    norms = {linear: x.square().mean(0).sqrt() for linear, x in seen.items()}
    scores = torch.cat([(w.weight.abs() * norms[w]).flatten() for w in linears])
    for m in (1, 2, 5):
        share = float((scores > m * scores.mean()).double().mean())
        assert float(traits.outliers[1, m]) == pytest.approx(share, abs=1e-4)
    for coupling in couplings:
        variance = seen[coupling.consumer].var(0, correction=0)
        score = variance * coupling.consumer.weight.square().sum(0)
        score = score.square() if coupling.kind == "attention" else score  # as in FLAP
        standard = (score - score.mean()) / score.std()
        expected = standard.view(coupling.atoms, coupling.columns).mean(1)
        found = traits.fluctuation[coupling.name]
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
