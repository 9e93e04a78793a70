"""Types of config sections in files, which may come from strangers."""

from collections.abc import Collection, Iterator
from functools import cache
from typing import Annotated, Any, Literal

from omegaconf import OmegaConf
from pydantic import AfterValidator, Field, StringConstraints, ValidationInfo

from ppf.arguments import TARGET, check_component
from ppf.conf import options, read_option
from ppf.errors import PPFError
from ppf.records.values import Word

_Scalar = bool | Annotated[int, Field(gt=-(2**63), lt=2**63)] | float | Word | None
_Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z]\w*$")]
_Plain: Any = _Scalar
for _ in range(4):  # lists and dictionaries inside each other, which name no classes
    _Plain = _Scalar | Annotated[list[_Plain], Field(max_length=64)] | dict[_Name, _Plain]
_Section = dict[Literal["_target_"] | _Name, _Plain]


def packaged(group: str, key: str | None = None, fixed: Collection[str] = ()) -> Any:
    """The type of a config section that names a class of `ppf/conf/<group>`.

    A section must name the `_target_` of one of these YAML files. It may have the keys that the
    files give this target; their values are plain and fit the target's signature. So a new class
    needs its YAML file, and no change here.

    The validation's context lists the user's own targets. Their arguments may be any plain values.

    Args:
        group: config group, for example "importance" or "predictor/encoder".
        key: key of the section in each file, for example "source"; None: the whole file.
        fixed: keys whose values must be those of a YAML file.
    """

    @cache
    def sections() -> list[dict[str, Any]]:
        read: Any = [OmegaConf.to_container(read_option(group, name)) for name in options(group)]
        return [section for file in read if (section := file.get(key) if key else file)]

    def check(given: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        target = given.get(TARGET)
        if target in (info.context or ()):
            return given
        known = [section for section in sections() if section.get(TARGET) == target]
        if not known:
            raise ValueError("names a class that is neither PPF's own nor in trust_targets")
        for name in _unknown(given, known):
            raise ValueError(f"has no key {name}")
        for name in fixed:
            if given.get(name) not in [section.get(name) for section in known]:
                raise ValueError(f"cannot have another {name}")
        try:
            if target:
                check_component((), given)
        except PPFError as error:
            raise ValueError(f"is wrong: {str(error).rstrip('.')}") from error
        return given

    return Annotated[_Section, AfterValidator(check)]


def _unknown(given: Any, known: list[Any]) -> Iterator[str]:
    """The keys of a section, and of dictionaries in it, that no known section has."""
    if isinstance(given, dict):
        known = [section for section in known if isinstance(section, dict)]
        for key, value in given.items():
            if values := [section[key] for section in known if key in section]:
                yield from _unknown(value, values)
            else:
                yield key
