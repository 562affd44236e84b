"""Work on many files in several processes: results in order, little under way, nothing left behind.

Imports no torch: every process would have to.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any

import cv2

from dataset.toml import DataError

AHEAD = 4  # tasks per process that wait for their turn

Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


@contextlib.contextmanager
def processes(count: int, *, remedy: str) -> Iterator[Mapper]:
    """A `map` of one iterable over `count` processes, 0: in this one.

    Results come in the order of the tasks, of which so few are taken ahead that memory does not depend on how many
    there are. Leaving by an error, Ctrl-C or the end of a generator stops the processes at what they are at; they end
    too when this process is killed. Raises DataError with `remedy` when one of them dies.
    """
    if count == 0:
        yield map
        return
    others = set(multiprocessing.active_children())
    # "spawn": forking a process in which a progress bar's thread may run is unsafe.
    pool = ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"), initializer=_begin)
    done = False
    try:
        yield partial(_in_order, pool, AHEAD * count)
        done = True
    except BrokenProcessPool:
        raise DataError(f"a working process was killed (out of memory?); {remedy}") from None
    finally:
        if not done:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
        pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor, ahead: int, function: Callable[[Any], Any], tasks: Iterable[Any]
) -> Iterator[Any]:
    waiting: deque[Future[Any]] = deque()
    for task in tasks:
        with _interrupts_held():  # submitting starts processes
            waiting.append(pool.submit(function, task))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits until the block is over. Processes that are started within never hear of it, from their first moment
    on: it is for this process to answer."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        with _masked():
            yield
        return
    # The mask is for the processes. It alone holds nothing: another thread, one of OpenBLAS, would take the signal.
    came: list[int] = []
    try:
        signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
        with _masked():
            yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:  # also where the block failed: whoever asks to end means it
            signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def _masked() -> Iterator[None]:
    """This thread, and what it starts, does not take Ctrl-C."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin() -> None:
    """What a process does first. Processes share the machine by their number, not by threads of each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "this runs in a process that was started for it"
    parent.join()
    os._exit(1)
