"""The base of every settings object: frozen, typed, unknown keys refused."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """One stage's settings. Immutable; an unknown key or a wrong type is an error that names the key.

    Each field is followed by a string that says what it means and in which unit; `roboalign doctor` does not
    repeat it, the recipe reference in docs/recipe-reference.md is generated from it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)
