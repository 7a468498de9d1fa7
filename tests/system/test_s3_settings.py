"""S3 as its users configure it: AWS's variables and profiles, secrets that stay there, and a store that goes away."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest

from tasks.media.probe import probe
from tests.flows.clips import make_clip
from tests.s3server import BUCKET, S3Server
from tests.system.processes import ROOT, prefect_server
from tests.system.proxy import proxy_before
from tests.system.test_s3 import OPTIONS

pytestmark = pytest.mark.system

SECRET = b"testsecret"


def by_variables(server: S3Server, home: Path) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": "testkey",
        "AWS_SECRET_ACCESS_KEY": SECRET.decode(),
        "AWS_ENDPOINT_URL_S3": server.endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def by_profile(server: S3Server, home: Path) -> dict[str, str]:
    home.mkdir(parents=True)
    (home / "config").write_text(f"[profile video]\nregion = us-east-1\nendpoint_url = {server.endpoint}\n")
    keys = f"[video]\naws_access_key_id = testkey\naws_secret_access_key = {SECRET.decode()}\n"
    (home / "credentials").write_text(keys)
    return {
        "AWS_PROFILE": "video",
        "AWS_CONFIG_FILE": str(home / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(home / "credentials"),
    }


@pytest.mark.parametrize("settings", [by_variables, by_profile])
def test_aws_settings_are_followed(settings, seaweed: S3Server, tmp_path: Path) -> None:
    code = "from tasks.storage import urls; import sys; urls.write_bytes(sys.argv[1], b'1')"
    url = f"s3://{BUCKET}/settings/{settings.__name__}"
    env = os.environ | {"PYTHONPATH": str(ROOT)} | settings(seaweed, tmp_path / "aws")
    done = subprocess.run([sys.executable, "-c", code, url], env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert fsspec.filesystem("s3", use_listings_cache=False).cat_file(f"{BUCKET}/settings/{settings.__name__}") == b"1"


def test_secrets_stay_where_they_are(seaweed: S3Server, tmp_path: Path) -> None:
    """A run on a standing Prefect server: its database, its blocks, logs, reports, the store and the work folder."""
    store = fsspec.filesystem("s3", use_listings_cache=False)
    store.put_file(str(make_clip(tmp_path / "clip.mp4", 24)), f"{BUCKET}/secret/clip.mp4")
    places = (f"s3://{BUCKET}/secret/clip.mp4", f"s3://{BUCKET}/secret/out/out.mp4")
    home = tmp_path / "prefect"
    home.mkdir()
    with prefect_server(home) as env:
        env |= by_variables(seaweed, tmp_path / "aws") | {"PREFECT_LOGGING_LEVEL": "DEBUG"}
        line = [sys.executable, "-m", "flows.cli.main", "run", *OPTIONS, f"--work-dir={tmp_path / 'work'}", "--verbose"]
        line += ["--json", "--keep-segments"]
        done = subprocess.run([*line, *places], cwd=ROOT, env=env, capture_output=True, timeout=600)
        assert done.returncode == 0, done.stderr.decode()
        refused = subprocess.run(
            [*line, f"s3://testkey:{SECRET.decode()}@{BUCKET}/secret/clip.mp4", places[1]],
            cwd=ROOT, env=env, capture_output=True, timeout=600,
        )  # fmt: skip
        assert refused.returncode == 2
        assert b"AWS_PROFILE" in refused.stderr
    seen = {"output": done.stdout + done.stderr, "refusal": refused.stdout + refused.stderr}
    seen |= {str(file): file.read_bytes() for file in home.rglob("*") if file.is_file()}
    seen |= {str(file): file.read_bytes() for file in (tmp_path / "work").rglob("*") if file.is_file()}
    seen |= {key: store.cat_file(key) for key in store.find(f"{BUCKET}/secret")}
    database = b"".join(content for name, content in seen.items() if "prefect.db" in name)
    assert b"secret/clip.mp4" in database, "what is looked through must hold the run"
    assert b"remote-file-system" in database
    assert any(name.endswith("out.report.json") for name in seen)
    assert any("/results/" in name for name in seen), "Prefect's results are on the job's store"
    assert [name for name, content in seen.items() if SECRET in content] == []


def test_a_store_that_is_away_for_a_while(seaweed: S3Server, tmp_path: Path) -> None:
    """Connections are cut and refused for ten seconds in the middle of a run, which ends well all the same."""
    store = fsspec.filesystem("s3", use_listings_cache=False)
    store.put_file(str(make_clip(tmp_path / "clip.mp4", 72)), f"{BUCKET}/away/clip.mp4")
    with proxy_before(int(seaweed.endpoint.rpartition(":")[2])) as proxy:
        options = seaweed.options | {"endpoint_url": f"http://127.0.0.1:{proxy.port}"}
        line = [sys.executable, "-m", "flows.cli.main", "run", *OPTIONS, f"--work-dir={tmp_path / 'work'}"]
        line += [f"s3://{BUCKET}/away/clip.mp4", f"s3://{BUCKET}/away/out.mp4"]
        env = os.environ | {"FSSPEC_S3": json.dumps(options)}
        process = subprocess.Popen(line, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        log = ""
        while "computed in" not in log:
            log += process.stderr.readline()
            assert process.poll() is None, log
        proxy.leave()
        time.sleep(10)
        proxy.come_back()
        log += process.communicate(timeout=600)[1]
    assert process.returncode == 0, log
    assert sorted(re.findall(r"segment (\d+) \[.*computed in", log)) == ["0", "1", "2", "3", "4"]
    store.get_file(f"{BUCKET}/away/out.mp4", str(tmp_path / "out.mp4"))
    assert probe(tmp_path / "out.mp4").frames == 72
