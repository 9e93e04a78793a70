import pytest
import torch

from ppf.server.sampler import TokenSampler, scored

LOGITS = torch.tensor([2.0, 1.0, 0.0, -3.0])
CPU = torch.device("cpu")


def shares(sampler: TokenSampler, draws: int = 4000) -> torch.Tensor:
    drawn = torch.tensor([sampler(LOGITS) for _ in range(draws)])
    return torch.bincount(drawn, minlength=4) / draws


def test_temperature_zero_takes_the_likeliest_token() -> None:
    for temperature in (0.0, 1e-300):
        assert TokenSampler(temperature, 1.0, None, CPU)(LOGITS) == 0


def test_samples_have_the_models_probabilities_at_a_temperature() -> None:
    for temperature in (0.5, 1.0, 2.0):
        expected = (LOGITS / temperature).softmax(0)
        assert torch.allclose(shares(TokenSampler(temperature, 1.0, 0, CPU)), expected, atol=0.03)


def test_top_p_keeps_the_smallest_set_with_that_probability() -> None:
    kept = LOGITS[:2].softmax(0)  # 0.66 and 0.24 of the whole
    found = shares(TokenSampler(1.0, 0.8, 0, CPU))
    assert torch.allclose(found, torch.cat([kept, torch.zeros(2)]), atol=0.03)


def test_seeds_repeat_samples_and_no_seed_does_not() -> None:
    def draw(seed: int | None) -> list[int]:
        sampler = TokenSampler(1.0, 1.0, seed, CPU)
        return [sampler(LOGITS) for _ in range(40)]

    assert draw(2**64 - 1) == draw(2**64 - 1) != draw(1)
    assert draw(None) != draw(None)


def test_scores_are_log_probabilities() -> None:
    expected = LOGITS.log_softmax(0)
    chosen, *likeliest = scored(LOGITS, 2, 2)
    assert chosen == (2, pytest.approx(float(expected[2])))
    assert [token for token, _ in likeliest] == [0, 1]
    assert [logprob for _, logprob in likeliest] == pytest.approx(expected[:2].tolist())
    assert len(scored(LOGITS, 0, 0)) == 1 and len(scored(LOGITS, 0, 9)) == 5
