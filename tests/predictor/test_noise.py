"""The noise variance against its formula."""

import torch
from linear_operator import to_dense

from ppf.predictor.noise import GrowingNoise


def test_noise_grows_with_the_effects_and_shrinks_with_the_weight() -> None:
    noise = GrowingNoise(slice(1, 3)).requires_grad_(False)
    noise.log_constant.fill_(torch.tensor(0.5).log())
    noise.log_growth.fill_(torch.tensor(0.1).log())
    x = torch.tensor([[9.0, 1.0, 0.5], [9.0, 0.0, 0.0]])
    expected = torch.tensor([0.5 + 0.1 * 1.25**8, 0.5])
    torch.testing.assert_close(noise.variance(x), expected)
    weights = torch.tensor([2.0, 0.25])
    found = to_dense(noise(x, weights=weights, shape=x.shape[:1]))
    torch.testing.assert_close(found, (expected / weights).diag())
