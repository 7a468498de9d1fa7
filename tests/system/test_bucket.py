"""Objects put into an inbox: by event, by sweep, on schedule, by hand; and the same with parts of it dying."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tasks.media.probe import probe
from tasks.storage import urls
from tests.flows.clips import make_clip
from tests.listen.aws import moto
from tests.s3server import BUCKET
from tests.system.processes import ROOT, running
from tests.system.stack import FINISHED, FLASHVSR, INBOX, OUTBOX, PIXELS, Stack, kill_tree, message_of, stack

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]

SWEEP = "inbox-sweep/inbox-sweep"
SIZE = "64x36"
SECONDS = 60  # from the put to the output, for a clip of 3 s, where the cores are free for it


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack(tmp_path_factory.mktemp("stack")) as made:
        yield made


@pytest.fixture(autouse=True)
def _empty_inbox(services: Stack) -> Iterator[None]:
    yield
    services.clear_inbox()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", 72, SIZE).read_bytes()


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("clips")
    return [make_clip(folder / f"{i}.mp4", 9, SIZE, sound=False, seed=i + 2).read_bytes() for i in range(18)]


def frames(services: Stack, name: str, folder: Path) -> int:
    services.s3.get_file(f"{FINISHED}/out/{name}", str(folder / "fetched.mp4"))
    return probe(folder / "fetched.mp4").frames


def wait_for_output(services: Stack, name: str, seconds: float = 600) -> float:
    """Seconds until the output is there."""
    begun = time.monotonic()
    services.api.until(lambda: services.versions(name), seconds, name)
    return time.monotonic() - begun


def test_an_event_makes_an_output(services: Stack, clip: bytes, tmp_path: Path) -> None:
    """The sweep is paused; the same notice again, and then a sweep, change nothing."""
    # What others run beside this test takes cores from it.
    allowed = SECONDS * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    with services.worker(), services.listener():
        begun = time.monotonic()
        source = services.put("by event/ä clip.mp4", clip)
        services.put("by event/notes.txt", b"no video by its name")
        wait_for_output(services, "by event/")
        seconds = time.monotonic() - begun
        print(f"event: {seconds:.1f} s from put to output, {allowed:.0f} allowed")
        assert seconds < allowed
        services.api.until(lambda: services.api.upscalings(source) == ["COMPLETED"], 120, "its run")
        services.put("by event/ä clip.mp4", clip)  # as a store that tells twice
        assert services.api.finish(services.api.start(SWEEP))["state_type"] == "COMPLETED"
    assert services.api.upscalings(source) == ["COMPLETED"]
    assert services.versions("by event/") == {"by event/ä clip_2x.mp4": 1}
    assert frames(services, "by event/ä clip_2x.mp4", tmp_path) == 72


def test_a_queue_makes_one_event_of_every_object_version(services: Stack) -> None:
    """Redelivered messages and the double notice of a multipart upload included; nothing is triggered by this inbox."""
    with moto() as aws:
        aws.s3.put_object(Bucket="videos", Key="in/a clip+1.mp4", Body=b"1")
        aws.put_in_parts("in/large.mp4")
        aws.s3.put_object(Bucket="videos", Key="in/a clip+1.mp4", Body=b"2")
        aws.s3.put_object(Bucket="videos", Key="other/a.mp4", Body=b"1")
        found = aws.sqs.receive_message(QueueUrl=aws.queue_url, MaxNumberOfMessages=10)["Messages"]
        for message in found:
            aws.sqs.send_message(QueueUrl=aws.queue_url, MessageBody=message["Body"])
        command = [*FLASHVSR, "listen", "--inbox", "s3://videos/in", "--sqs", aws.queue_url]
        with running(command, services.env | aws.env, services.home / "queue.log"):
            services.api.until(lambda: aws.waiting() == 0, 240, "an empty queue")
    wanted = {"filter": {"event": {"name": ["s3.object.created"]}, "resource": {"id_prefix": ["s3.object.videos/"]}}}

    def told() -> list[str]:
        return sorted(e["payload"]["key"] for e in services.api.call("POST", "/events/filter", wanted)["events"])

    services.api.until(lambda: len(told()) >= 3, 120, "three events")  # the server stores what it accepted in batches
    time.sleep(5)
    assert told() == ["in/a clip+1.mp4", "in/a clip+1.mp4", "in/large.mp4"]


def test_the_scheduled_sweep_makes_up_for_the_listener(services: Stack, clip: bytes, tmp_path: Path) -> None:
    """Nobody listens; the schedule's next run finds the object."""
    with services.worker():
        source = services.put("swept/clip.mp4", clip)
        services.api.set_schedule(SWEEP, "* * * * *", active=True)
        try:
            wait_for_output(services, "swept/")
            services.api.until(lambda: services.api.upscalings(source) == ["COMPLETED"], 120, "its run")
        finally:
            services.api.set_schedule(SWEEP, "0 0 1 1 *", active=False)
    assert any(run["auto_scheduled"] for run in services.api.runs_of("inbox-sweep"))
    assert services.api.upscalings(source) == ["COMPLETED"]
    assert services.versions("swept/") == {"swept/clip_2x.mp4": 1}
    assert frames(services, "swept/clip_2x.mp4", tmp_path) == 72


def test_by_hand_with_the_form_of_the_ui(services: Stack, clip: bytes, tmp_path: Path) -> None:
    source = services.put("by hand/clip.mp4", clip)
    given = PIXELS | {"source": source, "output": f"{OUTBOX}/hand.mp4"}
    outside = given | {"output": "/tmp/hand.mp4"}
    with services.worker():
        ended = services.api.finish(services.api.start("upscale-video/upscale", given))
        assert ended["state_type"] == "COMPLETED", message_of(ended)
        refused = services.api.finish(services.api.start("upscale-video/upscale", outside))
        assert "outside of the roots" in message_of(refused)
    assert services.versions("hand") == {"hand.mp4": 1}
    assert frames(services, "hand.mp4", tmp_path) == 72


@pytest.mark.parametrize("fault", ["none", "worker", "s3", "server"])
def test_twenty_objects_at_once(services: Stack, clips: list[bytes], fault: str) -> None:
    """One is corrupt, one no video: 18 outputs, each once, and 2 clear failures, whatever dies in the middle."""
    folder = f"twenty-{fault}"
    sources = [services.put(f"{folder}/{i:02}.mp4", clip) for i, clip in enumerate(clips)]
    corrupt = services.put(f"{folder}/corrupt.mp4", clips[0][: len(clips[0]) // 2])
    no_video = services.put(f"{folder}/letter.mp4", b"Dear Sir or Madam, this is no video.")
    with services.worker(f"one-{fault}") as worker:
        first = services.api.start(SWEEP)
        services.api.until(lambda: len(services.versions(f"{folder}/")) >= 3, 600, "three outputs")
        if fault == "worker":
            kill_tree(worker.pid)
        elif fault == "s3":
            services.weed.kill()
            time.sleep(3)
            services.weed.start()
        elif fault == "server":
            services.stop_server()
            time.sleep(3)
            services.start_server()
        if fault != "worker":
            services.api.finish(first, 900)
            runs = sweep_until_done(services, folder)
    if fault == "worker":
        with services.worker(f"two-{fault}"):
            runs = sweep_until_done(services, folder)
            # Nobody else can tell: its worker died with it.
            assert services.api.finish(first, 300)["state_type"] == "CRASHED"
    print(f"{fault}: {runs} more sweeps")
    assert services.versions(f"{folder}/") == {f"{folder}/{i:02}_2x.mp4": 1 for i in range(18)}
    failures = services.attempts()
    for source in (corrupt, no_video):
        assert "not" in failures[source]["error"], failures[source]
    assert not set(sources) & set(failures)
    states = {source: services.api.upscalings(source) for source in sources}
    twice = [source for source, ends in states.items() if ends.count("COMPLETED") != 1]
    if fault == "none":
        assert all(ends == ["COMPLETED"] for ends in states.values()), states
    elif fault == "worker" and len(twice) == 1:
        # The worker died after this run's end and before the batch noted it; the next run found all done.
        assert states[twice[0]].count("COMPLETED") == 2, states
    else:
        assert not twice, states
    if fault == "none":
        assert runs == 0
        assert [failures[source]["attempts"] for source in (corrupt, no_video)] == [1, 1]
        told = message_of(services.api.run(first))
        assert "2 of 20 files failed" in told
        assert "corrupt.mp4" in told
        assert "letter.mp4" in told


def sweep_until_done(services: Stack, folder: str) -> int:
    """Sweep as the schedule would until every output is there; how often that was."""
    for number in range(6):
        if len(services.versions(f"{folder}/")) == 18:
            return number
        services.api.finish(services.api.start(SWEEP), 900)
    raise AssertionError(f"not done after 6 sweeps: {services.versions(folder)}, {services.attempts()}")


def test_cancelling_leaves_nothing_and_the_next_run_resumes(services: Stack, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "long.mp4", 240, SIZE, sound=False)
    source = services.put("long.mp4", clip.read_bytes())
    given = PIXELS | {"source": source, "output": f"{OUTBOX}/long.mp4", "segment_frames": 16}
    segments = f"{FINISHED}/out/.flashvsr"
    with services.worker("cancelled") as worker:
        run = services.api.start("upscale-video/upscale", given)
        services.api.until(lambda: services.s3.glob(f"{segments}/long-*/segments/*.json"), 300, "a segment")
        command = [sys.executable, "-m", "prefect", "flow-run", "cancel", run]
        subprocess.run(command, env=services.env, cwd=ROOT, check=True, capture_output=True)
        assert services.api.finish(run, 120)["state_type"] == "CANCELLED"
        services.api.until(lambda: not psutil.Process(worker.pid).children(), 60, "the end of its process")
        assert list((services.home / "work" / "work").iterdir()) == []
        for bucket in (BUCKET, FINISHED):
            assert services.s3.call_s3("list_multipart_uploads", Bucket=bucket).get("Uploads", []) == []
        left = services.s3.find(segments)
        assert [p for p in left if "/long-" in p and p.endswith("lease.json")] == []
        assert not services.versions("long.mp4")
        again = services.api.finish(services.api.start("upscale-video/upscale", given))
        assert again["state_type"] == "COMPLETED", message_of(again)
    report = urls.read_json(f"{OUTBOX}/long.report.json")
    assert report["segments_reused"] >= 1
    assert report["segments_computed"] + report["segments_reused"] == 15
    assert services.versions("long.mp4") == {"long.mp4": 1}


def test_giving_deploy_again_changes_nothing(services: Stack) -> None:
    names = ["upscale-video/upscale", "upscale-batch/upscale-batch", SWEEP, "upscale-on-object/upscale-on-object"]
    fields = ("id", "parameters", "entrypoint", "work_pool_name", "job_variables")
    before = [{field: services.api.deployment(name)[field] for field in fields} for name in names]
    assert services.deploy("--dead-after", "45").split() == names
    assert [{field: services.api.deployment(name)[field] for field in fields} for name in names] == before
    automations = services.api.call("POST", "/automations/filter", {})
    assert sorted(one["name"] for one in automations) == ["flashvsr-object-created", "flashvsr: mark dead runs crashed"]
    (event,) = [one for one in automations if one["name"] == "flashvsr-object-created"]
    assert event["enabled"]
    assert json.dumps(event["trigger"]["match"]) == json.dumps(
        {"prefect.resource.id": f"s3.object.{urls.split(INBOX)[1]}/*"}
    )
