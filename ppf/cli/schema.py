"""The allowed keys of each command's config: one class for each section of the YAML files.

Parts that name a class or function (`_target_`) are checked against its signature instead, by
`ppf.cli.checks`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, model_validator

from ppf.errors import PPFError
from ppf.llm.sources import local_folder
from ppf.ranges import (
    STRICT,
    Count,
    Natural,
    NonNegative,
    Positive,
    PositiveShare,
    Ratio,
    RatioInterval,
    Ratios,
    Seed,
    Several,
    Share,
)

Component = dict[str, Any]
"""A part of the config with a `_target_`."""
SearchPart = Literal["calibration", "labelling", "test"]
TrainingPart = Literal["training", "validation", "test"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class Section(BaseModel):
    """A section with exactly these keys."""

    model_config = STRICT


def _model_folder(path: str) -> str:
    return local_folder(path, "model.path")


def _text_file(key: str) -> Callable[[str], str]:
    """A validator of the file that the config names under `key`."""

    def existing(path: str) -> str:
        if not Path(path).is_file():
            raise PPFError(f"{key}={path} does not exist: give a .txt, .jsonl or .parquet file.")
        return path

    return existing


class BankSection(Section):
    """How much memory the level bank may take."""

    max_gib: NonNegative


class PathsSection(Section):
    """Folders."""

    outputs: str
    artefacts: str
    cache: str
    run: str


class RunConfig(Section):
    """`run.yaml`, which every command shares."""

    fabric: Component
    logger: dict[str, Component]
    seed: Seed
    traceback: bool
    trust_targets: list[str]
    bank: BankSection
    paths: PathsSection


class CardSection(Section):
    """`card` of `model/*.yaml`."""

    base_model: str | None = None
    license: str | None = None
    language: list[str] | None = None


class ModelSection(Section):
    """`model/*.yaml`."""

    name: str
    path: Annotated[str, AfterValidator(_model_folder)] | None
    dtype: Dtype
    offload: Literal["cpu", "disk"] | None = None
    device_map: Literal["auto"] | None = None
    card: CardSection | None = None
    source: Component | None


class MoreTextSection(Section):
    """`training.more` of `text/*.yaml`."""

    path: Annotated[str, AfterValidator(_text_file("text.training.more.path"))] | None
    column: str


class TrainingTextSection(Section):
    """`training` of `text/*.yaml`."""

    splits: dict[str, dict[TrainingPart, Positive]]
    windows: dict[TrainingPart, Count | None]
    source: Component | None
    more: MoreTextSection


class TextSection(Section):
    """`text/*.yaml`."""

    name: str
    path: Annotated[str, AfterValidator(_text_file("text.path"))] | None
    column: str
    window: Several
    windows: dict[SearchPart, Count | None]
    bos: Literal["window", "stream"] = "window"
    seed: Seed
    splits: dict[str, dict[SearchPart, Positive]]
    source: Component | None
    training: TrainingTextSection

    @model_validator(mode="after")
    def _has_documents(self) -> Self:
        if self.path is None and self.source is None:
            raise PPFError("this text has no documents: give text.path=FILE, or text.source.")
        return self


class LabelsSection(Section):
    """The section `labels` of base.yaml."""

    count: Count
    batch: Count
    context: Count
    catastrophic: Positive
    kl_top_k: Natural


class CollectConfig(RunConfig):
    """`base.yaml` and `collect.yaml`."""

    model: ModelSection
    text: TextSection
    space: Component
    importance: Component
    compensation: Component
    sampler: Component
    rules: dict[str, Component]
    upstream: Literal["make", "require"]
    plan: bool
    labels: LabelsSection

    @model_validator(mode="after")
    def _leaves_tokens(self) -> Self:
        context, window = self.labels.context, self.text.window
        if context >= window:
            raise PPFError(
                f"labels.context={context} leaves no token to score in windows of"
                f" text.window={window}: lower labels.context."
            )
        return self


class AcquiredLabelsSection(LabelsSection):
    """Labels, with those that a predictor chooses; the number depends on it if it is not given."""

    count: Count | None  # type: ignore[assignment]
    acquired: Natural
    pool: Count


class FitConfig(CollectConfig):
    """`fit.yaml`."""

    labels: AcquiredLabelsSection
    predictor: Component
    trainer: Component


class TrainConfig(FitConfig):
    """`train.yaml`."""

    test_policies: Natural


class BudgetSection(Section):
    """`budget/*.yaml`."""

    name: str
    cost: Component


class RoundsSection(Section):
    """`search` of `search.yaml`."""

    top_k: Count
    neighbours: Natural
    rounds: Count
    label_budget: Count
    finalists: Count
    selection_windows: Natural
    trust_region: PositiveShare
    widen: Annotated[float, Field(ge=1)]
    agreement: Share
    gain: NonNegative
    tolerance: NonNegative
    spread_penalty: float
    start: str | None
    proposals_only: bool
    warm_start: bool
    checkpoint_every: Count


class DynamicSection(Section):
    """`dynamic` of `search.yaml`."""

    train: RatioInterval
    knots: Several
    stride: Count
    tolerance: NonNegative
    polish: Component


class ParetoSection(Section):
    """The two costs of the report's Pareto front."""

    x: BudgetSection
    y: BudgetSection


class SearchConfig(FitConfig):
    """`search.yaml`."""

    agent: Component
    budget: BudgetSection
    pareto: ParetoSection
    mode: Literal["static", "dynamic", "chain"]
    ratio: Ratio
    ratios: Ratios
    report_test: bool
    sequential: bool
    refit_windows: Count | None
    search: RoundsSection
    dynamic: DynamicSection


class SpeedSection(Section):
    """How prefill and decode are timed."""

    batches: Annotated[list[Count], Field(min_length=1)]
    prompt: Count
    new_tokens: Count
    repeats: Count


class PruneConfig(RunConfig):
    """`prune.yaml`."""

    export: Component
    policy: str | None
    path: str | None
    search: str | None
    ratio: Ratio | None
    out: str
    sequential: bool
    refit_windows: Count | None
    dtype: Dtype
    latency: bool
    speed: SpeedSection


class RecoverConfig(RunConfig):
    """`recover.yaml`."""

    text: TextSection
    loss: Annotated[dict[str, Component], Field(min_length=1)]
    tune: Annotated[dict[str, Component], Field(min_length=1, max_length=1)]
    policy: str | None
    path: str | None
    search: str | None
    out: str
    sequential: bool
    refit_windows: Count | None
    report_test: bool
    dtype: Dtype
    ratios: Ratios
    elastic: Component
    recovery: Component
    trainer: Component


class EvaluateConfig(RunConfig):
    """`evaluate.yaml`."""

    text: TextSection | None = None
    policy: str | None
    path: str | list[str] | None
    trust_remote_code: bool
    dtype: Dtype
    batch: Count
    sequential: bool
    refit_windows: Count | None
    baselines: bool
    window: Several | None
    stride: Count | None
    latency: bool
    speed: SpeedSection
    tasks: list[str]
    limit: Count | None


class LimitsSection(Section):
    """What a server accepts from clients."""

    body_mib: Positive
    sequences: Count
    context: Count
    turn_seconds: Positive
    queue: Natural
    seconds: Positive
    shutdown_seconds: NonNegative


class ServeConfig(RunConfig):
    """`runtime.yaml` and `serve.yaml`."""

    search: str
    dtype: Dtype | None
    name: str | None
    chat_template: str | None
    host: str
    port: Annotated[int, Field(ge=0, lt=2**16)]
    api_key: str | int | None
    log_level: Literal["critical", "error", "warning", "info", "debug", "trace"]
    limits: LimitsSection


COMMANDS: dict[str, type[RunConfig]] = {
    "collect": CollectConfig,
    "train": TrainConfig,
    "search": SearchConfig,
    "prune": PruneConfig,
    "recover": RecoverConfig,
    "evaluate": EvaluateConfig,
    "serve": ServeConfig,
}
