"""What tests of the CUDA kernels share: a card, else Triton's interpreter on the CPU."""

import pytest
import torch

from stae_cli.network.architecture import Architecture

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALL = Architecture("small", width=48, head_width=16)  # no power of two, as a kernel's blocks are
SILENT_OVERFLOWS = [  # which numpy reports, in the interpreter
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]
