"""Deployments on a running Prefect server: what deployments/prefect.yaml says, with the inbox an operator names."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger, ResourceSpecification
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.flows import EntrypointType, Flow
from prefect.workers.process import ProcessWorker

from flashvsr_core.errors import UserError
from flows import serving, settings
from flows.dead_runs import DEAD_AFTER, heartbeat_environment, watch_for_dead_runs
from flows.patience import patient_environment, patiently
from flows.server import prefect_client
from tasks.storage import urls

log = logging.getLogger(__name__)

SWEEP = "inbox-sweep"
ON_OBJECT = "upscale-on-object"
POOLS = ("process", "docker", "kubernetes")  # types of work pools that run an installed package


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


def deploy(inbox: Inbox | None, pool: str | None = None, dead_after: int = DEAD_AFTER) -> list[str]:
    """Make the work pool, every deployment and the automation for dead runs, or bring them up to date.

    Returns the deployments' names.
    """
    with prefect_client() as client:
        return patiently(lambda: _deployed(client, inbox, pool, dead_after))


def _deployed(client: SyncPrefectClient, inbox: Inbox | None, pool: str | None, dead_after: int) -> list[str]:
    found = _declared()
    pool = pool or str(found[0]["work_pool"]["name"])
    _make_pool(client, pool)
    deployments = _deployments(client, found, inbox)
    watch_for_dead_runs(client, dead_after)
    names = []
    for deployment in deployments:
        deployment.work_pool_name = pool
        deployment.job_variables = {"env": patient_environment() | heartbeat_environment(dead_after)}
        deployment.apply()
        names.append(f"{deployment.flow_name}/{deployment.name}")
        log.info("deployed %s to %s", names[-1], pool)
    return names


def serve(inbox: Inbox | None, limit: int = 1, tell: Callable[[str], object] = log.info) -> None:
    """Run what is deployed in this process's children, until interrupted: one machine needs no pool and no worker.

    A server that is away meanwhile is waited for without end. `tell` gets the deployments' names.
    """
    with prefect_client() as client:
        deployments = patiently(lambda: _deployments(client, _declared(), inbox))
        patiently(lambda: watch_for_dead_runs(client, DEAD_AFTER))
    serving.serve(deployments, limit, tell)


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
        triggers: list[Any] = []
        if one["name"] in (SWEEP, ON_OBJECT):
            before = _before(client, f"{flow.name}/{one['name']}")
            parameters = parameters | (before.parameters if before else {}) | (inbox.parameters if inbox else {})
            schedules = _schedules(schedules, before, inbox)
            triggers = [_trigger(trigger, parameters.get("inbox")) for trigger in one.get("triggers", [])]
        deployment = flow.to_deployment(
            one["name"],
            parameters=parameters,
            description=one["description"],
            tags=one["tags"],
            schedules=[_schedule(schedule) for schedule in schedules],
            triggers=triggers,
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        assert isinstance(deployment, RunnerDeployment)  # a coroutine only where an event loop runs
        made.append(deployment)
    return made


def _before(client: SyncPrefectClient, name: str) -> DeploymentResponse | None:
    try:
        return client.read_deployment_by_name(name)
    except ObjectNotFound:
        return None


def _schedules(
    declared: list[dict[str, Any]], before: DeploymentResponse | None, inbox: Inbox | None
) -> list[dict[str, Any]]:
    """The schedules for the given inbox, else as an earlier deployment has them."""
    if inbox is not None:
        cron = {"cron": inbox.cron} if inbox.cron else {}
        return [one | cron | {"active": True} for one in declared]
    kept = {s.slug: s for s in before.schedules} if before else {}
    made = []
    for one in declared:
        old = kept.get(one["slug"])
        if old is not None and isinstance(old.schedule, CronSchedule):
            one = one | {"cron": old.schedule.cron, "active": old.active}
        made.append(one)
    return made


def _trigger(declared: dict[str, Any], inbox: str | None) -> DeploymentEventTrigger:
    """The event trigger for an inbox in a bucket; off for any other."""
    trigger = DeploymentEventTrigger(**declared)
    if inbox is not None and not urls.is_local(inbox):
        trigger.enabled = True
        trigger.match = ResourceSpecification({"prefect.resource.id": f"s3.object.{urls.split(inbox)[1]}/*"})
    return trigger


def _flow(entrypoint: str) -> Flow[..., Any]:
    module, _, name = entrypoint.rpartition(".")
    found = getattr(import_module(module), name)
    assert isinstance(found, Flow)
    return found


def _schedule(one: dict[str, Any]) -> DeploymentScheduleCreate:
    schedule = CronSchedule(cron=one["cron"], timezone=one["timezone"])
    return DeploymentScheduleCreate(schedule=schedule, slug=one["slug"], active=one["active"])


def _make_pool(client: SyncPrefectClient, name: str) -> None:
    """A pool of processes; one that is there, also of containers, stays as its operator has set it."""
    template = ProcessWorker.get_default_base_job_template()
    try:
        client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
    except ObjectAlreadyExists:
        kind = client.read_work_pool(name).type
        if kind not in POOLS:
            raise UserError(
                f"work pool {name} is of type {kind}, not {', '.join(POOLS)}; name another with --pool"
            ) from None
