"""One model for several domains: merged, with parameters of each domain's own, and measured domain by domain.

python examples/multi_domain.py
"""

import recstack as rs

log = rs.simulator.small(users=400, items=200, impressions=40_000, domains=3)
train, valid, test = rs.split.by_time(log)
schema = rs.Encoder(train.schema).fit(train).schema

models = {
    "merged": rs.multitask.SharedBottom(schema, dim=8, hidden=(64, 32)),  # the domain is one feature among others
    "STAR": rs.multidomain.STAR(schema, dim=8, hidden=(64, 32)),
    "PEPNet": rs.multidomain.PEPNet(schema, dim=8, hidden=(64, 32)),
}
best = {}
for name, model in models.items():
    trainer = rs.Trainer(model, epochs=3, monitor="auc", patience=1, progress=False)
    best[name] = trainer.fit(train, valid).best["value"]
    print(f"{name}: validation AUC {best[name]:.4f}")

chosen = max(best, key=best.get)  # on validation, never on test
print(f"{chosen}, domain by domain:")
print(rs.evaluate_tasks(models[chosen], test))
print("saved:", models[chosen].save("runs/multi-domain"))
