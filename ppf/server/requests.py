"""Schemas of the requests that clients send."""

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, Field, model_validator
from transformers import PreTrainedTokenizerBase

from ppf.errors import PPFError, reason
from ppf.ranges import STRICT

Characters = Annotated[str, Field(min_length=0)]
"""Any text. pydantic refuses half a surrogate pair only in strings that have a constraint."""
Stops = Annotated[
    list[Annotated[str, Field(min_length=1)]],
    Field(max_length=4),
    BeforeValidator(lambda given: [given] if isinstance(given, str) else given),
]
Nothing = Annotated[list[Any] | dict[str, Any], Field(max_length=0)]


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
    """`include_usage` adds a last event with the counts."""

    include_usage: bool = False


class GenerationRequest(Schema):
    """The fields that completions and chats share: OpenAI's, and `pruning_ratio`.

    At temperature 0, the most likely token is chosen instead of sampling.
    """

    model: str | None = None
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    n: int = Field(1, ge=1)
    stop: Stops = Field(default_factory=list)
    seed: int | None = Field(None, ge=0, lt=2**64)
    stream: bool = False
    stream_options: StreamOptions = Field(default_factory=StreamOptions)
    pruning_ratio: float = Field(0.0, ge=0, lt=1)
    # Fields of OpenAI's clients that change no text here.
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    parallel_tool_calls: Any = None
    # Fields that are accepted with the values that change nothing.
    best_of: Literal[1] = 1
    echo: Literal[False] = False
    frequency_penalty: Literal[0] = 0
    presence_penalty: Literal[0] = 0
    logit_bias: Nothing = Field(default_factory=dict)
    suffix: Literal[""] = ""
    response_format: dict[Literal["type"], Literal["text"]] = Field(default_factory=dict)
    tools: Nothing = Field(default_factory=list)
    tool_choice: Literal["none", "auto"] = "none"


def _only_one(given: Any) -> Any:
    """The prompt in a list of one prompt, as some clients send it."""
    return given[0] if isinstance(given, list) and len(given) == 1 else given


class CompletionRequest(GenerationRequest):
    """The request of /v1/completions."""

    prompt: Annotated[str, Field(min_length=1), BeforeValidator(_only_one)]
    max_tokens: int = Field(16, ge=1)
    logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def alternatives(self) -> int | None:
        """Number of likely tokens to report with each token; None: no log-probabilities."""
        return self.logprobs

    def tokens(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The tokens of the prompt."""
        return list(tokenizer(self.prompt, verbose=False)["input_ids"])


class TextPart(Schema):
    """A part of a message. Only text is supported."""

    type: Literal["text"]
    text: Characters


class Message(Schema):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Characters | Annotated[list[TextPart], Field(fail_fast=True)]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """The message as chat templates expect it."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(GenerationRequest):
    """The request of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, fail_fast=True)
    max_tokens: int | None = Field(
        None, ge=1, validation_alias=AliasChoices("max_completion_tokens", "max_tokens")
    )
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)

    @property
    def alternatives(self) -> int | None:
        """Number of likely tokens to report with each token; None: no log-probabilities."""
        return self.top_logprobs if self.logprobs else None

    def tokens(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The chat in the model's template, up to where the answer begins.

        Raises:
            PPFError: there is no template, or it refuses the messages.
        """
        messages = [message.plain() for message in self.messages]
        try:
            found: Any = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=True
            )
        except Exception as error:  # a template can compute anything
            raise PPFError(
                f"the chat template refuses the messages ({reason(error)}): change them, send a"
                " prompt to /v1/completions, or restart the server with chat_template=FILE."
            ) from error
        return list(found["input_ids"])


AnyRequest = CompletionRequest | ChatRequest
