"""`flashvsr deploy` and `flashvsr serve`: the flows on a running Prefect server."""

from functools import partial
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from flashvsr_core.errors import UserError

if TYPE_CHECKING:
    from flows.deploy import Inbox

InboxUrl = Annotated[
    str | None, Parameter(env_var="FLASHVSR_INBOX", help="Folder or prefix that the sweep looks after.")
]
OutboxUrl = Annotated[
    str | None, Parameter(env_var="FLASHVSR_OUTBOX", help="Where outputs of the inbox go, under the same names.")
]
Cron = Annotated[str | None, Parameter(help="When to sweep, in UTC; default every 5 minutes.")]
DeadAfter = Annotated[int | None, Parameter(help="Seconds of silence after which a run is crashed; default 600.")]


def deploy(
    *,
    inbox: InboxUrl = None,
    outbox: OutboxUrl = None,
    cron: Cron = None,
    pool: Annotated[str | None, Parameter(help="Work pool; default flashvsr. Made if it is not there.")] = None,
    dead_after: DeadAfter = None,
) -> None:
    """Set up work pool, deployments and automation on the server of PREFECT_API_URL, or bring them up to date."""
    named = _inbox(inbox, outbox, cron)
    from flows import deploy as deployment  # Prefect is slow to import

    for name in deployment.deploy(named, pool, deployment.DEAD_AFTER if dead_after is None else dead_after):
        print(name)


def serve(
    *,
    inbox: InboxUrl = None,
    outbox: OutboxUrl = None,
    cron: Cron = None,
    limit: Annotated[int, Parameter(help="Runs at once.")] = 1,
) -> None:
    """Offer the same deployments from this process, without pool and worker, until interrupted."""
    if limit < 1:
        raise UserError(f"limit {limit} must be at least 1")
    named = _inbox(inbox, outbox, cron)
    from flows import deploy as deployment

    deployment.serve(named, limit, partial(print, "serving", flush=True))


def _inbox(inbox: str | None, outbox: str | None, cron: str | None) -> "Inbox | None":
    if inbox is None and outbox is None and cron is None:
        return None
    if inbox is None or outbox is None:
        raise UserError("--inbox and --outbox go together (and --cron with them); give both")
    from flows.deploy import Inbox

    return Inbox(inbox, outbox, cron)
