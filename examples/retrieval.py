"""Find candidates in many ways, merge them by what each is worth, and lead users to ads by their tags.

python examples/retrieval.py
"""

import numpy as np
import rich.table
import torch

import recstack as rs

torch.manual_seed(0)
market = rs.simulator.simulate(users=300, items=200, impressions=30_000, ads=0.5)
train, valid, test = rs.split.by_time(market.log())
encoder = rs.Encoder(train.schema).fit(train)
train.schema = encoder.schema  # one vocabulary for all of them

# Every source answers recommend(users, k): some count, some are trained.
sources = [
    rs.retrieval.Popularity().fit(train),
    rs.retrieval.Swing().fit(train),
    rs.retrieval.ContentBased(features=("category", "brand"), last=10).fit(train),
    rs.retrieval.EASE().fit(train),
    rs.retrieval.DSSM(encoder.schema, dim=8, hidden=(64, 32)).fit(train, epochs=3, progress=False),
]
weights = rs.merge_weights(sources, valid, k=20)  # on validation, never on test
print("what each source counts:", ", ".join(f"{name} {weight:.2f}" for name, weight in weights.items()))
equal = rs.evaluate_retrieval(sources, test, k=20, worth="cost")  # whose clicks were found, and whose cost
learned = rs.evaluate_retrieval(sources, test, k=20, worth="cost", merge={"weights": weights})
table = rich.table.Table("test", "click recall", "cost recall", "ndcg", "coverage", "marginal")
for row in (*equal.rows, {**learned.row("merged"), "name": "merged, learned"}):
    marginal = f"{row['marginal']:+.4f}" if "marginal" in row else ""
    cells = (row[name] for name in ("recall@20", "worth@20", "ndcg@20", "coverage"))
    table.add_row(row["name"], *(f"{value:.4f}" for value in cells), marginal)
rich.print(table)

# Ads, by what users clicked: the items themselves, and their categories. A third of them is for some ages only.
rng = np.random.default_rng(0)
items = encoder.catalog.batch(np.arange(encoder.catalog.size))
category = items["category"].numpy()
sold = market.items.filter(market.items["ad"])
raw, bid = sold["item_id"].to_numpy(), torch.tensor(sold["bid"].to_list())
ads = encoder.encode_values("item_id", raw).astype(np.int64)
kinds = {"item": len(category), "category": category.max() + 1, "age": encoder.schema.feature("age").size}
index = rs.index.TagIndex(kinds, tags_per_user=10, ads_per_tag=8)
aimed = np.where(rng.random(len(ads)) < 1 / 3, rng.integers(2, kinds["age"], len(ads)), -1)
index.build(
    ads,
    index.tags(item=ads, category=category[ads]),
    worth=bid,
    only=index.tags(age=aimed),
    budget=sold["budget"].to_numpy(),
)
users = np.array(sources[0].profiles.users)
requests = sources[0].profiles.requests(users)
clicked = requests.batch["item_id@clicked"].numpy()
live = clicked > 0
bounds, clicked = np.append(0, live.sum(1).cumsum()), clicked[live]
holds = index.tags(
    item=(bounds, clicked),
    category=(bounds, category[clicked]),
    age=(np.arange(len(users) + 1), requests.batch["age"].numpy(), np.zeros(len(users))),  # held, leads nowhere
)
whole, cut = index.reach(holds, whole=True).mean(), index.reach(holds).mean()
print(f"tags lead a user to {whole:.1f} ads, the cut lists to {cut:.1f}")

# What the cuts cost, against a queue of all eligible ads by expected revenue; the market's own chances stand for a ranker's.
ctr = torch.from_numpy(market.truth.click(users[:, None], raw)).float()
queue = rs.index.ecpm_queue(ctr, bid, torch.from_numpy(ads), 10, allowed=index.eligible(holds, torch.from_numpy(ads)))
for name, found in {
    "whole": index.search(holds, 30, whole=True)[0],
    "cut": index.search(holds, 30)[0],
    "quotas of 15": rs.Candidates.merge(index.by_kind(holds, 30), 30, quota={"item": 15, "category": 15}).ids,
}.items():
    share = rs.index.queue_recall(found, queue)
    print(f"{name}: {share['recall']:.0%} of the queue's ads, {share['worth']:.0%} of its revenue")

first = index.search(holds, 1)[0][:, 0]
index.charge(first[:1].numpy(), [1e6])  # its budget is out
print("off line at once:", not bool((index.search(holds, 30)[0] == first[0]).any()))
