"""Compare ranking models on one log, ask the best what it lives on, and save it.

python examples/ranking.py
"""

import rich.table

import recstack as rs

log = rs.simulator.small(users=300, items=200, impressions=30_000)
log.schema = log.schema.with_features(
    rs.Hits("category_hits", target="category", history="clicked"),  # how often and how lately it was clicked before
)
train, valid, test = rs.split.by_time(log)
schema = rs.Encoder(train.schema).fit(train).schema

models = {
    "LR": rs.ranking.LR(schema),
    "DeepFM": rs.ranking.DeepFM(schema, dim=8, hidden=(64, 32)),
    "DCN V2": rs.ranking.DCNv2(schema, dim=8, hidden=(64, 32)),
    "DIN": rs.ranking.DIN(schema, dim=8, hidden=(64, 32)),
}
table = rich.table.Table("model", "parameters", "valid AUC", "test AUC", "test logloss")
best = {}
for name, model in models.items():
    trainer = rs.Trainer(model, epochs=3, monitor="auc", patience=1)
    best[name] = trainer.fit(train, valid).best["value"]
    measured = trainer.evaluate(test)
    parameters = sum(p.numel() for p in model.parameters())
    cells = (best[name], measured["click/auc"], measured["click/logloss"])
    table.add_row(name, f"{parameters:,}", *(f"{value:.4f}" for value in cells))
rich.print(table)

chosen = max(best, key=best.get)  # on validation, never on test
drops = rs.permutation_importance(models[chosen], valid, metric="auc", repeats=2)
print(f"{chosen} lives on", ", ".join(f"{name} ({drop.mean:+.3f})" for name, drop in list(drops.items())[:3]))
print("saved:", models[chosen].save("runs/ranker"))
