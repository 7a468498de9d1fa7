import os

import torch

if not torch.cuda.is_available():
    # Triton's interpreter runs kernels on the CPU; read when triton itself is imported, so set before any test module.
    os.environ.setdefault("TRITON_INTERPRET", "1")
