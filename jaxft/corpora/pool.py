"""Work shared out among processes whose results come in the order of the work."""

import collections
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from jaxft.registry import UserError

AHEAD = 2  # pieces of work for each process that are read before they are needed


def ordered(
    make: Callable[..., Callable[[Any], Any]], arguments: tuple, work: Iterable[Any], workers: int
) -> Iterator[Any]:
    """The result for each piece of `work`, in order. `make(*arguments)` gives a process the function that it runs.

    One worker is this process. Memory: AHEAD pieces and results for each process.
    """
    if workers == 1:
        yield from map(make(*arguments), work)
        return
    # Spawned: a fork of a process with threads (tokenizers, array_record) may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(make, arguments))
    waiting: collections.deque[Future[Any]] = collections.deque()
    try:
        for piece in work:
            waiting.append(pool.submit(_run, piece))
            while len(waiting) > AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker died, perhaps for lack of memory; the same command goes on from what is finished. Set "
            "--config.work.workers lower if it happens again",
            1,
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def workers_of(wanted: int) -> int:
    """How many processes: `wanted`, or one for each core that this one may use."""
    if wanted:
        return wanted
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS has none


_function: Callable[[Any], Any]


def _begin(make: Callable[..., Callable[[Any], Any]], arguments: tuple) -> None:
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one decides
    # One thread each: there are as many processes as cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _function = make(*arguments)


def _run(piece: Any) -> Any:
    return _function(piece)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
