"""Types of numbers that a config may hold; commands check them before any work starts.

Classes and functions that a config names (`_target_`) use these types in their signatures.
"""

from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
"""Settings of pydantic: unknown keys are refused, and values are not converted."""


def _ascending(values: list[float]) -> list[float]:
    if values != sorted(values):
        raise ValueError("should ascend")
    return values


Count = Annotated[int, Field(ge=1, lt=2**31)]
Tokens = Annotated[int, Field(ge=1, lt=10**12)]
Several = Annotated[int, Field(ge=2, lt=2**31)]
Natural = Annotated[int, Field(ge=0, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Ratio = Annotated[float, Field(gt=0, lt=1)]
"""A pruning ratio: share of a cost that is saved."""
Interval = Annotated[
    list[NonNegative], Field(min_length=2, max_length=2), AfterValidator(_ascending)
]
"""[lowest, highest]."""
Ratios = Annotated[list[Ratio], Field(min_length=1), AfterValidator(_ascending)]
RatioInterval = Annotated[
    list[Ratio], Field(min_length=2, max_length=2), AfterValidator(_ascending)
]
