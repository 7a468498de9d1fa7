"""The running Prefect server that commands talk to."""

from collections.abc import Iterator
from contextlib import contextmanager

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import get_current_settings

from flashvsr_core.errors import UserError
from flows.patience import lost, may_pass, patiently


@contextmanager
def prefect_client() -> Iterator[SyncPrefectClient]:
    """A client of the server of PREFECT_API_URL, which is waited for; an error says what is missing."""
    url = get_current_settings().api.url
    if not url:
        raise UserError(
            "no Prefect server is named; start one (prefect server start) and set PREFECT_API_URL, "
            "for example to http://127.0.0.1:4200/api"
        )
    with get_client(sync_client=True) as client:
        patiently(lambda: _checked(client))
        yield client


def _checked(client: SyncPrefectClient) -> None:
    error = client.api_healthcheck()
    if error is not None:
        raise error if may_pass(error) else lost(error)
