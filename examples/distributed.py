"""Train a ranker in several processes, its tables spread over them:

    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 examples/distributed.py

or, with plain ``python``, in one. Ctrl-C saves a checkpoint; the same command goes on from it.
"""

import sys
from pathlib import Path

import torch

import recstack as rs

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/distributed")
train, valid, test = rs.split.by_time(rs.simulator.small(users=500, items=300, impressions=40_000))
encoder = rs.Encoder(train.schema).fit(train)

torch.manual_seed(0)
model = rs.ranking.DeepFM(encoder.schema, dim=16, hidden=(64,))
trainer = rs.Trainer(
    model,
    epochs=2,
    batch_size=1024,  # of all processes together
    sharded="embedding",  # leave it out where every process can hold the tables
    checkpoint=folder / "checkpoints",
    checkpoint_every=20,
)
result = trainer.fit(train, valid, resume=True)
if trainer.world.main and not result.interrupted:  # every process has the model now; one of them goes on
    print({name: round(value, 4) for name, value in trainer.evaluate(test).items()})
    model.save(folder / "bundle")
