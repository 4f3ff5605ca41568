"""The one error that users see: what is wrong, where, and what mends it."""


class RoboAlignError(Exception):
    """A fault in what the user gave. `where` names the file or field, `fix` the command or edit that mends it.

    The command line prints it as one message and exits with status 2; it never shows a traceback for it.
    """

    def __init__(self, problem: str, *, where: str = "", fix: str = "") -> None:
        self.problem, self.where, self.fix = problem, where, fix
        parts = [f"{where}: {problem}" if where else problem]
        if fix:
            parts.append(f"Fix: {fix}")
        super().__init__(" ".join(parts))
