"""The command `flashvsr`."""

import logging
import os
import sys
from importlib.metadata import version

from cyclopts import App, CycloptsError, Parameter

from flashvsr_core.errors import FlashvsrError
from flows.cli.interrupt import INTERRUPTED

USAGE = 2

app = App(
    name="flashvsr",
    help="FlashVSR video super-resolution as a Prefect pipeline.",
    version=lambda: version("flashvsr"),
    version_flags=["--version"],
    default_parameter=Parameter(negative=""),
    # Help needs no escape from a program that embeds it, and errors are told in one line, below.
    exit_on_error=False,
    print_error=False,
)
# Named by their place and imported when called: a command waits only for what it needs.
app.command("flows.cli.run:run", help="Upscale a video.")
app.command("flows.cli.plan:plan", help="Show what would be done.")
app.command("flows.cli.preview:preview", help="Upscale short excerpts beside the enlarged source.")
app.command("flows.cli.compare:compare", help="Score a finished output against the true video.")
app.command("flows.cli.models:app", name="models", help="Published weights: list, fetch, verify, convert.")
app.command("flows.cli.jobs:app", name="jobs", help="What a store holds: list, find, show, resume, recover, clean.")
app.command("flows.cli.deploy:deploy", help="Set up deployments on a Prefect server.")
app.command("flows.cli.deploy:serve", help="Offer the deployments from this machine, without a work pool.")
app.command("flows.cli.listen:listen", help="Turn notices of created objects into Prefect events.")
app.command("flows.cli.metrics:metrics", help="Serve the metrics of this machine's workers to Prometheus.")
app.command("flows.cli.presets:presets", help="Deliveries and codecs by name.")
app.command("flows.cli.bench:bench", help="Measure speed and exactness of a model on this machine.")
app.command("flows.cli.doctor:doctor", help="Check this machine.")


def main() -> None:
    """Entry point: errors meant for users become one line on standard error and an exit status."""
    os.environ.setdefault("SVT_LOG", "1")  # errors only: SVT-AV1 writes its settings to standard error otherwise
    try:
        status = app()
    except CycloptsError as error:
        _tell(error)
        status = USAGE
    except FlashvsrError as error:
        logging.getLogger(__name__).debug("failed", exc_info=True)
        _tell(error)
        status = error.exit_code
    except KeyboardInterrupt:
        _tell("interrupted; finished segments are kept, run the same command again to go on")
        status = INTERRUPTED
    _leave(status if isinstance(status, int) else 0)


def _tell(error: object) -> None:
    print(f"flashvsr: {' '.join(str(error).split())}", file=sys.stderr)


def _leave(status: int) -> None:
    """End now: task threads may still be inside the model, and nothing they could do any more is wanted."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
