"""What diversity costs: pages of MMR, DPP, xQuAD and others from one ranker's lists on MovieLens-1M.

    python benchmarks/diversity.py          # a minute and a half of one core; writes table and picture into docs/

The last 5 films of each user are held out. EASE (λ = 500) proposes 100 films to each of 2,000 users, rules make pages of 10 of
them. Relevance is the page's ndcg@10; distance is 1 - cosine between the films of a page, of the vectors that MMR and DPP
read (32 dimensions of a singular value decomposition of the training matrix) and of genres, which xQuAD reads. Nothing
was chosen on these figures: every setting of every rule is shown.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from pages import put

import recstack as rs
from recstack.models.counting import user_items
from recstack.rules import DPP, MMR, Calibrated, Coverage, PageContext, RoundRobin, Rule, XQuAD, cost

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- diversity: begin -->", "<!-- diversity: end -->"
FIGURE = "diversity.svg"
K, WIDTH, USERS = 10, 100, 2000
CURVES: dict[str, list[tuple[float, Rule]]] = {
    "MMR": [(x, MMR(x)) for x in (1.0, 0.9, 0.8, 0.7, 0.5, 0.3)],
    "DPP": [(x, DPP(x)) for x in (1.0, 0.99, 0.97, 0.9, 0.8, 0.5)],
    "xQuAD": [(x, XQuAD(x, "genres")) for x in (1.0, 0.9, 0.7, 0.5, 0.3, 0.1)],
    "coverage": [(x, Coverage(x, "genres")) for x in (0.0, 0.3, 1.0, 3.0, 10.0)],
    "calibrated": [(x, Calibrated(x, "genres")) for x in (1.0, 0.9, 0.7, 0.5, 0.3)],
    "round robin": [(0.0, RoundRobin("first_genre"))],
}


def lists(data_dir: str | None) -> tuple[rs.Candidates, PageContext, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Candidates, what rules may know, which candidates are relevant, how many there are, genres [N, G] as they are."""
    log = rs.datasets.movielens_1m(data_dir=data_dir)
    train, _, test = rs.split.last_per_user(log, test=5, valid=0)
    encoder = rs.Encoder(train.schema).fit(train)
    columns = encoder.encode(train)
    ranker = rs.retrieval.EASE(l2=500).fit(columns)
    met = user_items(columns, None)
    users = np.sort(np.random.default_rng(0).choice(test.events["user_id"].unique().sort().to_numpy(), USERS, False))
    found = ranker.recommend(users, WIDTH)

    matrix = torch.zeros(met.height, encoder.catalog.size)
    rows = np.repeat(np.arange(met.height), np.diff(met.offsets))
    matrix[torch.from_numpy(rows), torch.from_numpy(met.columns.astype(np.int64))] = 1
    torch.manual_seed(0)
    _, size, v = torch.svd_lowrank(matrix, 32, niter=4)

    assert log.items is not None
    names = sorted({g for some in log.items["genres"] for g in some})
    ids = encoder.encode_values("item_id", log.items["item_id"].to_list())
    genres = torch.zeros(encoder.catalog.size, max(log.items["genres"].list.len().max(), 1), dtype=torch.long)
    for i, some in zip(ids.tolist(), log.items["genres"], strict=True):
        if i > 1:  # not a film that nobody saw
            genres[i, : len(some)] = torch.tensor([1 + names.index(g) for g in some])
    one_hot = torch.nn.functional.one_hot(genres, len(names) + 1).amax(1)[:, 1:].float()

    def of_users(part: rs.Log) -> list[torch.Tensor]:
        events = part.events.select("user_id", "item_id").to_numpy()
        events = events[np.isin(events[:, 0], users)]
        item = torch.from_numpy(np.asarray(encoder.encode_values("item_id", events[:, 1].tolist())).astype(np.int64))
        row = np.searchsorted(users, events[:, 0])
        return [item[torch.from_numpy(row == r)] for r in range(USERS)]

    held, past = of_users(test), of_users(train)
    history = torch.nn.utils.rnn.pad_sequence(past, batch_first=True)
    relevant = torch.stack([torch.isin(found.ids[r], held[r]) for r in range(USERS)])
    count = torch.tensor([len(h) for h in held])
    context = PageContext(K, v * size, {"genres": genres, "first_genre": genres[:, 0]}, history)
    return found, context, relevant, count, one_hot


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    options = parser.parse_args()
    found, context, relevant, count, genres = lists(options.data_dir)
    descending = torch.arange(K, 0, -1).float().expand(USERS, -1)
    head = (
        "| rule | setting | ndcg@10 | distance (vectors) | distance (genres) | relevance given up | CPU ms per list |"
    )
    rows, points = [head, "|---|---|---|---|---|---|---|"], {}
    for name, settings in CURVES.items():
        for setting, rule in settings:
            began = time.process_time()
            page = rule(found, context)
            spent = 1e3 * (time.process_time() - began) / USERS
            ids = page.ids[:, :K]
            place = rs.rules.moved(found, page)[:, :K]
            label = relevant.gather(1, place.clamp(min=0)) & (place >= 0)
            ndcg = float(rs.metrics.ndcg(descending, label.float(), k=K, n_positive=count))
            apart = [float(rs.metrics.intra_list_distance(ids, x)) for x in (context.vectors, genres)]
            points.setdefault(name, []).append((ndcg, *apart))
            given = float(cost(found, page, K).mean())
            told = "" if name == "round robin" else f"{setting:g}"
            cells = [name, told, f"{ndcg:.4f}", f"{apart[0]:.3f}", f"{apart[1]:.3f}", f"{given:.1%}", f"{spent:.2f}"]
            rows.append(f"| {' | '.join(cells)} |")
    table = "\n".join(rows)
    print(table)
    draw(points, DOCS / FIGURE)
    put(f"{table}\n\n![Relevance against distance]({FIGURE})", DOCS / "benchmarks.md", BEGIN, END)


def draw(points: dict[str, list[tuple[float, float, float]]], out: Path) -> None:
    """Relevance against both distances, a line per rule."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = "recstack"
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for at, (axis, what) in enumerate(zip(axes, ("vectors", "genres"), strict=True), 1):
        for name, curve in points.items():
            axis.plot(
                [p[at] for p in curve], [p[0] for p in curve], marker="o", markersize=4, linewidth=1.3, label=name
            )
        axis.set_xlabel(f"distance within the page ({what})")
        axis.grid(alpha=0.25, linewidth=0.5)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("ndcg@10")
    axes[1].legend(frameon=False, fontsize=8)
    fig.tight_layout()
    fig.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)
    plt.close(fig)


if __name__ == "__main__":
    main()
