import subprocess
import sys

import pytest

from sam_med2d.memory import keep_freed_memory

COUNTED = """
import resource, sys, torch
from sam_med2d.memory import keep_freed_memory
keep_freed_memory(all_of_it=sys.argv[1] == "all")
def work():
    for _ in range(8):
        blocks = [torch.ones(int(sys.argv[2]) << 18) for _ in range(4)]
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="no C library that can be told")
def test_freed_blocks_are_taken_again_as_they_are() -> None:
    def faults(how: str, megabytes: int) -> int:
        command = [sys.executable, "-c", COUNTED, how, str(megabytes)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    pages = 8 * 4 * 2**20 // 4096  # that are written, of each megabyte
    assert faults("some", 2) < 2 * pages / 50
    assert faults("all", 40) < 40 * pages / 50 < faults("some", 40)


GIVEN_BACK = """
import torch
from sam_med2d.memory import give_back_freed_memory, keep_freed_memory
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20
keep_freed_memory()
before = resident()
pictures = [torch.ones(1 << 19) for _ in range(150)]  # 2 MB each
del pictures[:-1]  # the last one holds the end of the heap
kept = resident()
give_back_freed_memory()
print(kept - before, resident() - before)
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="no C library that can be told")
def test_freed_blocks_below_others_are_given_back() -> None:
    ended = subprocess.run([sys.executable, "-c", GIVEN_BACK], capture_output=True, text=True, check=True)
    kept, left = map(float, ended.stdout.split())
    assert kept > 200 and left < 50
