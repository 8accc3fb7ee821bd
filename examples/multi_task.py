"""Clicks, carts and orders by one model: trunks compared, losses balanced, and who pays for whom.

python examples/multi_task.py
"""

from functools import partial

import recstack as rs

log = rs.simulator.small(users=400, items=200, impressions=40_000, tasks="funnel")
train, valid, test = rs.split.by_time(log)
schema = rs.Encoder(train.schema).fit(train).schema
print("tasks:", ", ".join(t.name for t in schema.tasks))

sizes = {"dim": 8, "towers": (16,)}
models = {
    "one bottom": rs.multitask.SharedBottom(schema, hidden=(64,), **sizes),
    "MMoE": rs.multitask.MMoE(schema, experts=4, hidden=(32,), gate_dropout=0.1, **sizes),
    "PLE": rs.multitask.PLE(schema, hidden=(32,), **sizes),
    "PLE over DIN": rs.multitask.PLE(
        schema, hidden=(32,), trunk=partial(rs.ranking.DIN, hidden=(64,)), **sizes
    ),  # any deep model can be what the experts read
}
best = {}
for name, model in models.items():
    trainer = rs.Trainer(model, epochs=3, monitor="click/auc", patience=1, balance="uncertainty", progress=False)
    best[name] = trainer.fit(train, valid).best["value"]
chosen = max(best, key=best.get)  # on validation, never on test

alone = {}
for task in ("click", "ordered"):
    names = {"click": ("click",), "ordered": ("click", "cart", "order", "carted", "ordered")}[task]
    only = schema.replace(tasks=[t for t in schema.tasks if t.name in names])
    alone[task] = rs.multitask.SharedBottom(only, hidden=(64,), **sizes)
    rs.Trainer(alone[task], epochs=3, monitor="click/auc", patience=1, progress=False).fit(train, valid)
print(f"{chosen}, and what each task gains over a model of its own:")
print(rs.evaluate_tasks(models[chosen], test, baseline=alone))
print("saved:", models[chosen].save("runs/multi-task"))
