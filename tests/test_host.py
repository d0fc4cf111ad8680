"""Freed memory stays in the process."""

import platform
import subprocess
import sys

import pytest

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
