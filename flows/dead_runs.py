"""Runs whose process died without a word: an automation on Prefect's server marks them crashed.

Every flow run sends heartbeats. Nobody in Prefect's open-source server acts on their absence by itself.
"""

from datetime import timedelta

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events import Posture, ResourceSpecification
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger

from flashvsr_core.errors import UserError

NAME = "flashvsr: mark dead runs crashed"
DEAD_AFTER = 600  # seconds: three of Prefect's usual heartbeats of 180 s, and some
SHORTEST = 45  # one of Prefect's shortest heartbeats, and the time it takes to arrive
BEATS = 3  # heartbeats that may be missing
SHORTEST_BEAT = 30  # seconds, Prefect's limit
USUAL_BEAT = 180
# All of ours, also subflows, and no other: on a shared server others may beat more slowly.
FLOWS = (
    "upscale-video", "upscale-segments", "upscale-batch", "inbox-sweep", "upscale-on-object",
)  # fmt: skip


def watch_for_dead_runs(client: SyncPrefectClient, dead_after: int) -> None:
    """Make the automation, or bring it up to date."""
    wanted = automation(dead_after)
    found = client.read_automations_by_name(NAME)
    if found:
        client.update_automation(found[0].id, wanted)
        for double in found[1:]:
            client.delete_automation(double.id)
    else:
        client.create_automation(wanted)


def automation(dead_after: int) -> AutomationCore:
    """A run of ours that has sent a heartbeat and then nothing for `dead_after` seconds has crashed."""
    if dead_after < SHORTEST:
        raise UserError(f"dead-after {dead_after} must be at least {SHORTEST} s; Prefect's runs beat no faster")
    trigger = EventTrigger(
        match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
        match_related=ResourceSpecification({"prefect.resource.role": "flow", "prefect.resource.name": list(FLOWS)}),
        after={"prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.*"},
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=dead_after),
    )
    message = f"no sign of life for {dead_after} s; its process is gone"
    crash = ChangeFlowRunState(name="Crashed", state=StateType.CRASHED, message=message, force=False)
    return AutomationCore(
        name=NAME,
        description="Installed by flashvsr deploy.",
        enabled=True,
        trigger=trigger,
        actions=[crash],
    )


def heartbeat_environment(dead_after: int) -> dict[str, str]:
    """What a run's process needs, so that `dead_after` holds several heartbeats; nothing where the usual ones do."""
    if dead_after >= BEATS * USUAL_BEAT:
        return {}
    return {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(max(SHORTEST_BEAT, dead_after // BEATS))}
