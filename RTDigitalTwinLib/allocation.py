"""How this process gets its memory."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of glibc's malloc.h
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed for the next tensor; returns whether it does.

    glibc gives blocks above 32 MB back at once and gets them anew, page by page and zeroed: a fifth of the time of a
    prediction on a CPU. For a process of one's own, not inside another application, whose memory it would hold as well.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _NEVER)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))


def return_freed_memory() -> bool:
    """Give what is free back to the system, from between what is in use too; returns whether the C library can.

    For long work on blocks of many sizes: kept, their gaps add up. A GPU's free memory goes back too.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if not sys.platform.startswith("linux"):
        return False
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return False
    return True


def resident_mib() -> float | None:
    """Memory that this process holds now; None where the system does not tell as Linux does."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return None
