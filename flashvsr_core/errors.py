"""Errors that reach a user. Each message says the value, the limit and the remedy."""


class FlashvsrError(Exception):
    """Base of all errors this project raises on purpose; `exit_code` is the command's exit status."""

    exit_code = 1


class UserError(FlashvsrError):
    """The user must change something first (input, options, weights, memory): running again cannot help."""

    exit_code = 2


class TransientError(FlashvsrError):
    """Running again may help (a storage fault, a worker that died, another run that holds the job)."""

    exit_code = 1


class BadInput(UserError):
    """The source cannot be processed as it is: missing, unreadable, not a video, truncated, beyond a limit."""


class AlreadyRunning(TransientError):
    """Another run holds this job's lease."""
