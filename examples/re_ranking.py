"""The last metres of a page: re-rankers of whole lists, calibrated scores, and rules that say what they cost.

python examples/re_ranking.py
"""

import recstack as rs

log = rs.simulator.small(users=400, items=200, impressions=40_000, lists=True)
train, valid, test = rs.split.by_time(log)
encoder = rs.Encoder(train.schema).fit(train)

models = {
    "PRM": rs.reranking.PRM(encoder.schema, dim=8, width=16, hidden=32),
    "PRM, light convolutions": rs.reranking.PRM(encoder.schema, dim=8, width=16, hidden=32, encoder="light_conv"),
    "SetRank": rs.reranking.SetRank(encoder.schema, dim=8, width=16),
}
for name, model in models.items():
    trainer = rs.Trainer(model, epochs=3, monitor="ndcg@10", patience=1, progress=False)
    best = trainer.fit(train, valid).best
    print(f"{name}: validation ndcg@10 {best['value']:.4f}")
cascade = rs.Cascade(
    [rs.retrieval.Popularity(), rs.retrieval.Swing()],
    ranker=rs.ranking.DCNv2(encoder.schema, dim=8, hidden=(32,)),
    calibrator=rs.calibration.Isotonic(),
    rules=[rs.rules.MinimumGap("brand", window=3), rs.rules.CategoryCap("category", 4)],
).fit(train, valid, options={"ranker": {"epochs": 1, "progress": False}})
print(cascade.evaluate(test))
for step in cascade.explain(test.events["user_id"][0], k=5)["stages"]:
    if "cost" in step:
        print(f"{step['name']}: gave up {step['cost']:.1%} of one user's page")
