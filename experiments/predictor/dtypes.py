"""What labels differ by where the model computes in another dtype: the noise of its rounding.

    python experiments/predictor/dtypes.py [HYDRA OVERRIDES]

The first policies of the sampler are labelled in float32 and in bfloat16.
"""

import argparse
from collections.abc import Sequence
from math import log

from lightning import Fabric
from run import take_over
from setting import configured

from ppf.labels.table import Labels
from ppf.stages.collect import collect
from ppf.stages.prepare import prepare


def labelled(dtype: str, overrides: Sequence[str]) -> Labels:
    """The sampler's policies, measured in this dtype."""
    given = ("labels.count=128", *overrides, f"model.dtype={dtype}")
    context = prepare(configured(*given), Fabric(accelerator="cpu", devices=1))
    take_over(context)
    return collect(context)


def main() -> None:
    """Prints what bfloat16 adds to the labels of policies that still work."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    _, overrides = parser.parse_known_args()
    exact, rounded = (labelled(dtype, overrides) for dtype in ("float32", "bfloat16"))
    works = ~exact.catastrophic(float(exact.nll[0]), log(10))  # ten times the perplexity
    added = (rounded.nll - exact.nll)[works]
    print(
        f"{len(added)} policies: mean {added.mean():.4f}, standard deviation {added.std():.4f},"
        f" mean distance {added.abs().mean():.4f} nats per token"
    )


if __name__ == "__main__":
    main()
