"""policy.json, and the config sections that it has in common with agent.json."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from ppf.records.packaged import packaged
from ppf.records.values import Natural, Number, Positive, Record, Share, SiteName, Word

FORMAT = 1
_Part = Literal["calibration", "labelling", "test"]
_Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{1,64}$")]
_Units = Annotated[dict[SiteName, Natural], Field(min_length=1, max_length=8192)]
_WHEEL = ("package", "file", "requirement")  # a message tells users to install it


class Model(Record):
    """As in `conf/model`."""

    name: Word
    path: Word | None
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    source: packaged("model", "source", _WHEEL) | None  # type: ignore[valid-type]


class Windows(Record):
    """How many windows each part of the text has; null: all."""

    calibration: Natural | None
    labelling: Natural | None
    test: Natural | None


class Text(Record):
    """As in `conf/text`."""

    name: Word
    path: Word | None
    column: Word
    window: Positive
    windows: Windows
    bos: Literal["window", "stream"] = "window"
    seed: Natural
    splits: dict[Word, dict[_Part, Number]]
    source: packaged("text", "source") | None  # type: ignore[valid-type]


class Labels(Record):
    """As in `conf/base.yaml` and `conf/train.yaml`."""

    count: Natural
    batch: Positive
    context: Positive
    catastrophic: Number
    kl_top_k: Natural
    acquired: Natural
    pool: Natural


class Config(Record):
    """What determines the model that a policy belongs to."""

    model: Model
    text: Text
    space: packaged("space")  # type: ignore[valid-type]
    importance: packaged("importance")  # type: ignore[valid-type]
    compensation: packaged("compensation")  # type: ignore[valid-type]
    labels: Labels


class Signatures(Record):
    """Of the artefacts that a policy or an agent was made from."""

    statistics: _Hash
    order: _Hash
    bank: _Hash
    labels: _Hash
    predictor: _Hash = ""


class Ratio(Record):
    """Pruning ratios: the one asked for, and what is really removed."""

    asked: Share
    achieved: Share
    of_all_parameters: Share


class Budget(Record):
    """What the search was charged, and the share of it that the policy saves."""

    name: Word
    saved: Share


class Known(Record):
    """Nats per token, and perplexity; null where they are not finite."""

    nll: float | None
    perplexity: float | None


class Predicted(Known):
    """A prediction with its standard deviation, and 95 % of the perplexities that it allows."""

    std: float
    interval_95: Annotated[list[float | None], Field(min_length=2, max_length=2)]


class Measured(Known):
    """What a policy scores on a part of the text."""

    part: _Part


class Uniform(Record):
    """The uniform policy of the same ratio."""

    kept: _Units
    measured: Measured


class Exported(Record):
    """What the weights beside a policy.json score, and on what."""

    compensation: Literal["one_shot", "sequential"]
    measured: dict[Literal["one_shot", "sequential"], Known]
    part: _Part
    windows: Positive
    window: Positive
    context: Positive
    dtype: Word


class Policy(Record):
    """The contents of a policy.json."""

    format: Literal[FORMAT]  # type: ignore[valid-type]
    model: Word
    space: Word
    text: Word
    kept: _Units
    units: _Units
    ratio: Ratio
    budget: Budget
    predicted: Predicted
    measured: Measured
    uniform: Uniform
    signatures: Signatures
    config: Config
    exported: Exported | None = None

    @model_validator(mode="after")
    def _fits(self) -> "Policy":
        for name, kept in (("kept", self.kept), ("uniform.kept", self.uniform.kept)):
            if kept.keys() != self.units.keys():
                raise ValueError(f"{name} should name the same sites as units")
            for site, units in self.units.items():
                if kept[site] > units:
                    raise ValueError(f"{name}.{site} should be at most {units}")
        return self
