"""Freed memory stays with the process."""

import subprocess
import sys

import pytest

LOOP = """
import resource, sys
import torch
torch.set_num_threads(1)
from recstack.kernels.memory import keep_freed
if sys.argv[1] == "keep":
    keep_freed()
step = lambda: [torch.ones(3 << 20) for _ in range(8)]  # 8 blocks of 12 MB live at once, as activations do
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(30):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_the_pages_of_a_freed_block_serve_the_next_one():
    keep, give_back = (
        int(subprocess.run([sys.executable, "-c", LOOP, how], capture_output=True, text=True, check=True).stdout)
        for how in ("keep", "give back")
    )
    assert keep < 0.2 * give_back
