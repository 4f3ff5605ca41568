"""The base of every settings object: frozen, typed, unknown keys refused; and its errors as one message."""

import difflib
import math
import re
import reprlib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from roboalign.core.errors import RoboAlignError

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""A seed that every library takes: numpy's and transformers' are 32 bits wide."""
Weight = Annotated[float, Field(ge=0, le=1e12)]
"""A weight relative to others."""
LARGEST_WHOLE = 2**32 - 1
LARGEST = 1e30
"""No setting means anything beyond these; arithmetic on it overflows."""


class Config(BaseModel):
    """One group of settings. Immutable; an unknown key or a wrong type is an error that names the key.

    Numbers are finite and at most LARGEST, and `true` is no number. Each field is followed by a string that says what
    it means and in which unit: the recipe reference is generated from it.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _sane_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML's `yes` and `on` are true, which pydantic would take as 1."""
        field = cls.model_fields[info.field_name or ""]
        if not _takes(field.annotation, int, float) or _takes(field.annotation, bool):
            return value
        for number in _scalars(value):
            if isinstance(number, bool):
                raise ValueError("true and false are no numbers")
            if isinstance(number, int) and abs(number) > LARGEST_WHOLE:
                raise ValueError(f"a whole number here is at most {LARGEST_WHOLE}")
            if isinstance(number, float) and LARGEST < abs(number) < math.inf:
                raise ValueError(f"a number here is at most {LARGEST:g}")
        return value


def _scalars(value: Any) -> Iterator[Any]:
    """The values inside lists and mappings, at any depth."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _scalars(item)
    else:
        yield value


def _takes(annotation: Any, *kinds: type) -> bool:
    """Whether a type of these is part of an annotation, as of `tuple[int, ...] | None`."""
    if annotation in kinds or annotation is Any:
        return True
    return any(_takes(part, *kinds) for part in get_args(annotation))


def validated(kind: Any, values: Any, where: str, at: str = "", fix: str = "") -> Any:
    """`values` as a `kind`, a settings class or any type of pydantic. Raises RoboAlignError; see `_explain`."""
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise _explain(error, kind, where, at, fix) from None


def _explain(
    error: ValidationError, kind: Any, where: str, at: str = "", fix: str = ""
) -> RoboAlignError:
    """The first fault of a validation as one message that names the key, with the nearest known key for an unknown one.

    `at` is the key below which the values are in the file. `fix` is used where the fault itself suggests none; `{key}`
    in it is replaced.
    """
    fault = error.errors()[0]
    # pydantic names the member of a union that it tried, as `tuple[str, ...]`: that is no key.
    location = [part for part in fault["loc"] if "[" not in str(part)]
    key = ".".join([*([at] if at else []), *map(str, location)])
    count = error.error_count() - 1
    more = f" ({count} more faults after this one)" if count else ""
    if fault["type"] == "extra_forbidden":
        known = _fields_at(kind, fault["loc"][:-1])
        near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
        fix = f"did you mean `{near[0]}`?" if near else f"known keys here: {', '.join(known)}"
        return RoboAlignError(f"unknown key `{key}`{more}", where=where, fix=fix)
    message = fault["msg"].removeprefix("Value error, ")
    if not key:  # a fault between two settings, both of which the message names
        return RoboAlignError(f"{message}{more}", where=where, fix="correct one of them")
    given = "" if isinstance(fault["input"], dict) else f", got {_short(fault['input'])}"
    fix = (fix or "correct `{key}` there").replace("{key}", _settable(key))
    return RoboAlignError(f"`{key}`: {message}{given}{more}", where=where, fix=fix)


def _settable(key: str) -> str:
    """The key of the whole list, where `key` names one of its items: an item cannot be set alone."""
    return re.sub(r"\.\d+(\..*)?$", "", key)


def _short(value: Any) -> str:
    """A value as text of some 200 characters at most, however deep it is."""
    short = reprlib.Repr()
    short.maxlevel = 2
    short.maxstring = short.maxother = 120
    short.maxlong = 40
    return short.repr(value)[:200]


def _fields_at(kind: Any, location: Sequence[int | str]) -> list[str]:
    """The keys of the settings class at a place of `kind`."""
    model: Any = kind
    for part in location:
        if isinstance(part, int) or "[" in part:
            continue
        if part in _sections(model):
            model = _sections(model)[part]
            continue
        field = getattr(model, "model_fields", {}).get(part)
        model = _class_in(field.annotation) if field is not None else None
    return [*getattr(model, "model_fields", {}), *_sections(model)]


def _sections(model: Any) -> dict[str, type[Config]]:
    """Keys of a group of settings that are no fields of its class, with the class of each: `cls.sections()`."""
    sections: dict[str, type[Config]] = getattr(model, "sections", dict)()
    return sections


def _class_in(annotation: Any) -> Any:
    """The settings class of an annotation, as of `tuple[Source, ...] | None`; None where it has none."""
    if hasattr(annotation, "model_fields"):
        return annotation
    return next(filter(None, map(_class_in, get_args(annotation))), None)
