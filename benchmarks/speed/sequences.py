"""What a step of SASRec on MovieLens-1M is made of: processor seconds with torch's dropout and with ours, in fp32 and in bf16.

    OMP_NUM_THREADS=1 python benchmarks/speed/sequences.py

dropout: forward and backward of ones [128, 200, 200], milliseconds of the processor, the best of five.
step: histories of 500 users of SASRec's ml-1m, the last 200 items, batches of 32, d = 128, two layers, a full softmax of 3,416
    items; processor seconds of an epoch over them, the best of three, each after one that warms up. With "torch" recstack.nn.dropout
    is told that it has no kernel, and all is torch's: its Dropout, and attention as its scaled_dot_product_attention has it.
lengths: models that read every prefix, histories of 2,000 users of S3-Rec's Beauty, as benchmarks/sequences.py trains them;
    processor seconds of an epoch, the best of three, with histories of like length together ("ours"), and each as long as the
    longest of its batch ("padded").

Prints a line of JSON for each, and appends it to --out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from recstack.models import next_item
from recstack.nn import dropout

sys.path.insert(0, str(Path(__file__).parents[1]))
import sequences


def best(work: Callable[[], Any], repeats: int) -> float:
    work()
    seconds = []
    for _ in range(repeats):
        begun = time.process_time()
        work()
        seconds.append(time.process_time() - begun)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=500)
    parser.add_argument("--data-dir", help="folder of the public data sets; RECSTACK_DATA by default")
    parser.add_argument("--out", type=Path, default=sequences.RESULTS.with_name("speed_sequences.jsonl"))
    args = parser.parse_args()

    def write(line: dict[str, Any]) -> None:
        text = json.dumps(line | {"threads": torch.get_num_threads()})
        print(text, flush=True)
        with args.out.open("a", encoding="utf8") as file:
            file.write(text + "\n")

    x = torch.ones(128, 200, 200, requires_grad=True)
    slope = torch.ones_like(x)
    spent = {}
    for name, layer in (("ours", dropout.Dropout(0.2)), ("torch", torch.nn.Dropout(0.2))):
        spent[name] = 1e3 * best(lambda layer=layer: torch.autograd.grad(layer(x), x, slope), 5)
    write({"what": "dropout", **{k: round(v, 2) for k, v in spent.items()}, "ratio": spent["torch"] / spent["ours"]})

    data = sequences.movielens(args.data_dir, args.users)
    own = dropout.by_counter
    for precision in ("fp32", "bf16"):
        for name in ("ours", "torch"):
            dropout.by_counter = own if name == "ours" else lambda x: False
            torch.manual_seed(0)
            model = sequences.build("SASRec", "movielens-1m", data, 0)
            options: dict[str, Any] = {"optimizer": "adam", "lr": 1e-3, "precision": precision, "progress": False}
            spent[name] = best(
                lambda model=model, o=options: model.fit(data.train, epochs=1, batch_size=data.batch_size, seed=0, **o),
                3,
            )
        write(
            {
                "what": "step",
                "precision": precision,
                "histories": len(model.training_columns(data.train)),
                **{k: round(v, 2) for k, v in spent.items()},
                "ratio": round(spent["torch"] / spent["ours"], 3),
            }
        )

    dropout.by_counter = own
    data = sequences.DATA["beauty"](args.data_dir, 4 * args.users)
    grouped = next_item.of_like_length
    for name in ("MIND", "ComiRecSA", "SDM", "STAMP"):
        for how in ("ours", "padded"):
            next_item.of_like_length = grouped if how == "ours" else lambda mask: [torch.arange(len(mask))]
            torch.manual_seed(0)
            model = sequences.build(name, "beauty", data, 0)
            options = {"optimizer": "adam", "lr": 1e-3, "precision": "bf16", "progress": False}
            spent[how] = best(
                lambda model=model, o=options: model.fit(data.train, epochs=1, batch_size=data.batch_size, seed=0, **o),
                3,
            )
        ratio = round(spent["padded"] / spent["ours"], 3)
        write({"what": "lengths", "model": name, **{k: round(spent[k], 2) for k in ("ours", "padded")}, "ratio": ratio})


if __name__ == "__main__":
    main()
