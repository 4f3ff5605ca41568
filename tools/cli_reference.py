"""The command reference, from the parser of `roboalign`.

python -m tools.cli_reference > docs/reference/cli.md
"""

import argparse
from collections.abc import Iterator

from roboalign.cli import main as cli

PREFACE = """# Command reference

Every command of `roboalign` with its arguments. `python -m tools.cli_reference` generates this page from the parser. A
test fails when it is out of date. `roboalign COMMAND --help` prints the same.

Exit status: 0 when done, 1 when `data mix --dry-run` finds something missing, 2 when the input is at fault (one message
with place, problem and fix), 130 when interrupted.
"""


def reference() -> str:
    """The whole page as Markdown."""
    lines = [PREFACE]
    for name, parser, text in commands(cli._parser()):
        usage = " ".join([f"roboalign {name}", *map(_usage, _shown(parser))])
        lines += [f"## `{name}`", "", _sentence(text), "", f"    {usage}", ""]
        if _shown(parser):
            lines += [
                "| argument | meaning |",
                "|---|---|",
                *(_row(parser, action) for action in _shown(parser)),
                "",
            ]
    return "\n".join(lines)


def commands(
    parser: argparse.ArgumentParser, prefix: str = ""
) -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    """(name, parser, what it does) of each command that the help lists, parents before their actions."""
    for group in (a for a in parser._actions if isinstance(a, argparse._SubParsersAction)):
        for choice in group._choices_actions:
            if choice.help == argparse.SUPPRESS:
                continue
            name = f"{prefix}{choice.dest}"
            below = group.choices[choice.dest]
            yield name, below, choice.help or ""
            yield from commands(below, f"{name} ")


def _shown(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [
        action
        for action in parser._actions
        if action.help != argparse.SUPPRESS
        and not isinstance(action, (argparse._HelpAction, argparse._SubParsersAction))
    ]


def _name(action: argparse.Action) -> str:
    """As it is typed: `--out OUT`, `--json`, `RECIPE`."""
    if action.choices is not None and not action.metavar:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    else:
        metavar = action.metavar or action.dest.upper()
        value = metavar if isinstance(metavar, str) else " ".join(metavar)
    if not action.option_strings:
        return value
    return (
        action.option_strings[-1] if action.nargs == 0 else f"{action.option_strings[-1]} {value}"
    )


def _usage(action: argparse.Action) -> str:
    name = _name(action)
    if action.nargs in ("+", "*"):
        name += " ..."
    return name if action.required else f"[{name}]"


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    text = parser._get_formatter()._expand_help(action)
    return f"| `{_name(action)}` | {_sentence(text)} |".replace("||", "|")


def _sentence(text: str) -> str:
    """One line, safe in a table, with a capital and a full stop."""
    line = " ".join(text.replace("%%", "%").split()).replace("|", r"\|")
    if not line:
        return ""
    first = line if line.split()[0].isupper() else line[0].upper() + line[1:]
    return first if first.endswith((".", ")", "?")) else first + "."


if __name__ == "__main__":
    print(reference(), end="")
