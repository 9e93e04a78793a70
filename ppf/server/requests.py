"""Schemas of the requests that clients send."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, FailFast, Field, model_validator

from ppf.ranges import STRICT

_LEAST_TEMPERATURE = 1e-6  # below it, logits divided by the temperature could overflow float32
_MOST_CHOICES = 16
_MOST_PARTS = 1024  # of a message
_IGNORED = {
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
    "verbosity",
}
"""Fields of OpenAI's requests that change no text here."""
_NEUTRAL: dict[str, list[Any]] = {
    "audio": [],
    "best_of": [1],
    "echo": [False],
    "frequency_penalty": [0],
    "function_call": ["none", "auto"],
    "functions": [[]],
    "logit_bias": [{}],
    "modalities": [["text"]],
    "presence_penalty": [0],
    "response_format": [{"type": "text"}],
    "suffix": [""],
    "tool_choice": ["none", "auto"],
    "tools": [[]],
}
"""Fields that are accepted with these values only, which change nothing."""


def _finite_logits(temperature: float) -> float:
    if 0 < temperature < _LEAST_TEMPERATURE:
        raise ValueError(f"Input should be 0 or at least {_LEAST_TEMPERATURE:g}")
    return temperature


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _only_one(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    if len(value) != 1 or not isinstance(value[0], str):
        raise ValueError("this server takes one prompt, as text: send a request for each")
    return value[0]


Stops = Annotated[
    list[Annotated[str, Field(min_length=1)]], Field(max_length=4), BeforeValidator(_as_list)
]


Characters = Annotated[str, Field(min_length=0)]
"""Any text. pydantic refuses half a surrogate pair only in strings that have a constraint."""


class Schema(BaseModel):
    """A field that is null has its default. Unknown fields are refused; no value is converted."""

    model_config = STRICT

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None}


class StreamOptions(Schema):
    """`include_usage` adds a last event with the counts; `include_obfuscation` has no effect."""

    include_usage: bool = False
    include_obfuscation: bool = False


class GenerationRequest(Schema):
    """The fields that completions and chats share: OpenAI's, and `pruning_ratio`.

    At temperature 0, the most likely token is chosen instead of sampling. A field that is null has
    its default. Fields that change no text are accepted.

    Attributes:
        continues: whether the answer continues the prompt's text.
    """

    continues: ClassVar[bool] = False
    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: Annotated[float, AfterValidator(_finite_logits)] = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    n: int = Field(1, ge=1, le=_MOST_CHOICES)
    stop: Stops = Field(default_factory=list)
    seed: int | None = Field(None, ge=0, lt=2**64)
    stream: bool = False
    stream_options: StreamOptions = Field(default_factory=StreamOptions)
    pruning_ratio: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _without_harmless(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        for name in given.keys() & _NEUTRAL.keys():
            if given[name] is not None and given[name] not in _NEUTRAL[name]:
                raise ValueError(f"this server does not support {name}: leave it out")
        return {k: v for k, v in given.items() if k not in _IGNORED | _NEUTRAL.keys()}

    @property
    def most_tokens(self) -> int | None:
        """Largest number of new tokens; None: as many as the model has positions for."""
        return self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """Number of likely tokens to report with each token; None: no log-probabilities."""
        raise NotImplementedError


class CompletionRequest(GenerationRequest):
    """The request of /v1/completions."""

    continues: ClassVar[bool] = True
    prompt: Annotated[str, BeforeValidator(_only_one)] = Field(min_length=1)
    max_tokens: int = Field(16, ge=1)
    logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def alternatives(self) -> int | None:
        return self.logprobs


class TextPart(Schema):
    """A part of a message. Only text is supported."""

    type: Literal["text"]
    text: Characters


class Message(Schema):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Characters | Annotated[list[TextPart], Field(max_length=_MOST_PARTS)]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """The message as chat templates expect it."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(GenerationRequest):
    """The request of /v1/chat/completions."""

    messages: Annotated[list[Message], FailFast()] = Field(min_length=1)  # one error is told
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)

    @model_validator(mode="after")
    def _logprobs_are_wanted(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        return self

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def alternatives(self) -> int | None:
        return self.top_logprobs if self.logprobs else None
