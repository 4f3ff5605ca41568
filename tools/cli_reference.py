"""The command reference, from the parser of `roboalign`.

python -m tools.cli_reference > docs/reference/cli.md
"""

import argparse
from collections.abc import Iterator

from roboalign.cli import main as cli

STAGES = ("collect", "tokenizer", "mix", "base", "sft", "rl", "head", "eval", "report")
PREFACE = """# Command reference

Every command of `roboalign` with its arguments. `python -m tools.cli_reference` generates this page from the parser. A
test fails when it is out of date. `roboalign COMMAND --help` prints the same.

Exit status: 0 when done, 2 when the input is at fault (one message with place, problem and fix), 130 when interrupted.
"""


def reference() -> str:
    """The whole page as Markdown."""
    lines = [PREFACE]
    for name, parser, text in commands(cli._parser()):
        usage = " ".join([f"roboalign {name}", *map(_usage, _shown(parser))])
        lines += [f"## `{name}`", "", _sentence(text), "", f"    {usage}", ""]
        if _shown(parser):
            lines += ["| argument | meaning |", "|---|---|", *map(_row, _shown(parser)), ""]
    return "\n".join(lines)


def commands(
    parser: argparse.ArgumentParser, prefix: str = ""
) -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    """(name, parser, what it does) of each command but the hidden ones, parents before their actions."""
    for group in (a for a in parser._actions if isinstance(a, argparse._SubParsersAction)):
        for verb, below in group.choices.items():
            if not prefix and verb in STAGES:
                continue  # a stage's own name, kept for old scripts
            name = f"{prefix}{verb}"
            listed = {choice.dest: choice.help for choice in group._choices_actions}
            yield name, below, below.description or listed.get(verb) or ""
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


def _row(action: argparse.Action) -> str:
    text = _sentence(action.help or "")
    silent = action.default in (None, False, argparse.SUPPRESS) or action.default == []
    if action.option_strings and not silent and "default" not in text:
        text += f" Default: `{action.default}`."
    return f"| `{_name(action)}` | {text} |"


def _sentence(text: str) -> str:
    """One line, safe in a table, with a capital and a full stop."""
    line = " ".join(text.replace("%%", "%").split()).replace("|", r"\|")
    if not line:
        return ""
    first = line if line.split()[0].isupper() else line[0].upper() + line[1:]
    return first if first.endswith((".", ")", "?")) else first + "."


if __name__ == "__main__":
    print(reference(), end="")
