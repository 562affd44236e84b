"""Ctrl-C as a way to end a script. Imports nothing: it is wanted before anything heavy is."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

INTERRUPTED = 130  # as a shell counts it: 128 + SIGINT


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


def _first(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, _second)
    raise KeyboardInterrupt


def _second(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, _third)


def _third(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)
