"""What may be chosen, the time grid and the geometry: limits are errors that name value, limit and remedy."""

import pytest
from pydantic import TypeAdapter, ValidationError

from flashvsr_core.config import ComputeParams, UpscaleParams
from flashvsr_core.errors import UserError
from flashvsr_core.geometry import Geometry
from flashvsr_core.noise import latent_noise, step_noise
from flashvsr_core.segments import SegmentPlan, plan_segments, reading_range


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 5}, "2, 3, 4"),
        ({"model": "v9"}, "nano, v1.0, v1.1"),
        ({"sparse_ratio": 0.0}, "0.1 to 100"),
        ({"kv_ratio": 0.5}, "1.0 to 64"),
        ({"preroll": 12}, "try 16"),
        ({"seed": -1}, "out of range"),
        ({"scenes": (9, 9)}, "rising"),
        ({"scenes": (0, 9)}, "above 0"),
        ({"scenes": ""}, "auto, off"),
    ],
)
def test_limits(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        UpscaleParams(**change)  # type: ignore[arg-type]


def test_devices() -> None:
    for devices in ("auto", "cpu", "all", "0", "0,2"):
        ComputeParams(devices=devices)
    with pytest.raises(UserError, match="0,2"):
        ComputeParams(devices="gpu")


def test_forms_describe_every_field_and_refuse_unknown_ones() -> None:
    adapter = TypeAdapter(UpscaleParams)
    assert all("description" in field for field in adapter.json_schema()["properties"].values())
    assert adapter.validate_python({"scenes": [5, 9]}).scenes == (5, 9)
    with pytest.raises(ValidationError):
        adapter.validate_python({"scael": 4})


@pytest.mark.parametrize("frames", [1, 7, 8, 9, 512, 513, 1000])
@pytest.mark.parametrize("length", [8, 16, 512])
def test_segments_cover_every_frame_once(frames: int, length: int) -> None:
    covered = [frame for segment in plan_segments(frames, length) for frame in range(segment.start, segment.stop)]
    assert covered == list(range(frames))
    assert all(segment.start % 8 == 0 for segment in plan_segments(frames, length))


def test_segments_off_the_grid_are_refused() -> None:
    with pytest.raises(UserError, match="try 16"):
        plan_segments(100, 20)
    with pytest.raises(UserError):
        SegmentPlan(0, 4, 8)
    with pytest.raises(UserError):
        plan_segments(0, 8)


def test_reading_range_reaches_back_for_preroll_and_ahead_for_the_last_step() -> None:
    assert reading_range(SegmentPlan(1, 512, 1024), 32, 10, 5000) == (470, 1016 + 25 + 10)
    assert reading_range(SegmentPlan(0, 0, 16), 32, 10, 20) == (0, 20)


def test_geometry() -> None:
    geometry = Geometry(177, 143, 4)
    assert (geometry.out_width, geometry.out_height) == (708, 572)
    assert (geometry.padded_width, geometry.padded_height) == (768, 640)
    assert geometry.windows == (5, 6)


def test_noise_depends_on_seed_and_absolute_frame_only() -> None:
    together = step_noise(3, 10, 6, (4, 8, 8))
    assert together.shape == (1, 4, 6, 8, 8)
    assert (together[0, :, 2] == latent_noise(3, 12, (4, 8, 8))).all()
    assert (latent_noise(3, 12, (4, 8, 8)) != latent_noise(4, 12, (4, 8, 8))).any()
    assert (latent_noise(3, 12, (4, 8, 8)) != latent_noise(3, 13, (4, 8, 8))).any()
    large = latent_noise(0, 0, (16, 64, 64))
    assert abs(float(large.mean())) < 0.02
    assert abs(float(large.std()) - 1) < 0.02


def test_runners() -> None:
    ComputeParams(runner="dask", cluster="tcp://scheduler:8786", workers=4)
    for change, message in (
        ({"runner": "spark"}, "processes"),
        ({"workers": 0}, "out of range"),
        ({"cluster": "tcp://scheduler:8786"}, "--runner dask"),
        ({"source_cache_gb": -1.0}, "out of range"),
    ):
        with pytest.raises(UserError, match=message):
            ComputeParams(**change)  # type: ignore[arg-type]
