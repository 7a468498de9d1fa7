"""What is foreseen of memory, and the way that is chosen to fit."""

from dataclasses import replace

import pytest

from flashvsr_core.config import ComputeParams, UpscaleParams
from flashvsr_core.errors import UserError
from flashvsr_core.geometry import Geometry
from flashvsr_core.ladder import Rung, after, choose, ladder
from flashvsr_core.memory import GIB, estimate
from flashvsr_core.offload import Offload
from flashvsr_core.registry import model_spec
from flashvsr_core.relief import STRIPS, Placement
from flashvsr_core.tiling import tiles_of

SPEC = model_spec("v1.1")
PARAMS = UpscaleParams(model="v1.1", precision="bf16", attention="triton")
COMPUTE = ComputeParams()
SMALL, LARGE, UHD = Geometry(352, 192, 4), Geometry(640, 384, 4), Geometry(960, 540, 4)


def chosen(
    gib: float, geometry: Geometry = UHD, params: UpscaleParams = PARAMS, compute: ComputeParams = COMPUTE
) -> Rung:
    return choose(SPEC, params, compute, geometry, "cuda", int(gib * GIB))


@pytest.mark.parametrize(
    ("geometry", "mode", "profile", "measured"),
    [
        (SMALL, "tiny", "exact", 13.2),
        (LARGE, "tiny", "exact", 38.9),
        (SMALL, "full", "exact", 17.2),
        (LARGE, "full", "exact", 53.5),
        (SMALL, "tiny", "fast", 12.04),
        (LARGE, "tiny", "fast", 36.59),
        (SMALL, "full", "fast", 16.36),
    ],
)
def test_the_model_agrees_with_what_was_measured(geometry: Geometry, mode: str, profile: str, measured: float) -> None:
    """tests/bench/speed.md, full_size.md and memory.md, H100: within 10 %, never below by more than 3 %."""
    params = replace(PARAMS, mode=mode, profile=profile)  # type: ignore[arg-type]
    found = estimate(SPEC, params, geometry, "cuda", Placement(), None, 0)
    assert 0.97 * measured <= found.device_bytes / GIB <= 1.1 * measured


def test_more_is_off_the_device_the_further_down_the_ladder() -> None:
    def peak(placement: Placement) -> int:
        return estimate(SPEC, PARAMS, LARGE, "cuda", placement, None, 0).device_bytes

    whole = peak(Placement())
    assert peak(Placement("dit")) < whole
    assert peak(Placement(decoder_tile=512)) < whole
    assert peak(Placement("kv", 512)) < 0.6 * peak(Placement("dit", 512))
    assert peak(Placement("weights", 512)) < peak(Placement("kv", 512))
    host = [
        estimate(SPEC, PARAMS, LARGE, "cuda", Placement(level), None, 0).host_bytes for level in ("none", "dit", "kv")
    ]
    assert host[0] < host[1] < host[2]


def test_keys_and_values_that_stay_take_room_and_save_time() -> None:
    ways = [estimate(SPEC, PARAMS, LARGE, "cuda", Placement("kv", resident=n), None, 0) for n in (0, 10, 20, 30)]
    whole = estimate(SPEC, PARAMS, LARGE, "cuda", Placement("dit"), None, 0)
    device, host, seconds = ([getattr(way, name) for way in ways]
                             for name in ("device_bytes", "host_bytes", "step_seconds"))  # fmt: skip
    assert device == sorted(device)
    assert device[0] < 0.5 * device[-1]
    assert host == sorted(host, reverse=True)
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[0] > seconds[-1]
    assert whole.device_bytes <= device[-1] <= 1.1 * whole.device_bytes


def test_layers_in_fp8_take_less_room_and_time_on_gpus_only() -> None:
    fast = replace(PARAMS, profile="fast")
    for level in ("none", "dit", "kv", "weights"):
        exact, rounded = (estimate(SPEC, p, SMALL, "cuda", Placement(level), None, 0) for p in (PARAMS, fast))
        assert rounded.step_seconds < exact.step_seconds
        assert rounded.host_bytes <= exact.host_bytes
        if level != "weights":  # there the LQ projection's patches count for more than two blocks' weights
            assert rounded.device_bytes < exact.device_bytes
    on_cpu = [estimate(SPEC, p, SMALL, "cpu", Placement(), None, 0) for p in (PARAMS, fast)]
    assert on_cpu[0] == on_cpu[1]


def test_as_much_of_the_past_stays_as_fits() -> None:
    roomy, tight = chosen(40), chosen(24)
    assert roomy.placement.offload == tight.placement.offload == "kv"
    assert roomy.placement.resident > tight.placement.resident > 0
    assert chosen(40, compute=ComputeParams(offload="kv")).placement.resident == 0


@pytest.mark.parametrize("placement", [Placement(), Placement("kv", 512)])
def test_transparency_is_a_second_stream_and_counted(placement: Placement) -> None:
    """Weights and what is needed while computing are there once; what a stream carries, twice."""
    one, two = (estimate(SPEC, PARAMS, LARGE, "cuda", placement, None, 0, streams) for streams in (1, 2))
    assert one.device_bytes < two.device_bytes < 2 * one.device_bytes
    assert one.host_bytes < two.host_bytes < 2 * one.host_bytes
    alone = choose(SPEC, PARAMS, COMPUTE, LARGE, "cuda", one.device_bytes)
    both = choose(SPEC, PARAMS, COMPUTE, LARGE, "cuda", one.device_bytes, streams=2)
    assert alone.bytes("cuda") <= one.device_bytes >= both.bytes("cuda")
    assert both.estimate.step_seconds >= alone.estimate.step_seconds


def test_exact_ways_come_before_tiles_and_the_fastest_of_them_first() -> None:
    assert chosen(80, SMALL).placement == Placement()
    before = 0.0
    for gib in (80, 16, 12, 10, 8, 6, 5):
        rung = chosen(gib, SMALL)
        assert rung.bytes("cuda") <= gib * GIB
        assert rung.params.tiled_dit == "off" or before
        assert rung.estimate.step_seconds >= before
        before = rung.estimate.step_seconds
    tight = chosen(12, SMALL)
    assert tight.params.tiled_dit == "off"
    assert tight.placement != Placement()


def test_small_cards_get_strips_that_see_each_other() -> None:
    """3840x2160 needs no tiles on a card of 8 GiB."""
    ways = [chosen(gib) for gib in (80, 24, 16, 12, 8)]
    assert {way.params.tiled_dit for way in ways} == {"off"}
    strips = [way.placement.strips for way in ways]
    assert strips == sorted(strips)
    assert strips[0] == 1 < strips[-1]


def test_strips_are_not_narrow() -> None:
    """768x1408 has 66 windows, a tile of 640 has 25."""
    found = {rung.placement.strips for rung in ladder(SPEC, PARAMS, COMPUTE, SMALL, "cuda")}
    assert found == {1, 2}
    tiled = {rung.placement.strips for rung in ladder(SPEC, replace(PARAMS, tiled_dit="on"), COMPUTE, UHD, "cuda")}
    assert tiled == {1}


@pytest.mark.parametrize("level", ["kv", "weights"])
def test_strips_take_less_the_more_there_are(level: Offload) -> None:
    dit = [dict(estimate(SPEC, PARAMS, UHD, "cuda", Placement(level, 512, strips=n), None, 0).stages)["dit"]
           for n in STRIPS]  # fmt: skip
    assert dit == sorted(dit, reverse=True)
    assert dit[0] - dit[1] > 10 * (dit[2] - dit[3]) > 0


def test_what_is_chosen_by_itself_has_no_seams() -> None:
    """tests/bench/tiling.md: with tiles larger than 640 more of what differs from the untiled picture lies on lines."""
    for params in (PARAMS, replace(PARAMS, tiled_dit="on")):
        sizes = {tiles_of(rung.params)[0] for rung in ladder(SPEC, params, COMPUTE, UHD, "cuda")} - {None}
        assert {max(size.height, size.width) for size in sizes if size} == {640, 512, 384}


def test_too_little_for_anything_is_refused_with_the_smallest_limit_that_works() -> None:
    with pytest.raises(UserError, match=r"does not fit into 2\.00 GiB .*--memory-limit (\d+\.\d+)GiB") as caught:
        chosen(2)
    least = float(str(caught.value).rpartition("--memory-limit ")[2].split("GiB")[0])
    assert chosen(least).bytes("cuda") <= least * GIB
    with pytest.raises(UserError, match="does not fit"):
        chosen(least - 0.02)


def test_the_users_choices_bind() -> None:
    assert chosen(80, params=replace(PARAMS, tiled_dit="on")).params.tiled_dit == "on"
    with pytest.raises(UserError, match="untiled"):
        chosen(4, params=replace(PARAMS, tiled_dit="off"))
    named = chosen(80, params=replace(PARAMS, tiled_dit="on", tile_size="768", tile_overlap=128)).params
    assert (named.tile_size, named.tile_overlap) == ("768x768", 128)
    assert chosen(80, SMALL, compute=ComputeParams(unload_dit=True)).placement.offload == "dit"
    assert chosen(80, SMALL, compute=ComputeParams(offload="weights")).placement.offload == "weights"
    assert chosen(80, SMALL, compute=ComputeParams(tiled_vae="on")).placement.decoder_tile is not None
    off = list(ladder(SPEC, PARAMS, ComputeParams(tiled_vae="off"), UHD, "cuda"))
    assert {rung.placement.decoder_tile for rung in off} == {None}


def test_many_tiles_are_computed_at_once_where_they_fit() -> None:
    tiled = replace(PARAMS, tiled_dit="on", tile_size="512", tile_overlap=128)
    wide, narrow = chosen(140, params=tiled), chosen(8, params=tiled)
    assert wide.placement.batch == 16
    assert 1 <= narrow.placement.batch < 16


def test_the_next_rung_has_other_tiles_and_needs_less() -> None:
    first = chosen(80)
    ways = ladder(SPEC, PARAMS, COMPUTE, UHD, "cuda")
    found = after(ways, first, "cuda")
    assert found is not None
    assert found.params.tiled_dit == "on"
    assert found.bytes("cuda") < first.bytes("cuda")


def test_the_cpu_is_not_offloaded_unasked() -> None:
    rungs = list(ladder(model_spec("nano"), replace(PARAMS, model="nano", precision="fp32"), COMPUTE, SMALL, "cpu"))
    assert {rung.placement.offload for rung in rungs} == {"none"}
    assert {rung.params.tiled_dit for rung in rungs} == {"off", "on"}
