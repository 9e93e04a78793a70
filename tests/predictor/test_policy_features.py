"""What the Gaussian process reads of a policy."""

import torch

from ppf.predictor.policy_features import PolicyFeatures
from ppf.space import Space
from tests.predictor.synthetic import LAYERS


def test_groups_sum_over_runs_of_layers_of_one_kind(space: Space) -> None:
    features = PolicyFeatures(space)
    effects = torch.rand(features.effects.shape, generator=torch.Generator().manual_seed(0))
    features.effects.copy_(effects)
    kept = (space.units - torch.arange(len(space)) % 3)[None]
    found = {name: features(kept)[0, columns] for name, columns in features.columns.items()}

    own = effects[torch.arange(len(space)), kept[0]].view(LAYERS, 2)
    removed = (1 - kept[0] / space.units).view(LAYERS, 2)
    for name, size, values in (
        ("effects_0", 1, own),
        ("effects_1", 2, own),
        ("effects_2", LAYERS, own),
        ("shares_0", 1, removed),
        ("shares_1", 1, removed),
    ):
        expected = values.view(-1, size, 2).sum(1).T.flatten()  # by kind, then by layer
        torch.testing.assert_close(found[name], expected)
    torch.testing.assert_close(found["roots"], own.flatten().sqrt())
    assert not found["emptied"].any()
