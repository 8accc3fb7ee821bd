"""Off-policy evaluation on the Open Bandit sample: what Thompson sampling earns, estimated from the log of a random policy.

    python benchmarks/bandits.py            # seconds; writes the table into docs/benchmarks.md

Truth is the click rate in the log of the Thompson-sampling policy itself, with its own interval. That policy learned while
it ran; the policy in question is its mean over the week: how often it showed each item at each place, by its log (the
clicks of that log are not used). The rewards of DM and DR are click rates of the random log by item and place, shrunken to
the item's and those to the campaign's, in two halves of which each predicts the other.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
from pages import put

import recstack as rs
from recstack.metrics import off_policy as ope

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- open bandit: begin -->", "<!-- open bandit: end -->"
SHRINK = 1000.0  # rows that the mean one level above counts as


def columns(policy: str, campaign: str, data_dir: str | None) -> tuple[np.ndarray, ...]:
    """Item, place from 0, click and chance of each row."""
    events = rs.datasets.open_bandit(policy, campaign, data_dir=data_dir).events
    names = ("item_id", "position", "click", "propensity")
    item, place, click, chance = (events[name].to_numpy() for name in names)
    return item, place - 1, click.astype(float), chance


def policy_of(item: np.ndarray, place: np.ndarray, arms: int) -> np.ndarray:
    """[3, A]: how often each item was shown at each place."""
    counts = np.zeros((3, arms))
    np.add.at(counts, (place, item), 1)
    return counts / counts.sum(1, keepdims=True)


def predicted(item: np.ndarray, place: np.ndarray, click: np.ndarray, arms: int) -> np.ndarray:
    """[n, A]: the click rate of every item at the row's place, by the half of the rows that this row is not in."""
    out, half = np.empty((len(item), arms)), np.arange(len(item)) % 2
    for part in (0, 1):
        known = half != part
        base = click[known].mean()
        clicks, shown = np.zeros((2, arms, 3))
        np.add.at(clicks, (item[known], place[known]), click[known])
        np.add.at(shown, (item[known], place[known]), 1)
        of_item = (clicks.sum(1) + SHRINK * base) / (shown.sum(1) + SHRINK)
        rate = (clicks + SHRINK * of_item[:, None]) / (shown + SHRINK)
        out[half == part] = rate[:, place[half == part]].T
    return out


def rows_of(campaign: str, data_dir: str | None) -> list[str]:
    """The rows of the table for one campaign, both ways."""
    logs = {policy: columns(policy, campaign, data_dir) for policy in ("random", "bts")}
    arms = int(max(log[0].max() for log in logs.values())) + 1
    policies = {"random": np.full((3, arms), 1 / arms), "bts": policy_of(*logs["bts"][:2], arms)}
    out = []
    for log, target in (("random", "bts"), ("bts", "random")):
        item, place, click, chance = logs[log]
        policy = policies[target][place]
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            weight = ope.importance(policy[np.arange(len(item)), item], chance)
        model = predicted(item, place, click, arms)
        truth = ope.on_policy(logs[target][2], interval="bootstrap")
        options = {"interval": "bootstrap"}
        found = {
            "on-policy (truth)": truth,
            "IPS": ope.ips(click, weight, **options),
            "SNIPS": ope.snips(click, weight, **options),
            "DM": ope.direct(model, policy, **options),
            "DR": ope.doubly_robust(click, weight, item, model, policy, **options),
        }
        if log == "random":  # a draw of the policy per row: what replay can use
            drawn = (np.random.default_rng(0).random(len(item))[:, None] > policy.cumsum(1)).sum(1).clip(max=arms - 1)
            found["replay"] = ope.replay(click, drawn == item, **options)
        seen = ope.overlap(weight)
        cover = f"{seen.effective:.0f} of {len(item)}, max {seen.largest:.0f}{' (warns)' if said else ''}"
        for name, e in found.items():
            own = name.startswith("on-policy")
            cells = [campaign, target, "own" if own else log, name, f"{e.value:.5f}", f"{e.low:.5f} – {e.high:.5f}"]
            out.append(f"| {' | '.join([*cells, '' if own else cover])} |")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--dry", action="store_true", help="print only")
    options = parser.parse_args()
    head = [
        "| campaign | policy | log | estimator | click rate | 95 % interval | rows that count |",
        "|---|---|---|---|---|---|---|",
    ]
    table = "\n".join([*head, *(row for c in ("men", "women") for row in rows_of(c, options.data_dir))])
    print(table)
    if not options.dry:
        put(table, PAGE, BEGIN, END)


if __name__ == "__main__":
    main()
