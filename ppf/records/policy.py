"""Schema of policy.json, and of the config sections that agent.json has too."""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from ppf.ranges import Count, Positive, Seed, Several, Share
from ppf.records.packaged import packaged
from ppf.records.reading import read
from ppf.records.values import Natural64, Number, NumberFormat, Record, SiteName, Word

FORMAT = 1
_Part = Literal["calibration", "labelling", "selection", "test"]
_Compensation = Literal["one_shot", "sequential", "adapters", "recovered"]
_Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{1,64}$")]
_Units = Annotated[dict[SiteName, Natural64], Field(min_length=1, max_length=8192)]
_Types = Annotated[dict[SiteName, NumberFormat], Field(min_length=1, max_length=8192)]
_WHEELS = ("package", "file", "requirement", "size", "sha256", "parts")  # what is downloaded


class CardRecord(Record):
    """Facts for a model card."""

    base_model: Word | None = None
    license: Word | None = None
    language: list[Word] | None = None


class ModelRecord(Record):
    """Section `model`, as in `conf/model`."""

    name: Word
    path: Word | None
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    offload: Literal["cpu", "disk"] | None = None
    device_map: Literal["auto"] | None = None
    tie_embeddings: bool = False
    card: CardRecord | None = None
    source: packaged("model", "source", _WHEELS) | None  # type: ignore[valid-type]


class WindowsRecord(Record):
    """How many windows each part of the text has; null: all."""

    calibration: Count | None
    labelling: Count | None
    test: Count | None


class MixedText(Record):
    """One text of a mixture: an option of `text`, with another file or folder if it names one."""

    text: Word
    weight: Positive
    path: Word | None = None
    column: Word | None = None


class TextRecord(Record):
    """Section `text`, as in `conf/text`."""

    name: Word
    path: Word | None
    column: Word
    mixture: list[MixedText] = []
    window: Several
    windows: WindowsRecord
    bos: Literal["window", "stream"] = "window"
    loss_on: Literal["all", "assistant"] = "all"
    seed: Seed
    splits: dict[Word, dict[Literal["calibration", "labelling", "test"], Positive]]
    source: packaged("text", "source") | None  # type: ignore[valid-type]


class LabelsRecord(Record):
    """Section `labels`, as in `conf/base.yaml`."""

    count: Natural64 | None
    batch: Count
    context: Count = 1  # only policies of earlier versions have it


class ConfigRecord(Record):
    """The config sections that determine the pruned model of a policy."""

    model: ModelRecord
    text: TextRecord
    space: packaged("space")  # type: ignore[valid-type]
    importance: packaged("importance")  # type: ignore[valid-type]
    compensation: packaged("compensation")  # type: ignore[valid-type]
    labels: LabelsRecord


class SignaturesRecord(Record):
    """Signatures of the artefacts that a policy or an agent was made from."""

    statistics: _Hash
    order: _Hash
    bank: _Hash
    labels: _Hash
    predictor: _Hash = ""


class RatioRecord(Record):
    """Requested and achieved pruning ratio, and the removed share of all parameters."""

    asked: Share
    achieved: Share
    of_all_parameters: Share


class BudgetRecord(Record):
    """Name of the search's budget, and the share of it that the policy saves."""

    name: Word
    saved: Share


class PerplexityRecord(Record):
    """Mean negative log-likelihood (nats per token) and perplexity; null: not finite."""

    nll: float | None
    perplexity: float | None


class PredictionRecord(PerplexityRecord):
    """A prediction, its standard deviation (nats per token) and its 95 % interval (perplexity)."""

    std: float
    interval_95: Annotated[list[float | None], Field(min_length=2, max_length=2)]


class MeasurementRecord(PerplexityRecord):
    """Perplexity of a policy, measured on a part of the text.

    `std_error` is the standard error of `nll` over the windows.
    """

    part: _Part
    std_error: float | None = None


class UniformRecord(Record):
    """The uniform policy at the same ratio."""

    kept: _Units
    types: _Types | None = None
    measured: MeasurementRecord
    selection: MeasurementRecord | None = None


class AdaptersRecord(Record):
    """How the adapters of all ratios were trained."""

    tokens: Natural64
    minutes: Number
    text: Word


class ChoiceRecord(Record):
    """Perplexities that decided between one-shot and sequential compensation."""

    one_shot: PerplexityRecord
    sequential: PerplexityRecord
    part: _Part
    windows: Count


class ExportedRecord(Record):
    """Perplexities of the weights beside a policy.json, and what they were measured on.

    `compensation` names the weights in the folder; "recovered" are those after a recovery.
    `choice` is null if sequential compensation was not tried. `dense` is the dense model's
    perplexity. `adapters` are those in the weights, if there are any.
    """

    compensation: _Compensation
    measured: dict[_Compensation, PerplexityRecord]
    part: _Part
    windows: Count
    window: Count
    context: Count = 1  # only policies of earlier versions have it
    dtype: Literal["float32", "bfloat16", "float16"]
    choice: ChoiceRecord | None = None
    dense: PerplexityRecord | None = None
    adapters: AdaptersRecord | None = None


class RecoveredRecord(AdaptersRecord):
    """How the weights beside a policy.json were trained, and what that changed.

    The perplexities were measured on the validation part of the training text.
    """

    tune: list[Word]
    loss: list[Word]
    windows: Count
    window: Count
    precision: Word
    seed: Natural64
    dense: PerplexityRecord
    pruned: PerplexityRecord
    recovered: PerplexityRecord
    won_back: float | None


class PolicyRecord(Record):
    """The contents of a policy.json."""

    format: Literal[FORMAT]  # type: ignore[valid-type]
    model: Word
    space: Word
    text: Word
    kept: _Units
    types: _Types | None = None
    units: Annotated[dict[SiteName, Count], Field(min_length=1, max_length=8192)]
    ratio: RatioRecord
    budget: BudgetRecord
    predicted: PredictionRecord
    measured: MeasurementRecord
    selection: MeasurementRecord | None = None
    uniform: UniformRecord
    signatures: SignaturesRecord
    config: ConfigRecord
    exported: ExportedRecord | None = None
    recovered: RecoveredRecord | None = None

    @model_validator(mode="after")
    def _fits(self) -> "PolicyRecord":
        for place, policy in (("", self), ("uniform.", self.uniform)):
            for name, sites in (("kept", policy.kept), ("types", policy.types or self.units)):
                if sites.keys() != self.units.keys():
                    raise ValueError(f"{place}{name} should name the same sites as units")
            for site, units in self.units.items():
                if policy.kept[site] > units:
                    raise ValueError(f"{place}kept.{site} should be at most {units}")
        return self


def read_policy(path: str | Path, trusted: Collection[str]) -> dict[str, Any]:
    """Reads a policy.json, which may come from a stranger.

    Args:
        trusted: `trust_targets`: classes of the user's own that it may name.
    """
    return read(path, PolicyRecord, "give the policy.json of a search", trusted)
