"""What an encoder of a list costs: processor ms per list, and the ratio to the transformer.

    OMP_NUM_THREADS=1 python benchmarks/speed/lists.py
    OMP_NUM_THREADS=1 python benchmarks/speed/lists.py --batch 1 --rounds 20

Width 256, 3 layers, 4 heads, kernel 3, position-wise network of 1024 where there is one; in evaluation, no dead items. Each
round asks every encoder once (at batch 1, ten times), one after the other; the ratio is taken within a round, and medians
over rounds are printed.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch

from recstack.nn.lists import ListEncoder

FORMS = {
    "transformer": ("transformer", 1024),
    "flattened transformer": ("flattened", 0),
    "lite transformer, network of 1024": ("lite", 1024),
    "lite transformer, flattened": ("lite", 256),
    "light conv, network of 1024": ("light_conv", 1024),
    "light conv, no network": ("light_conv", 0),
    "dynamic conv, no network": ("dynamic_conv", 0),
    "conv seq2seq": ("conv_seq2seq", 0),
    "SRU, both directions": ("sru", 0),
    "GRU, both directions": ("bigru", 0),
}


@torch.inference_mode()
def seconds(model: ListEncoder, x: torch.Tensor, mask: torch.Tensor, times: int) -> float:
    start = time.process_time()
    for _ in range(times):
        model(x, mask)
    return (time.process_time() - start) / times / len(x)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lists", type=int, nargs="+", default=[30, 50, 100])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 256])
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    models = {name: ListEncoder(kind, 256, 3, 4, hidden).eval() for name, (kind, hidden) in FORMS.items()}
    for batch in given.batch:
        for length in given.lists:
            x, mask = torch.randn(batch, length, 256), torch.ones(batch, length, dtype=torch.bool)
            times = 10 if batch == 1 else 1
            found: dict[str, list[float]] = {name: [] for name in FORMS}
            for turn in range(given.rounds + 1):
                for name, model in models.items():
                    spent = seconds(model, x, mask, times)
                    if turn:  # the first turn warms up
                        found[name].append(spent)
            for name, every in found.items():
                ratio = median(a / b for a, b in zip(every, found["transformer"], strict=True))
                print(f"{batch} | {length} | {name} | {1e3 * median(every):.2f} ms | {ratio:.2f}", flush=True)
