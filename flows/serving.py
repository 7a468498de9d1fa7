"""`flashvsr serve`: Prefect's runner, made to outlast any absence of Prefect's server.

By itself it ends at the third poll that fails, with everything it runs; it notices no cancellation any more after three
polls for those have failed; and a termination signal stops it halfway through.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.deployments.runner import RunnerDeployment
from prefect.runner import Runner
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.patience import CLIENT_RETRIES, may_pass, patiently, until_answered

log = logging.getLogger(__name__)

POLL_RETRIES = 1  # of Prefect's client, for a poll: one lost connection is no news, more than that are told
GOODBYE_RETRIES = 2  # the same at the end: a server that is away holds it up for seconds, a slow one is waited for
LONGEST_END = 120.0  # seconds for runs to end and the server to be told; Prefect gives each run 30 before it kills
LONGEST_GOODBYE = 60.0  # seconds for the server to pause the schedules


def serve(deployments: Sequence[RunnerDeployment], limit: int, tell: Callable[[str], object]) -> None:
    """Run what is due of `deployments` in child processes, at most `limit` at once, until interrupted.

    `tell` gets the names of the deployments when the server has them.
    """
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: CLIENT_RETRIES}):  # the children inherit it
        runner = PatientRunner(limit=limit)
        for deployment in deployments:
            patiently(partial(runner.add_deployment, deployment))
            tell(deployment.full_name)
        try:
            asyncio.run(runner.start())
        except (KeyboardInterrupt, asyncio.CancelledError):
            log.info("ended")


class PatientRunner(Runner):
    """Asks the server again, for as long as it does not answer, what is due and what was cancelled."""

    _serving: "asyncio.Task[Any] | None" = None

    async def start(self, run_once: bool = False, webserver: bool | None = None) -> None:
        """As Prefect's; a termination signal ends it as Ctrl-C does."""
        self._serving = asyncio.current_task()
        await super().start(run_once, webserver)

    def handle_sigterm(self, *_args: Any, **_options: Any) -> None:
        """Prefect's raises SystemExit in the middle of the loop, which leaves schedules on and runs unended."""
        assert self._serving is not None  # `start` installs this
        self._serving.get_loop().call_soon_threadsafe(self._serving.cancel)

    async def __aenter__(self) -> "PatientRunner":
        await super().__aenter__()
        observer = self._cancelling_observer
        self._outlast(self._client, "get_scheduled_flow_runs_for_deployments")
        self._outlast(self._client, "read_flow_run")
        if observer is not None and observer._client is not None:
            self._outlast(observer._client, "read_flow_runs")
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        """Runs are cancelled first, so that they leave nothing behind and are not said to run; Prefect kills them."""
        self.stopping = True
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: GOODBYE_RETRIES}):
            try:
                await asyncio.wait_for(self._end_runs(), LONGEST_END)
            except Exception as error:  # noqa: BLE001 - whatever it is, the rest is to be ended too
                log.warning("runs could not be ended in %g s (%r); they are killed", LONGEST_END, error)
            await super().__aexit__(*exc_info)

    async def _end_runs(self) -> None:
        await self.cancel_all()
        for run in self._process_manager.flow_run_ids():  # which the server, being away, could not be asked about
            await self._process_manager.kill(run)

    async def _cancel_run(self, flow_run: FlowRun | UUID, state_msg: str | None = None) -> None:
        """An error here would end the runner."""
        try:
            await super()._cancel_run(flow_run, state_msg)
        except Exception as error:
            if not may_pass(error):
                raise
            log.warning("a run was ended, but Prefect's server could not be told that it is cancelled: %r", error)

    async def _pause_schedules(self) -> None:
        """On the way out; a server that is away is not waited for."""
        try:
            await asyncio.wait_for(super()._pause_schedules(), LONGEST_GOODBYE)
        except Exception as error:  # noqa: BLE001 - children are to be ended whatever it is
            log.warning("schedules could not be paused (%r); what they make waits for the next flashvsr serve", error)

    def _outlast(self, client: PrefectClient, request: str) -> None:
        """Have one kind of request of a client, a method's name, repeated until the server answers or we end."""
        once = getattr(client, request)  # if Prefect renames it, this is noticed here and not when a server is away

        async def asked(*arguments: Any, **options: Any) -> Any:
            with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: POLL_RETRIES}):
                return await once(*arguments, **options)

        async def patient(*arguments: Any, **options: Any) -> Any:
            request = partial(asked, *arguments, **options)
            return await (request() if self.stopping else until_answered(request))

        setattr(client, request, patient)
