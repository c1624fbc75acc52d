"""How unalike refuses: what was asked is wrong, or what was asked failed; and how it says that it was stopped."""

from __future__ import annotations


class UnalikeError(Exception):
    """Base of all. `str(error)` is one line: what is wrong, where, and what would be right."""

    exit_code = 1


class InputError(UnalikeError, ValueError):
    """What was asked cannot be done as asked (exit code 2). Nothing was started or changed."""

    exit_code = 2


class NobodyFitsError(InputError):
    """No client's memory holds what a method trains: it has no result there, and others beside it may have."""


class RunError(UnalikeError, RuntimeError):
    """A run that had started could not go on (exit code 1). Its last committed round is kept."""


class StoppedError(UnalikeError):
    """Its user has interrupted what was going on (exit code 130)."""

    exit_code = 130
