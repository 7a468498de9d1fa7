"""`flashvsr serve`: Prefect's runner, made to outlast any absence of Prefect's server.

By itself it ends at the third poll that fails, with everything it runs; and it notices no cancellation any more after
three polls for those have failed.
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
from prefect.exceptions import TerminationSignal
from prefect.runner import Runner
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.patience import CLIENT_RETRIES, may_pass, patiently, until_answered

log = logging.getLogger(__name__)

POLL_RETRIES = 1  # of Prefect's client, for a poll: one lost connection is no news, more than that are told
LONGEST_GOODBYE = 10.0  # seconds that a server which is away may hold up the end


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
        except (KeyboardInterrupt, TerminationSignal):
            log.info("ended")


class PatientRunner(Runner):
    """Asks the server again, for as long as it does not answer, what is due and what was cancelled."""

    async def __aenter__(self) -> "PatientRunner":
        await super().__aenter__()
        observer = self._cancelling_observer
        _outlast(self._client, "get_scheduled_flow_runs_for_deployments")
        _outlast(self._client, "read_flow_run")
        if observer is not None and observer._client is not None:
            _outlast(observer._client, "read_flow_runs")
        return self

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


def _outlast(client: PrefectClient, request: str) -> None:
    """Have one kind of request of a client, a method's name, repeated until the server answers."""
    once = getattr(client, request)  # where Prefect has renamed it, this is noticed here and not when a server is away

    async def patient(*arguments: Any, **options: Any) -> Any:
        async def asked() -> Any:
            with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: POLL_RETRIES}):
                return await once(*arguments, **options)

        return await until_answered(asked)

    setattr(client, request, patient)
