"""The one error that users see: what is wrong, where, and how to fix it."""


class RoboAlignError(Exception):
    """A fault in what the user gave. `where` names the file or field, `fix` the command or edit that helps.

    Every entry point prints it with `format_error` and exits with status 2; it never shows a traceback for it.
    `str` of it is one line, for logs and records.
    """

    def __init__(self, problem: str, *, where: str = "", fix: str = "") -> None:
        self.problem, self.where, self.fix = problem, where, fix
        parts = [f"{where}: {problem}" if where else problem]
        if fix:
            parts.append(f"Fix: {fix}")
        super().__init__(" ".join(parts))


def format_error(error: RoboAlignError) -> str:
    """`error: WHERE: PROBLEM.` and, on a line of its own, `  fix: ...`; without a newline at the end."""
    return f"error: {format_fault(error)}"


def format_fault(error: RoboAlignError) -> str:
    """`format_error` without its first word, for a list of faults."""
    where = f"{error.where}: " if error.where else ""
    problem = error.problem.rstrip()
    stop = "" if problem.endswith((".", "!", "?", ":")) else "."
    fix = f"\n  fix: {error.fix}" if error.fix else ""
    return f"{where}{problem}{stop}{fix}"
