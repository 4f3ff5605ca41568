"""Define options of the command line: defaults are written once, and a wrong name gets the nearest
one as a hint."""

import argparse
import difflib
import types
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin

from roboalign.core.config import Config
from roboalign.core.errors import RoboAlignError
from roboalign.core.yaml import parse_yaml

SET_HELP = "override one setting of the recipe, for example sft.max_steps=100; may be repeated"


class _Help(argparse.RawDescriptionHelpFormatter):
    """Add its default to the help of every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        default = action.default
        silent = default is None or default is False or default in (argparse.SUPPRESS, [])
        return text if silent or not action.option_strings else f"{text} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """An argument parser with defaults in its help and errors of two lines."""

    def __init__(self, **named: Any) -> None:
        super().__init__(formatter_class=_Help, allow_abbrev=False, **named)

    def error(self, message: str) -> NoReturn:
        fix = f"see {self.prog} --help"
        if message.startswith("unrecognized arguments: "):
            given = message.split()[2].partition("=")[0]
            message = f"no option {given}" if given.startswith("-") else f"no argument {given}"
            if near := nearest(given, _options_of(self)):
                fix = f"did you mean {near}? See {self.prog} --help"
        self.exit(2, f"error: {self.prog}: {message}.\n  fix: {fix}\n")


def nearest(given: str, known: list[str]) -> str:
    """Return the known name that is most like `given`; "" if there is none."""
    return next(iter(difflib.get_close_matches(given, known, 1, 0.5)), "")


def add_set(parser: argparse.ArgumentParser) -> None:
    """Add `--set KEY=VALUE` to a verb that takes a recipe."""
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=SET_HELP)


def add_settings(
    parser: argparse.ArgumentParser, config: type[Config], *names: str, prefix: str = ""
) -> None:
    """Add an option for each of these fields of `config`, with its name, type, default and
    docstring.

    A field with several values takes them after one option. `prefix` is put before each help text.
    """
    for name in names:
        field = config.model_fields[name]
        text = " ".join((field.description or "").split()).removesuffix(".")
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            default=field.default,
            help=(prefix + text[:1].lower() + text[1:]).replace("%", "%%"),
            **_kind(field.annotation),
        )


def _kind(annotation: Any) -> dict[str, Any]:
    """Return the argparse arguments that read a value of this type; its bounds are checked later."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if isinstance(annotation, types.UnionType) or get_origin(annotation) is Union:
        (annotation,) = (one for one in get_args(annotation) if one is not type(None))
    if get_origin(annotation) is Literal:
        return {"choices": get_args(annotation)}
    if get_origin(annotation) is tuple:
        return {"nargs": "+", **_kind(get_args(annotation)[0])}
    if annotation is bool:
        return {"action": "store_true"}
    return {"type": annotation, "metavar": "TEXT" if annotation is str else "N"}


def _options_of(parser: argparse.ArgumentParser) -> list[str]:
    """Return the option names of a parser and of its subparsers."""
    names: list[str] = []
    for action in parser._actions:
        names += action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                names += _options_of(below)
    return names


def benchmark_settings(given: list[str]) -> dict[str, Any]:
    """Return a benchmark's `--set KEY=VALUE` options as nested settings."""
    values: dict[str, Any] = {}
    for override in given:
        key, equals, text = override.partition("=")
        if not key or not equals:
            raise RoboAlignError(
                "a setting is KEY=VALUE",
                where=f"--set {override}",
                fix="for example image_size=256",
            )
        *parents, last = key.split(".")
        below = values
        for parent in parents:
            below = below.setdefault(parent, {})
        below[last] = parse_yaml(text, where=f"--set {override}", fix="put the value in quotes")
    return values
