"""The bridge from buckets to Prefect: notices of created objects become events, on which deployments are triggered."""

import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime

import httpx
import uvicorn
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import get_current_settings

from flashvsr_core.errors import TransientError, UserError
from flows.server import prefect_client
from tasks.listen.notices import EVENT, ObjectCreated, Watched
from tasks.listen.queue import Queue, drain
from tasks.listen.webhook import webhook

log = logging.getLogger(__name__)

CONNECTIONS = 64  # of the webhook at once


class Bridge:
    """Emits events on one Prefect server; the server ignores one that it has."""

    def __init__(self, client: SyncPrefectClient) -> None:
        self._client = client

    def deliver(self, notices: Sequence[ObjectCreated]) -> None:
        """Returns when the server has accepted an event for each; TransientError if it did not."""
        body = [_event(notice) for notice in notices]
        try:
            self._client.request("POST", "/events", json=body).raise_for_status()
        except httpx.HTTPError as error:
            url = get_current_settings().api.url
            raise TransientError(f"Prefect's server at {url} did not accept {len(body)} events: {error!r}") from error
        for notice in notices:
            log.info("%s: event %s", notice.url, notice.id)


def listen(watched: Watched, sqs: str | None, address: tuple[str, int] | None, token: str | None) -> None:
    """Forward what comes by SQS, by webhook or both, until interrupted or terminated."""
    if sqs is None and address is None:
        raise UserError("nothing to listen to; name a queue (--sqs) or an address for webhooks (--http)")
    if address is not None and token is None:
        raise UserError("webhooks need a token; put one into FLASHVSR_LISTEN_TOKEN or name a --token-file")
    stop = threading.Event()
    with prefect_client() as client:
        bridge = Bridge(client)
        draining = _Draining(Queue(sqs), watched, bridge, stop) if sqs else None
        if address is None:
            assert draining is not None
            draining.run()
            return
        assert token is not None
        config = uvicorn.Config(
            webhook(watched, token, bridge.deliver),
            host=address[0],
            port=address[1],
            log_level="warning",
            access_log=False,
            limit_concurrency=CONNECTIONS,
            server_header=False,
        )
        server = uvicorn.Server(config)
        if draining is not None:
            draining.ends(server)
            draining.start()
        log.info("listening on http://%s:%d", *address)
        # SIGINT and SIGTERM are uvicorn's here; it ends the requests that it has.
        with suppress(KeyboardInterrupt):
            server.run()
        stop.set()
        if draining is not None and draining.error is not None:
            raise draining.error


class _Draining(threading.Thread):
    """The queue's thread beside the webhook; what ends it, ends both."""

    def __init__(self, queue: Queue, watched: Watched, bridge: Bridge, stop: threading.Event) -> None:
        super().__init__(name="sqs", daemon=True)
        self._work = (queue, watched, bridge.deliver, stop)
        self._server: uvicorn.Server | None = None
        self.error: Exception | None = None

    def ends(self, server: uvicorn.Server) -> None:
        self._server = server

    def run(self) -> None:
        try:
            log.info("listening to %s", self._work[0].url)
            drain(*self._work)
        except Exception as error:
            self.error = error
            if self._server is None:
                raise
            self._server.should_exit = True


def _event(notice: ObjectCreated) -> dict[str, object]:
    return {
        "id": str(notice.id),
        "occurred": datetime.now(UTC).isoformat(),
        "event": EVENT,
        "resource": {"prefect.resource.id": notice.resource},
        "related": [],
        "payload": {
            "bucket": notice.bucket,
            "key": notice.key,
            "url": notice.url,
            "version": notice.version,
            "size": notice.size,
        },
    }
