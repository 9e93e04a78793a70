"""Schemas of config sections in files. They allow only what PPF's own YAML files contain."""

from collections.abc import Collection, Iterator
from functools import reduce
from importlib.resources import files
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import OmegaConf
from pydantic import (
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    create_model,
)

from ppf.conf import read_option
from ppf.records.values import Natural64, Number, Record, Word

TARGET = "_target_"


def packaged(
    group: str,
    key: str | None = None,
    fixed: Collection[str] = (),
    optional: Collection[str] = (),
) -> Any:
    """The type of a config section, derived from the YAML files of `ppf/conf/<group>`.

    A section must name the `_target_` of one of these files. It may have the keys that the files
    give this target, with values of the types that these keys have in the group. So a new class
    needs its YAML file, and no change here.

    The validation's context lists the user's own targets. Their arguments may be plain values, and
    lists and dictionaries of such, but name no class.

    Args:
        group: config group, for example "importance" or "predictor/encoder".
        key: key of the section in each file, for example "source"; None: the whole file.
        fixed: keys whose values must be those of a YAML file.
        optional: keys that files of earlier versions lack.
    """
    sections = list(_sections(group, key))
    targets = dict.fromkeys(section.get(TARGET) for section in sections)
    choices = [
        _model(
            [s for s in sections if s.get(TARGET) == target], sections, (TARGET, *fixed), optional
        )
        for target in targets
    ]
    one_of: Any = reduce(or_, choices)
    if len(choices) > 1:
        one_of = Annotated[one_of, Field(discriminator="field0")]
    return Annotated[one_of, WrapValidator(_trusting)]


def _trusting(value: Any, ours: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    own = isinstance(value, dict) and value.get(TARGET) in (info.context or ())
    return _OWN.validate_python(value) if own else ours(value)


def _sections(group: str, key: str | None) -> Iterator[dict[str, Any]]:
    folder = Path(str(files("ppf.conf"))) / group
    for file in sorted(folder.glob("*.yaml")):
        content: Any = OmegaConf.to_container(read_option(group, file.stem))
        section = content.get(key) if key else content
        if section:
            yield section


def _model(
    same: list[dict[str, Any]],
    group: list[dict[str, Any]],
    fixed: Collection[str] = (),
    optional: Collection[str] = (),
) -> type[Record]:
    """A schema with the keys of `same`, and the types of value that they have in `group`.

    An `optional` key, and one that some of `same` lack, may be missing.
    """
    fields: dict[str, Any] = {}
    # pydantic reserves some names, so that fields are numbered. The target must be field0.
    for key in sorted({key for section in same for key in section}, key=lambda key: key != TARGET):
        if key in fixed:
            kind: Any = Literal[tuple(section[key] for section in same)]
        else:
            kind = _kind([section[key] for section in group if key in section])
        needed = key not in optional and all(key in section for section in same)
        missing: Any = {} if needed else {"default": None}
        fields[f"field{len(fields)}"] = (kind, Field(alias=key, **missing))
    return create_model("Section", __base__=Record, **fields)


def _kind(examples: list[Any]) -> Any:
    """The type of these values; text if all are null."""
    kinds = [_SCALARS[type(value)] for value in examples if type(value) in _SCALARS]
    if lists := [value for value in examples if isinstance(value, list)]:
        kinds.append(Annotated[list[_kind(sum(lists, []))], Field(max_length=64)])  # type: ignore
    if parts := [value for value in examples if isinstance(value, dict)]:
        kinds.append(_model(parts, parts))
    kinds = kinds or [Word]
    return reduce(or_, [*kinds, None] if None in examples else kinds)


_SCALARS: dict[type, Any] = {bool: bool, int: Natural64, float: Number, str: Word}
_Scalar = bool | int | float | Word | None
_Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z]\w*$")]
_Plain: Any = _Scalar
for _ in range(4):  # lists and dictionaries inside each other
    _Plain = _Scalar | list[_Plain] | dict[_Name, _Plain]
_OWN: TypeAdapter[Any] = TypeAdapter(
    dict[Literal["_target_"] | _Name, _Plain], config=ConfigDict(strict=True, allow_inf_nan=False)
)
