"""Ctrl-C and SIGTERM as ways to end a script. Imports nothing: it is wanted before anything heavy is."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

INTERRUPTED = 130  # as a shell counts it: 128 + SIGINT
NO_READER = 141  # 128 + SIGPIPE


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C within ends the script with one quiet line and exit code 130, once everything is tidied up.

    A second Ctrl-C meanwhile changes nothing, a third leaves at once. May be nested; a process that ignores Ctrl-C goes
    on ignoring it.
    """
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, _first)
    try:
        yield
    except KeyboardInterrupt:
        if signal.getsignal(signal.SIGINT) in (_second, _third):
            # Python's own end would give Ctrl-C its deadly meaning back, and another exit code.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    finally:
        if ours and signal.getsignal(signal.SIGINT) is _first:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass
class Request:
    """Whether the process has been asked to end. signal: 0, or the number of the signal that came last; times: how
    many came."""

    signal: int = 0
    times: int = 0

    def take(self, number: int, frame: FrameType | None) -> None:
        """The handler of a signal: the third one leaves at once."""
        self.signal, self.times = number, self.times + 1
        if self.times == 3:
            os.write(2, b"interrupted\n")
            os._exit(exit_code(number))


def exit_code(number: int) -> int:
    """What a process that a signal ended exits with, as a shell counts it: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + number


@contextlib.contextmanager
def postponed() -> Iterator[Request]:
    """Ctrl-C and SIGTERM within end nothing: whoever works here looks at the request and ends when it suits.

    Signals that the process ignores, or that somebody else handles, stay as they are, and outside of the main thread
    all of them.
    """
    request = Request()
    ours = (_first, signal.default_int_handler, signal.SIG_DFL)
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    taken = {number: handler for number, handler in found.items() if handler in ours}
    if threading.current_thread() is not threading.main_thread():
        taken = {}
    for number in taken:
        signal.signal(number, request.take)
    try:
        yield request
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)


def _first(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, _second)
    raise KeyboardInterrupt


def _second(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, _third)


def _third(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)
