"""How often a predictor sees a gain in one more removed unit.

    python experiments/predictor/monotone.py [--policies 4000] [HYDRA OVERRIDES]

Policies come from the sampler under a seed that no predictor was trained on; each loses one unit at
a site drawn at random. None of these policies is measured; the predictor is trained if it lacks.
"""

import argparse

import torch
from hydra.utils import instantiate
from lightning import Fabric
from setting import configured

from ppf.labels.collect import draw
from ppf.stages.acquire import acquire
from ppf.stages.collect import collect
from ppf.stages.prepare import prepare
from ppf.stages.train import train

SEED = 2  # run.py's held-out sets take 1
CLEAR = 0.005  # nats that a clear gain has at least


def main() -> None:
    """Prints the shares of removals that are predicted to gain."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--policies", type=int, default=4000)
    options, overrides = parser.parse_known_args()
    context = prepare(configured(*overrides), Fabric(accelerator="cpu", devices=1))
    predictor = train(context, acquire(context, collect(context))).predictor

    kept = draw(context, instantiate(context.cfg.sampler), options.policies, SEED)
    rows = torch.arange(len(kept))
    site = torch.randint(kept.shape[1], rows.shape, generator=torch.Generator().manual_seed(SEED))
    some = kept[rows, site] > 0
    fewer = kept.clone()
    fewer[rows, site] -= 1
    gain = predictor.predict(kept[some]).mean - predictor.predict(fewer[some]).mean
    print(
        f"{len(gain)} removals of one unit: predicted to gain {(gain > 0).float().mean():.1%},"
        f" more than {CLEAR} nats {(gain > CLEAR).float().mean():.1%}, at most {gain.max():.3f}"
    )


if __name__ == "__main__":
    main()
