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
