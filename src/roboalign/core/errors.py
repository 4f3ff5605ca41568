"""Define the one error that users see: what is wrong, where, and how to fix it."""


class RoboAlignError(Exception):
    """A fault in the user's input. `where` names the file or field, `fix` a command or edit.

    Every entry point prints it with `format_error`, without a traceback, and exits with status 2.
    `str` of it is one line, for logs and records.
    """

    def __init__(self, problem: str, *, where: str = "", fix: str = "") -> None:
        self.problem, self.where, self.fix = problem, where, fix
        parts = [f"{where}: {problem}" if where else problem]
        if fix:
            parts.append(f"Fix: {fix}")
        super().__init__(" ".join(parts))


def format_error(error: RoboAlignError) -> str:
    """Return `error: WHERE: PROBLEM.` and, on its own line, `  fix: ...`; no newline at the end."""
    return f"error: {format_fault(error)}"


def format_fault(error: RoboAlignError) -> str:
    """Return `format_error` without its first word, for a list of faults."""
    where = f"{error.where}: " if error.where else ""
    problem = error.problem.rstrip()
    stop = "" if problem.endswith((".", "!", "?", ":")) else "."
    fix = f"\n  fix: {error.fix}" if error.fix else ""
    return f"{where}{problem}{stop}{fix}"
