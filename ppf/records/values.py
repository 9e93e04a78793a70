"""Types of plain values in files."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field, StringConstraints

from ppf.errors import printable
from ppf.ranges import STRICT


class Record(BaseModel):
    """A schema that refuses unknown fields and does not convert types."""

    model_config = STRICT


def _plain(text: str) -> str:
    """Refuses interpolations, which OmegaConf would resolve, and control characters."""
    if "${" in text or text == "???":
        raise ValueError("must not refer to other values")
    if printable(text) != text:
        raise ValueError("must not contain control characters")
    return text


Word = Annotated[str, StringConstraints(max_length=4096), AfterValidator(_plain)]
"""Text without interpolations of OmegaConf and without control characters."""
Natural64 = Annotated[int, Field(ge=0, lt=2**63)]
Number = Annotated[float, Field(ge=0)]
NumberFormat = Literal["f16", "q8_0", "q5_0", "q4_0"]
"""Number format of a matrix. In q8_0, q5_0 and q4_0, each block of a row shares one scale."""
FileFormat = NumberFormat | Literal["q4_k_m", "q5_k_m", "q6_k"]
"""Number format of the matrices in a GGUF file; the last three are mixtures of K-quants."""
SiteName = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,4}\.(attention|mlp|experts)$")]
