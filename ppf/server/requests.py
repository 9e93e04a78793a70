"""Schema of the requests that clients send."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

_LEAST_TEMPERATURE = 1e-6  # below it, logits divided by the temperature could overflow float32


def _finite_logits(temperature: float) -> float:
    if 0 < temperature < _LEAST_TEMPERATURE:
        raise ValueError(f"Input should be 0 or at least {_LEAST_TEMPERATURE:g}")
    return temperature


class CompletionRequest(BaseModel):
    """OpenAI's completion request, and `pruning_ratio`; unknown fields are refused.

    At temperature 0, the most likely token is chosen instead of sampling.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    prompt: str = Field(min_length=1)
    model: str | None = None
    max_tokens: int = Field(16, ge=1)
    temperature: Annotated[float, AfterValidator(_finite_logits)] = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**64)
    stream: bool = False
    pruning_ratio: float = Field(0.0, ge=0, lt=1)
