"""The faster of PyTorch's two fp32 matrix products on this CPU, where it is as exact.

PyTorch's default (MKL) uses AVX2 on AMD processors; oneDNN uses AVX-512 there and is 2.3 times as fast
(2 cores of a Zen 5: 442 against 196 GFLOP/s, forward and backward). Its switch is named «bf16» because it
allows rounding to bf16 where the processor has bf16 matrix units. So it is kept only if a probe against
fp64 shows that nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

PROBES_MKN = ((64, 576, 1536), (3, 64, 64), (1, 576, 64), (512, 256, 256))
TOLERANCE = 3e-6  # relative to the norm: fp32 is near 2e-7, bf16 near 2e-3


@cache
def fast_fp32() -> bool:
    """Switch this process to oneDNN's fp32 products if they are exact here; returns whether it did.

    Never where a GPU is visible: PyTorch then refuses to tell its fp32 precision, which FlexAttention asks for when it
    is compiled there («mix of the legacy and new APIs»).
    """
    if torch.cuda.is_available() or not torch.backends.mkldnn.is_available():
        return False
    settings = _settings()
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    if _worst_relative_error() < TOLERANCE:
        return True
    settings.fp32_precision = before
    return False


@contextmanager
def default_fp32() -> Iterator[None]:
    """PyTorch's default products inside: oneDNN is slow on the many small products of attention."""
    settings = _settings()
    before = settings.fp32_precision
    settings.fp32_precision = "ieee"
    try:
        yield
    finally:
        settings.fp32_precision = before


def _settings() -> Any:
    return torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]


def _worst_relative_error() -> float:
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for m, k, n in PROBES_MKN:
        x = torch.randn(m, k, generator=generator, requires_grad=True)
        w = torch.randn(n, k, generator=generator, requires_grad=True)
        g = torch.randn(m, n, generator=generator)
        y = torch.nn.functional.linear(x, w)
        dx, dw = torch.autograd.grad(y, (x, w), g)
        x64, w64, g64 = x.detach().double(), w.detach().double(), g.double()
        for got, want in ((y, x64 @ w64.T), (dx, g64 @ w64), (dw, g64.T @ x64)):
            worst = max(worst, float((got.detach().double() - want).norm() / want.norm()))
    return worst
