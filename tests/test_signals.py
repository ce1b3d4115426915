"""Who owns SIGTERM and SIGINT when; each case in a process of its own, since most end it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxft.signals import Stopped, StopSignals

BUSY = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"  # minutes in C, as a compile
SENDS = "import os, signal, time\nfrom jaxft.signals import StopSignals\n"


def run(body: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", SENDS + body], capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[1]
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name, code", [("SIGTERM", 143), ("SIGINT", 130)])
def test_with_nothing_to_save_a_signal_ends_the_process_at_once_even_in_c(name, code):
    body = f"with StopSignals():\n  os.kill(os.getpid(), signal.{name})\n  {BUSY}\n"
    assert run(body) == (code, "", f"jaxft: {name}: stopped; what was saved stands, the same command goes on\n")


def test_in_a_deferred_part_the_first_is_noted_and_the_second_ends_the_process():
    body = (
        "with StopSignals() as signals, signals.deferred():\n"
        "  os.kill(os.getpid(), signal.SIGTERM)\n"
        "  while not signals.number: time.sleep(0.01)\n"
        "  print(signals.name, flush=True)\n"
        "  os.kill(os.getpid(), signal.SIGINT)\n"
        f"  {BUSY}\n"
    )
    said = "jaxft: SIGINT: a second signal, stopped without saving; the same command goes on\n"
    assert run(body) == (130, "SIGTERM\n", said)


def test_a_reader_that_is_gone_does_not_keep_the_process_alive():
    body = f"os.close(2)\nwith StopSignals():\n  os.kill(os.getpid(), signal.SIGTERM)\n  {BUSY}\n"
    assert run(body) == (143, "", "")


def noted(signals):
    """Sends SIGTERM and waits until it is noted."""
    os.kill(os.getpid(), signal.SIGTERM)
    while not signals.number:
        pass


def test_a_signal_that_nobody_looked_at_stops_the_run_when_the_deferred_part_ends():
    with StopSignals() as signals, pytest.raises(Stopped, match="SIGTERM: stopped") as caught, signals.deferred():
        noted(signals)
    assert caught.value.code == 143


def test_an_error_in_a_deferred_part_is_not_replaced_by_the_signal():
    with StopSignals() as signals, pytest.raises(ZeroDivisionError), signals.deferred():
        noted(signals)
        raise ZeroDivisionError


def test_leaving_gives_everything_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    with StopSignals() as signals:
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert signal.set_wakeup_fd(-1) == wakeup
    assert not signals._thread.is_alive()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        while True:
            pass


def test_in_a_notebook_an_interrupt_ends_the_cell_and_never_the_kernel():
    with pytest.raises(KeyboardInterrupt), StopSignals(kernel=True):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    seen = None
    with pytest.raises(KeyboardInterrupt), StopSignals(kernel=True) as signals, signals.deferred():
        os.kill(os.getpid(), signal.SIGINT)
        while signals.number is None:  # a step is finished, say
            time.sleep(0.01)
        seen = signals.number
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert seen == signal.SIGINT
