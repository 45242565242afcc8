"""How this process gets memory and cores, and looks for what it no longer needs."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WAIT_POLICY, COUNTS = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"  # as OpenMP names them
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


def let_waiting_threads_sleep() -> bool:
    """Let torch's threads sleep where they wait for each other; returns whether they will.

    GNU OpenMP's threads wait by counting, and where other work has the core that is waited for, they count on and on: a
    step of some hundred short loops took ten seconds instead of half of one. Counting to a thousand is as fast as ever
    where nothing else is at work. The threads read this once, when torch is imported: where it is there already, or
    the user has said otherwise, nothing is done.
    """
    if "torch" in sys.modules or WAIT_POLICY in os.environ or COUNTS in os.environ:
        return False
    os.environ[COUNTS] = "1000"
    return True


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


@contextmanager
def lasting_imports() -> Iterator[None]:
    """For what a command imports at its beginning: Python does not search it for garbage, now or later.

    torch and its like are some hundred thousand objects that last as long as the process; going through them over and
    over took 0.6 s of a command. Where torch is there already, nothing is done: then this is no process's beginning.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.collect()  # what is garbage by now would last too
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def own_memory_mib() -> float | None:
    """Memory that this process holds for itself now, without libraries; None where the system does not tell.

    Libraries are left out because those of a GPU alone are larger than all else, and go when memory is short.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    own_kib = [int(line.split()[1]) for line in lines if line.startswith("RssAnon:")]
    return own_kib[0] / 1024 if own_kib else None
