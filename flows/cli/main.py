"""The command `flashvsr`."""

import logging
import os
import sys

import typer

from flashvsr_core.errors import FlashvsrError
from flows.cli import doctor, plan, run

INTERRUPTED = 130

app = typer.Typer(
    name="flashvsr",
    help="FlashVSR video super-resolution as a Prefect pipeline.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("run")(run.run)
app.command("plan")(plan.plan)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Entry point: errors meant for users become one line on standard error and an exit status."""
    try:
        app()
    except FlashvsrError as error:
        logging.getLogger(__name__).debug("failed", exc_info=True)
        print(f"flashvsr: {' '.join(str(error).split())}", file=sys.stderr)
        _leave(error.exit_code)
    except KeyboardInterrupt:
        print("flashvsr: interrupted; finished segments are kept, run the same command again to go on", file=sys.stderr)
        _leave(INTERRUPTED)


def _leave(status: int) -> None:
    """End now: task threads may still be inside the model, and nothing they could do any more is wanted."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
