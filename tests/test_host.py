"""Freed memory stays, what does not fit is refused, errors name their file, and signals that ask to stop are noted."""

import errno
import os
import platform
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from dasolib.host import STOP_SIGNALS, check_memory, names_file, stop_signals

PROGRAM = """
import resource, torch
from dasolib.host import prepare_host

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

fresh = faults()
prepare_host(1)
faults()
print(fresh, faults(), torch.get_num_threads())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone can be told")
def test_memory_that_is_freed_and_allocated_again_is_not_cleared_again():
    """Twenty times 64 MiB: unless it is kept, every page is touched for the first time each time."""
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    fresh, kept, threads = map(int, ran.stdout.split())
    assert kept < fresh / 10 and threads == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_what_finds_no_room_names_its_file(tmp_path):
    (tmp_path / "file").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*file'$") as raised, \
            names_file(tmp_path / "file"), open(tmp_path / "file", "w") as file:
        file.write("x")
    assert raised.value.errno == errno.ENOSPC


def test_an_error_that_names_another_file_or_has_no_number_stays_as_it_is(tmp_path):
    for error in (FileNotFoundError(errno.ENOENT, "No such file", "other"), OSError("cut short")):
        with pytest.raises(OSError, match=re.escape(str(error))) as raised, names_file(tmp_path / "file"):
            raise error
        assert raised.value is error


def test_what_takes_more_than_the_free_memory_is_refused(monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=3 * 10**9))
    check_memory("images", 3 * 10**9, "take fewer")
    with pytest.raises(ValueError, match=r"images: takes 3.1 GB of memory, and 3.0 GB are free; take fewer"):
        check_memory("images", 31 * 10**8, "take fewer")


def test_signals_that_ask_for_an_end_are_noted_in_their_order_and_heard_as_before_afterwards():
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with stop_signals() as asked:
        for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
    assert asked == [signal.SIGUSR1, signal.SIGINT, signal.SIGTERM, signal.SIGINT]
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_a_signal_that_is_ignored_as_nohup_asks_for_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as asked:
            os.kill(os.getpid(), signal.SIGHUP)
        assert asked == [] and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_thread_beside_the_main_one_changes_no_handler():
    def handlers():
        with stop_signals() as asked:
            return asked, [signal.getsignal(number) for number in STOP_SIGNALS]

    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(handlers).result() == ([], before)
