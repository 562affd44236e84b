"""How a script begins and ends. Imports nothing heavy: whoever mistyped a flag need not wait for torch."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from dataset.toml import DataError
from utils.config import ConfigError
from utils.interrupts import NO_READER, interruptible


def launch(main: Callable[[Sequence[str] | None], None]) -> None:
    """Run a script's main and leave: 0, or 2 with one clear line for a user's mistake, a full disk or too little
    memory, 1 with one for numbers that are none, 130 for Ctrl-C, 141 where nobody reads the output any more (`| head`),
    or 1 with a traceback."""
    with interruptible():
        try:
            main(None)
        except (ConfigError, DataError) as error:
            _leave(2, str(error))
        except BrokenPipeError:
            if not _nobody_reads():
                raise
            raise SystemExit(NO_READER) from None
        except Exception as error:
            from utils.mistakes import answer  # only now: where the other errors are defined, torch is imported

            found = answer(error)
            if found is None:
                raise
            _leave(*found)


def _nobody_reads() -> bool:
    """Whether standard output is a pipe whose reader has gone; what is left to say is then dropped."""
    if not hasattr(select, "poll"):  # Windows
        return False
    output = select.poll()
    output.register(sys.stdout, 0)
    if not any(event & select.POLLERR for _, event in output.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
    return True


def _leave(code: int, reason: str) -> NoReturn:
    print(f"error: {reason}", file=sys.stderr)
    raise SystemExit(code) from None
