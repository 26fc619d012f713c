"""Freed heap: when it goes back to the system (what takes the place of an accelerator's empty_cache) and when not."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # numbers of glibc's mallopt
MIB = 1 << 20


def give_back() -> None:
    """Return freed heap. Programs that work by turns need not hold what only their peak needed."""
    if _LIBC is not None:
        _LIBC.malloc_trim(0)


def keep_freed() -> None:
    """Keep up to 512 MiB of freed heap for the next tensors of this process; `give_back` still returns it.

    glibc otherwise unmaps an activation of a few MiB as soon as it is freed, and the system clears each page of the
    next one: a quarter of the time of scoring a group of 8 replies on 12 dimensions (docs/benchmarks.md).
    """
    if _LIBC is not None:
        _LIBC.mallopt(M_MMAP_THRESHOLD, 64 * MIB)
        _LIBC.mallopt(M_TRIM_THRESHOLD, 512 * MIB)


def _libc() -> ctypes.CDLL | None:
    """glibc, or None where the C library has no malloc_trim (musl, macOS)."""
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return libc if hasattr(libc, "malloc_trim") else None


_LIBC = _libc()
