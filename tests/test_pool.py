"""Processes that work on many files: results in order, and an end without traces, however it comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import cast

import pytest

from dataset.pool import _in_order, processes
from dataset.toml import DataError
from utils.interrupts import interruptible
from utils.launch import launch

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import sys, time
from dataset.pool import processes
from utils.interrupts import interruptible

def tasks():
    yield 0
    if sys.argv[1] == "start":
        print("go", flush=True)  # the first process was started just now
    while True:
        yield 1000

with interruptible(), processes(2, remedy="") as each:
    for _ in each(time.sleep, tasks()):
        print("go", flush=True)
"""


@pytest.mark.parametrize(
    ("moment", "signals"),
    [
        ("start", [signal.SIGINT]),
        ("work", [signal.SIGINT]),
        ("work", [signal.SIGINT, signal.SIGINT]),
        ("work", [signal.SIGKILL]),
    ],
)
def test_an_interrupted_pool_ends_with_its_processes(moment: str, signals: list[signal.Signals]) -> None:
    """`communicate` returns once no process has the output open any more; the work would take a thousand seconds."""
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, moment],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert program.stdout
    assert program.stdout.readline() == "go\n"
    for number in signals:
        if number == signal.SIGKILL:
            program.kill()  # this one alone
        else:
            os.killpg(program.pid, number)  # as a terminal does: all of them
    _, errors = program.communicate(timeout=100)
    if signals[0] == signal.SIGKILL:
        assert program.returncode == -signal.SIGKILL
    else:
        assert program.returncode == 130, errors
        assert errors == "interrupted\n"


@pytest.mark.usefixtures("handler")
def test_ctrl_c_waits_though_another_thread_takes_it() -> None:
    """Between a process's start and its task: half-started, it would end with a trace."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    done = []

    class Pool:
        def submit(self, function: Callable[[int], int], task: int) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
            done.append(task)

    try:
        with pytest.raises(KeyboardInterrupt):
            list(_in_order(cast(ProcessPoolExecutor, Pool()), 1, abs, [0]))
    finally:
        over.set()
        thread.join()
    assert done == [0]


@pytest.mark.parametrize("count", [0, 2])
def test_results_come_in_order(count: int) -> None:
    with processes(count, remedy="") as each:
        assert list(each(abs, range(0, -50, -1))) == list(range(50))
        assert list(each(len, [])) == []
        assert list(each(len, ["ab", "c"])) == [2, 1]


def test_an_error_in_a_process_is_raised_here() -> None:
    with pytest.raises(ValueError, match="invalid literal"), processes(1, remedy="") as each:
        list(each(int, ["1", "x"]))


def test_a_process_that_dies_is_a_mistake_with_a_remedy() -> None:
    with pytest.raises(DataError, match=r"was killed \(out of memory\?\); take a rest"):  # noqa: SIM117
        with processes(1, remedy="take a rest") as each:
            list(each(os._exit, [1]))


# ---- how a script ends ----


@pytest.fixture
def handler() -> Iterator[None]:
    """What Ctrl-C did before is what it does after."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("handler")
def test_an_interrupted_script_ends_with_130_and_a_quiet_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        launch(lambda _: signal.raise_signal(signal.SIGINT))
    assert stop.value.code == 130
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # nothing disturbs the rest of the end
    assert capsys.readouterr() == ("", "interrupted\n")


def test_a_script_whose_reader_has_gone_ends_quietly() -> None:
    """As in `script | head -1`."""
    program = """
import sys
from utils.launch import launch

def main(argv):
    sys.stdin.readline()
    for _ in range(10000):
        print("a line that nobody reads")

launch(main)
"""
    command, pipe = [sys.executable, "-c", program], subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, text=True, stdin=pipe, stdout=pipe, stderr=pipe) as script:
        assert script.stdout
        script.stdout.close()
        _, errors = script.communicate("go\n", timeout=100)
    assert (script.returncode, errors) == (141, "")


@pytest.mark.usefixtures("handler")
def test_ctrl_c_is_given_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with interruptible(), interruptible():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interruptible():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
