"""An interrupt that somebody swallows comes back at the next event."""

import logging
import os
import signal

import pytest

from flows.cli.interrupt import heeding_interrupts
from tasks.events import StageEntered, tell


def test_a_swallowed_interrupt_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "tasks.events")  # as the command sets it
    before = signal.getsignal(signal.SIGINT)
    with heeding_interrupts():
        with pytest.raises(KeyboardInterrupt):  # swallowed, as Prefect does while it closes a flow run
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            tell(StageEntered("merge"), "merging")
    assert signal.getsignal(signal.SIGINT) is before
    tell(StageEntered("merge"), "merging")
