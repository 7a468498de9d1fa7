"""What the UI's forms are made of: every parameter of every deployment is described."""

import json
from typing import Any

import pytest

from flows import deploy
from flows.cli.main import app


@pytest.mark.parametrize("declared", deploy._declared(), ids=lambda one: one["name"])
def test_every_parameter_is_described(declared: dict[str, Any]) -> None:
    deployment = deploy._flow(declared["entrypoint"]).to_deployment(declared["name"])
    schema = deployment._parameter_openapi_schema.model_dump()
    for name, form in schema["properties"].items():
        assert form.get("description"), name
        assert "<" not in form["description"], f"{name}: the UI takes <this> for HTML and leaves it out"
    for name in ("UpscaleParams", "EncodeParams", "ComputeParams"):
        definition = schema["definitions"][name]
        assert definition["additionalProperties"] is False
        assert all(form.get("description") for form in definition["properties"].values()), name
        assert "<" not in json.dumps(definition), name
    assert "pull" not in declared


def test_deployments_take_known_encoder_choices_only() -> None:
    """codec_args are refused in their runs (test_from_python_and_from_a_deployment)."""
    for declared in deploy._declared():
        schema = deploy._flow(declared["entrypoint"]).to_deployment("x")._parameter_openapi_schema.model_dump()
        encoder = schema["definitions"]["EncodeParams"]["properties"]
        assert set(encoder) == {
            "delivery", "codec", "encoder", "crf", "bitrate", "preset", "pix_fmt", "codec_args", "target_size",
            "container", "threads",
        }  # fmt: skip


def test_the_commands_are_there() -> None:
    assert {"deploy", "serve"} <= set(app)
