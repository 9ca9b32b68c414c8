"""Every error a user can cause or meet. The exit code belongs to the error, so the CLI never guesses it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """What the process tells its caller. 130 (interrupted) is the shell's own convention for SIGINT."""

    PASS = 0
    GATE = 1
    BAD_RECIPE = 2
    UNAVAILABLE = 3
    STEP = 4
    INTERRUPTED = 130


class IoptimError(Exception):
    """Base of all errors whose message is meant for the user: no traceback is shown unless asked for."""

    exit_code: ExitCode = ExitCode.STEP


@dataclass(frozen=True)
class Problem:
    """One mistake in a recipe: where it stands and what to do.

    `path` is the YAML path (`steps.quantize.scheme`), `line` counts from 1 and is None for a value set on the command line.
    """

    path: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line is not None else ""
        return f"{where}{self.path}: {self.message}" if self.path else f"{where}{self.message}"


class _ProblemsError(IoptimError):
    """An error made of one or more problems, all reported at once."""

    exit_code = ExitCode.BAD_RECIPE
    noun = "problem"

    def __init__(self, problems: Sequence[Problem] | str, origin: str = "") -> None:
        self.problems = (Problem("", problems),) if isinstance(problems, str) else tuple(problems)
        self.origin = origin
        super().__init__(str(self))

    def __str__(self) -> str:
        many = len(self.problems) != 1
        head = f"{self.origin}: " if self.origin else ""
        if not many:
            return f"{head}{self.problems[0]}"
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        return f"{head}{len(self.problems)} {self.noun}s\n{lines}"


class RecipeError(_ProblemsError):
    """The recipe's text is wrong: syntax, a key, a type, a value."""

    noun = "mistake"


class PlanError(_ProblemsError):
    """The recipe is well-formed but cannot be planned: a graph, data or hardware objection."""

    noun = "objection"


class UnavailableError(IoptimError):
    """Something the run needs is not here: a package, a device, a server, room on the disk."""

    exit_code = ExitCode.UNAVAILABLE


class StepError(IoptimError):
    """A step could not do what it was asked to do."""

    exit_code = ExitCode.STEP


BY_NAME: dict[str, type[IoptimError]] = {
    cls.__name__: cls for cls in (IoptimError, RecipeError, PlanError, UnavailableError, StepError)
}


def rebuild(name: str, message: str) -> IoptimError:
    """The same error on this side of a process boundary; an unknown class becomes a `StepError` naming it."""
    if name in BY_NAME:
        return BY_NAME[name](message)
    return StepError(f"{name}: {message}")
