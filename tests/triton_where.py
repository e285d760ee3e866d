"""Where Triton kernels run in tests: through the interpreter on CPU tensors, and on CUDA (``-m gpu``)."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch

from trimtab.kernels import paths


class Where(NamedTuple):
    """A device and the path that runs Triton kernels there."""

    device: torch.device
    path: Any


CPU, CUDA = Where(torch.device("cpu"), "interpret"), Where(torch.device("cuda"), "triton")


no_cpu = pytest.mark.skipif(
    CPU.path not in paths.available(CPU.device), reason="Triton is missing, or compiles for CUDA"
)


no_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(params=[pytest.param(CPU, marks=no_cpu), pytest.param(CUDA, marks=[pytest.mark.gpu, no_cuda])], ids=str)
def where(request: pytest.FixtureRequest) -> Where:
    return request.param  # type: ignore[no-any-return]


def host(found: Any) -> Any:
    """Results on the CPU."""
    if isinstance(found, torch.Tensor):
        return found.cpu()
    return type(found)(*map(host, found))
