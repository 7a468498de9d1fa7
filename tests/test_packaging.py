"""What lies in deployments/ for Docker, Compose and Kubernetes, held against validators; none of it is run here."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import compose_spec
import kubernetes_validate
import pytest
import yaml
from prefect.workers.process import ProcessWorker

from tests.test_imports import ROOT

FOLDER = ROOT / "deployments"
TEMPLATE = json.loads((FOLDER / "kubernetes-base-job-template.json").read_text())
VARIABLE = re.compile(r"{{ (\w+) }}")
# What Prefect's server fills in when a run is prepared.
PREPARED = {
    "name": "busy-bee", "command": ["prefect", "flow-run", "execute"], "env": [{"name": "A", "value": "b"}],
}  # fmt: skip


def compose() -> dict[str, Any]:
    found = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    assert isinstance(found, dict)
    return found


def filled(value: Any, variables: dict[str, Any]) -> Any:
    """A template with its variables put in, as Prefect does it."""
    if isinstance(value, dict):
        return {name: filled(one, variables) for name, one in value.items()}
    if isinstance(value, list):
        return [filled(one, variables) for one in value]
    if isinstance(value, str) and (whole := VARIABLE.fullmatch(value)):
        return variables[whole[1]]
    return VARIABLE.sub(lambda found: str(variables[found[1]]), value) if isinstance(value, str) else value


def test_the_dockerfile_passes_hadolint() -> None:
    tool = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([tool, FOLDER / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_gets_everything_it_copies() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)
    assert copied
    assert all((ROOT / name).exists() for line in copied for name in line.split())


def test_the_compose_file_follows_the_specification() -> None:
    # Merge keys, which Compose knows and the validator does not, are resolved by PyYAML.
    found = compose_spec.PyCompose.from_yaml(yaml.safe_dump(compose()))
    found.validate()
    assert set(found.service_names()) == {"server", "s3", "deploy", "worker", "listener"}
    with pytest.raises(ValueError, match="extension key"):
        compose_spec.PyCompose.from_yaml("services: {a: {image: b, portz: []}}")


def test_the_compose_file_opens_loopback_only_and_asks_for_secrets() -> None:
    services = compose()["services"]
    for name, service in services.items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
        for variable, value in service.get("environment", {}).items():
            if re.search("KEY|SECRET|TOKEN|AUTH", variable):
                assert re.fullmatch(r"\$\{\w+:\?.*}", value), variable  # no default: unset is an error
    assert "PREFECT_SERVER_API_AUTH_STRING" in services["server"]["environment"]
    assert services["worker"]["environment"]["FLASHVSR_ROOTS"] == "s3://media"
    (device,) = services["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_the_kubernetes_template_makes_a_valid_job() -> None:
    declared = TEMPLATE["variables"]["properties"]
    used = set(VARIABLE.findall(json.dumps(TEMPLATE["job_configuration"])))
    assert used == set(declared)
    variables = {name: one.get("default") for name, one in declared.items()} | PREPARED
    job = filled(TEMPLATE["job_configuration"]["job_manifest"], variables)
    kubernetes_validate.validate(job, "1.31", strict=True)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}


def test_the_kubernetes_template_is_shaped_like_prefects_own() -> None:
    own = ProcessWorker.get_default_base_job_template()
    assert set(TEMPLATE) == set(own)
    assert {"command", "env", "labels", "name"} <= set(TEMPLATE["job_configuration"])
    assert {"command", "env", "labels", "name"} <= set(TEMPLATE["variables"]["properties"])
