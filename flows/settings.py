"""What the operator of a machine settles for it, by environment variables: read here, in flows, and nowhere below."""

import os
from dataclasses import replace
from pathlib import Path

from flashvsr_core.config import ComputeParams
from flashvsr_core.errors import UserError
from tasks.storage.roots import Roots

ROOTS = "FLASHVSR_ROOTS"  # comma-separated folders and URLs; unset: every place is allowed
MODELS = "FLASHVSR_MODELS"
WORK = "FLASHVSR_WORK"
METRICS = "FLASHVSR_METRICS"  # file for Prometheus; unset: nothing is counted
SERVER_PATIENCE = "FLASHVSR_SERVER_PATIENCE"  # seconds that work waits for Prefect's server
PATIENT = 120.0  # as long as restarts of a server on a busy machine took, and as long again


def roots() -> Roots:
    """The places where runs on this machine may read and write."""
    found = os.environ.get(ROOTS)
    if found is None:
        return Roots()
    try:
        return Roots.parse(found)
    except UserError as error:
        raise UserError(f"{ROOTS}: {error}") from error


def metrics() -> Path | None:
    """The metrics file of this machine, if its operator wants one."""
    found = os.environ.get(METRICS)
    return Path(found).expanduser().absolute() if found else None


def server_patience() -> float:
    """Seconds that a piece of work waits for a Prefect server that is slow or away."""
    text = os.environ.get(SERVER_PATIENCE)
    if not text:
        return PATIENT
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UserError(f"{SERVER_PATIENCE} {text!r} must be a number of seconds, at least 0")
    return seconds


def with_environment(compute: ComputeParams) -> ComputeParams:
    """`compute` with folders that were not named taken from FLASHVSR_MODELS and FLASHVSR_WORK, where these are set."""
    return replace(
        compute,
        models_dir=compute.models_dir or os.environ.get(MODELS),
        work_dir=compute.work_dir or os.environ.get(WORK),
    )


def checked_compute(compute: ComputeParams, allowed: Roots) -> ComputeParams:
    """`compute` with the machine's own folders; folders that a parameter names instead must be under the roots."""
    filled = with_environment(compute)
    for what, folder, own in (
        ("models_dir", filled.models_dir, os.environ.get(MODELS)),
        ("work_dir", filled.work_dir, os.environ.get(WORK)),
    ):
        if folder is not None and folder != own:
            allowed.check(what, folder)
    return filled
