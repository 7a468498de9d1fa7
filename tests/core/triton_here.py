"""Triton modules as tests use them: on a GPU if there is one, else in Triton's interpreter (conftest.py)."""

import importlib
from types import ModuleType

import numpy as np
import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def module(name: str) -> ModuleType:
    """`flashvsr_core.kernels.<name>`, or a skipped test where the interpreter cannot work."""
    triton = pytest.importorskip("triton")
    old = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9)
    if DEVICE.type == "cpu" and old and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip(f"the interpreter of triton {triton.__version__} does not work with numpy {np.__version__}")
    return importlib.import_module(f"flashvsr_core.kernels.{name}")
