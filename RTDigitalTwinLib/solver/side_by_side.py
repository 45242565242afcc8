"""Work on many fields, side by side on the processor's cores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

PARTS_AT_WORK = 4  # some 0.2 GB each for a large patient

Part = TypeVar("Part")
Result = TypeVar("Result")


@contextmanager
def side_by_side(work: Callable[[Part], Result], parts: Sequence[Part], device_type: str) -> Iterator[Iterator[Result]]:
    """The results of work on each part, in order; on a CPU each core takes parts of its own.

    Fields of this size keep one core busier than several that share each of their loops. Each part at work takes
    memory, so that there are few at a time, however many cores: these then share.
    """
    threads = torch.get_num_threads()
    at_work = min(threads, len(parts), PARTS_AT_WORK) if device_type == "cpu" else 1
    if at_work < 2:
        yield map(work, parts)
        return
    pool = ThreadPoolExecutor(at_work, initializer=lambda: torch.set_num_threads(threads // at_work))
    try:
        yield pool.map(work, parts)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # new threads take over what was set last
