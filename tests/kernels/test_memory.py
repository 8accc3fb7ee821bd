"""Freed memory stays with the process."""

import subprocess
import sys

import pytest

LOOP = """
import resource
import torch
torch.set_num_threads(1)
from recstack.kernels.memory import keep_freed
keep_freed()
step = lambda: [torch.ones(n << 20) for n in (3, 3, 3, 3, 3, 3, 3, 3, 12)]  # 8 blocks of 12 MB and one of 48 live at once
for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_the_pages_of_freed_blocks_serve_the_next_ones():
    done = subprocess.run([sys.executable, "-c", LOOP], capture_output=True, text=True, check=True)
    of_one_step = (8 * 12 + 48 << 20) // 4096
    assert int(done.stdout) < 2 * of_one_step  # 20 steps
