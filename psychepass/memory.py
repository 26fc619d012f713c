"""Freed heap goes back to the system: what takes the place of an accelerator's empty_cache."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Return freed heap. Programs that work by turns need not hold what only their peak needed."""
    if _LIBC is not None:
        _LIBC.malloc_trim(0)


def _libc() -> ctypes.CDLL | None:
    """glibc, or None where the C library has no malloc_trim (musl, macOS)."""
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return libc if hasattr(libc, "malloc_trim") else None


_LIBC = _libc()
