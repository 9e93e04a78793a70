"""Schema of the hyper-parameters in a predictor's checkpoint."""

from typing import Annotated

from pydantic import Field, model_validator

from ppf.records.packaged import packaged
from ppf.records.space import SpaceRecord
from ppf.records.values import Number, Record

_Levels = list[list[float]]


class FeaturesRecord(Record):
    """Features of the sites: one row for each site, one column for each number of kept units."""

    errors: _Levels
    retained: _Levels
    energy: list[float]
    losses: _Levels


class PredictorRecord(Record):
    """Arguments of `PredictorModule`."""

    space: SpaceRecord
    features: FeaturesRecord
    dense_nll: float
    encoder: packaged("predictor/encoder")  # type: ignore[valid-type]
    network: packaged("predictor", "network")  # type: ignore[valid-type]
    residual: packaged("predictor", "residual") | None  # type: ignore[valid-type]
    optimizer: packaged("predictor/optimizer")  # type: ignore[valid-type]
    members: Annotated[int, Field(ge=1, le=64)]
    weight_decay: Number
    knee: Annotated[float, Field(gt=0)]
    huber: Annotated[float, Field(gt=0)]
    catastrophic: Number
    bands: Annotated[list[Number], Field(min_length=2, max_length=64)]

    @model_validator(mode="after")
    def _fits(self) -> "PredictorRecord":
        sites, levels = len(self.space.sites), 1 + max(site.units for site in self.space.sites)
        for rows in (self.features.errors, self.features.retained, self.features.losses):
            if len(rows) != sites or any(len(row) != levels for row in rows):
                raise ValueError(f"features should have {sites} sites of {levels} levels")
        if len(self.features.energy) != sites:
            raise ValueError(f"features.energy should have {sites} sites")
        return self
