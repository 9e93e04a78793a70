"""What clients may send."""

from pydantic import BaseModel, ConfigDict, Field


class CompletionRequest(BaseModel):
    """OpenAI's completion request, with `pruning_ratio`; what is not served is refused."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(min_length=1)
    model: str | None = None
    max_tokens: int = Field(16, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = None
    stream: bool = False
    pruning_ratio: float = Field(0.0, ge=0, lt=1)
