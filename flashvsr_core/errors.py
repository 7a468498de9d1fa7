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


class OutOfMemory(FlashvsrError):
    """The device's memory does not suffice for a part of a step, whatever is kept off it."""

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(stage, reason)  # so the error survives pickling between processes
        self.stage = stage
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"out of memory in {self.stage} ({self.reason}) with all that can be kept off the device off it; use "
            "smaller tiles (--tiled-dit on --tile-size 512), or close other programs on the device"
        )
