"""Deployments on a running Prefect server: what deployments/prefect.yaml says, with the inbox an operator names."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from typing import Any

import prefect
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.flows import EntrypointType, Flow
from prefect.settings import get_current_settings
from prefect.workers.process import ProcessWorker

from flashvsr_core.errors import TransientError, UserError
from flows import settings
from tasks.storage import urls

log = logging.getLogger(__name__)

SWEEP = "inbox-sweep"


@dataclass(frozen=True)
class Inbox:
    """What is swept, where its outputs go and how often; `cron` None: as prefect.yaml says."""

    source: str
    outbox: str
    cron: str | None = None

    def __post_init__(self) -> None:
        if self.cron is not None:
            try:
                CronSchedule(cron=self.cron, timezone="UTC")
            except ValueError as error:
                raise UserError(
                    f"cron {self.cron!r} is not a schedule; write five fields such as */5 * * * *"
                ) from error

    @property
    def parameters(self) -> dict[str, Any]:
        return {"inbox": urls.normalise(self.source), "output_root": urls.normalise(self.outbox)}


def deploy(inbox: Inbox | None, pool: str | None = None) -> list[str]:
    """Make the work pool and every deployment, or bring them up to date. Returns the deployments' names."""
    with _server() as client:
        found = _declared()
        pool = pool or str(found[0]["work_pool"]["name"])
        _make_pool(client, pool)
        deployments = _deployments(client, found, inbox)
    names = []
    for deployment in deployments:
        deployment.work_pool_name = pool
        deployment.apply()
        names.append(f"{deployment.flow_name}/{deployment.name}")
        log.info("deployed %s to %s", names[-1], pool)
    return names


def serve(inbox: Inbox | None, limit: int = 1) -> None:
    """Run what is deployed in this process's children, until interrupted: one machine needs no pool and no worker."""
    with _server() as client:
        deployments = _deployments(client, _declared(), inbox)
    prefect.serve(*deployments, limit=limit)


def _declared() -> list[dict[str, Any]]:
    found = yaml.safe_load(files("deployments").joinpath("prefect.yaml").read_text())
    return list(found["deployments"])


def _deployments(
    client: SyncPrefectClient, declared: list[dict[str, Any]], inbox: Inbox | None
) -> list[RunnerDeployment]:
    if inbox is not None:
        for what, place in inbox.parameters.items():
            settings.roots().check(what, place)
    made = []
    for one in declared:
        flow = _flow(one["entrypoint"])
        parameters, schedules = one.get("parameters", {}), one.get("schedules", [])
        if one["name"] == SWEEP:
            parameters, schedules = _sweep(client, flow, parameters, schedules, inbox)
        deployment = flow.to_deployment(
            one["name"],
            parameters=parameters,
            description=one["description"],
            tags=one["tags"],
            schedules=[_schedule(schedule) for schedule in schedules],
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        assert isinstance(deployment, RunnerDeployment)  # a coroutine only where an event loop runs
        made.append(deployment)
    return made


def _sweep(
    client: SyncPrefectClient,
    flow: Flow[..., Any],
    parameters: dict[str, Any],
    schedules: list[dict[str, Any]],
    inbox: Inbox | None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The sweep's parameters and schedules: for the given inbox, else as an earlier deployment has them."""
    try:
        before = client.read_deployment_by_name(f"{flow.name}/{SWEEP}")
    except ObjectNotFound:
        before = None
    parameters = parameters | (before.parameters if before else {})
    if inbox is not None:
        cron = {"cron": inbox.cron} if inbox.cron else {}
        return parameters | inbox.parameters, [one | cron | {"active": True} for one in schedules]
    kept = {s.slug: s for s in before.schedules} if before else {}
    for index, one in enumerate(schedules):
        old = kept.get(one["slug"])
        if old is not None and isinstance(old.schedule, CronSchedule):
            schedules[index] = one | {"cron": old.schedule.cron, "active": old.active}
    return parameters, schedules


def _flow(entrypoint: str) -> Flow[..., Any]:
    module, _, name = entrypoint.rpartition(".")
    found = getattr(import_module(module), name)
    assert isinstance(found, Flow)
    return found


def _schedule(one: dict[str, Any]) -> DeploymentScheduleCreate:
    schedule = CronSchedule(cron=one["cron"], timezone=one["timezone"])
    return DeploymentScheduleCreate(schedule=schedule, slug=one["slug"], active=one["active"])


def _make_pool(client: SyncPrefectClient, name: str) -> None:
    """A pool of processes; one that is there stays as its operator has set it."""
    template = ProcessWorker.get_default_base_job_template()
    try:
        client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
    except ObjectAlreadyExists:
        kind = client.read_work_pool(name).type
        if kind != "process":
            raise UserError(f"work pool {name} is of type {kind}, not process; name another with --pool") from None


@contextmanager
def _server() -> Iterator[SyncPrefectClient]:
    url = get_current_settings().api.url
    if not url:
        raise UserError(
            "no Prefect server is named; start one (prefect server start) and set PREFECT_API_URL, "
            "for example to http://127.0.0.1:4200/api"
        )
    with get_client(sync_client=True) as client:
        error = client.api_healthcheck()
        if error is not None:
            raise TransientError(f"Prefect's server at {url} does not answer ({error!r}); start it or correct the URL")
        yield client
