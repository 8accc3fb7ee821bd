"""The demo's report: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import Any

STYLE = """
:root { color-scheme: light dark; --line: #d7dbe0; --soft: #667; }
@media (prefers-color-scheme: dark) { :root { --line: #3a3f46; --soft: #9aa; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .5rem; }
p.note { color: var(--soft); margin: .2rem 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .28rem .55rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; }
img { max-width: 100%; background: #fff; border-radius: 6px; }
.pages { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1.5rem; }
.pages ol { padding-left: 1.3rem; margin: .3rem 0; } .pages small { color: var(--soft); }
"""


def write(out: Path, metrics: dict[str, Any], report: Any, calibration: dict[str, Any], examples: list[dict]) -> None:
    """Write report.html and the pictures, funnel.png and reliability.png, into `out`."""
    report.figure(out / "funnel.png")
    reliability(calibration["table"], out / "reliability.png")
    k, esc = report.k, html.escape
    stages = _table(
        ["stage", "items", "recall", f"recall@{k}", f"ndcg@{k}", "p50 ms", "p99 ms"],
        [
            [r["name"], f"{r['kept']:.0f}", f"{r['recall']:.4f}", f"{r['recall@k']:.4f}", f"{r['ndcg@k']:.4f}"]
            + ["" if r[p] is None else f"{r[p]:.2f}" for p in ("p50_ms", "p99_ms")]
            for r in report.stages
        ],
    )
    c = metrics["calibration"]
    honest = _table(
        ["", "expected calibration error", "Σp / Σy"],
        [
            ["ranker alone", f"{c['ece_before']:.4f}", f"{c['ratio_before']:.3f}"],
            ["calibrated", f"{c['ece_after']:.4f}", f"{c['ratio_after']:.3f}"],
        ],
    )
    truth = ""
    if metrics["expected_clicks_per_page"]:
        rows = [[name, f"{value:.3f}"] for name, value in metrics["expected_clicks_per_page"].items()]
        truth = (
            "<h2>Against the known truth</h2><p class=note>Expected clicks on a page of "
            f"{k} under the market's own probabilities; nobody is shown what they saw before.</p>"
            + _table(["page", "expected clicks"], rows)
        )
    pages = "".join(
        f"<section><b>User {esc(str(e['user']))}</b><br><small>last: {esc(', '.join(e['last']) or 'nothing')}</small><ol>"
        + "".join(f"<li>{esc(row['title'])} <small>{row.get('probability', 0):.3f}</small></li>" for row in e["page"])
        + "</ol></section>"
        for e in examples
    )
    seconds = _table(["step", "seconds"], [[name, f"{value:.1f}"] for name, value in metrics["seconds"].items()])
    final = metrics["final"][f"ndcg@{k}"]
    body = f"""<h1>RecStack demo: {esc(metrics["data"])}</h1>
<p class=note>Split {esc(metrics["split"])}. {report.requests:,} users. {esc(report.protocol)} Seed {metrics["seed"]}.</p>
<p>The page's ndcg@{k} is <b>{final:.4f}</b>: {metrics["final_over_best_retriever"]:.2f} × the best single retriever
({esc(metrics["best_retriever"])}), {metrics["final_over_popularity"]:.2f} × popularity.</p>
<h2>The funnel</h2><p class=note>What share of the relevant items is left after each stage, and the page that its order would
give. Latency is of single requests.</p>{_image(out / "funnel.png", "The funnel, stage by stage")}{stages}
<h2>Honest probabilities</h2>{honest}{_image(out / "reliability.png", "Predicted against observed probability")}
{truth}
<h2>Pages</h2><div class=pages>{pages}</div>
<h2>Time</h2>{seconds}"""
    page = '<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">'
    page += f"<title>RecStack demo: {esc(metrics['data'])}</title><style>{STYLE}</style><body>{body}</body></html>"
    (out / "report.html").write_text(page, "utf8")


def reliability(table: Any, path: Path) -> None:
    """Predicted against observed probability, one point per bin of equal mass."""
    from matplotlib.figure import Figure

    x, y, low, high = (table[name].tolist() for name in ("predicted", "observed", "low", "high"))
    figure = Figure(figsize=(5, 4), layout="constrained")
    axis = figure.subplots()
    top = 1.1 * max([*x, *high, 1e-6])
    axis.plot([0, top], [0, top], color="#999", lw=1)
    axis.vlines(x, low, high, color="#4c78a8", alpha=0.5)
    axis.plot(x, y, "o-", color="#4c78a8", ms=4)
    axis.set(xlim=(0, top), ylim=(0, top), xlabel="predicted", ylabel="observed")
    axis.set_title("Calibrated probability on the test", loc="left", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def _table(head: list[str], rows: list[list[str]]) -> str:
    cells = lambda tag, row: "".join(f"<{tag}>{html.escape(str(v))}</{tag}>" for v in row)  # noqa: E731
    return f"<table><tr>{cells('th', head)}</tr>" + "".join(f"<tr>{cells('td', r)}</tr>" for r in rows) + "</table>"


def _image(path: Path, alt: str) -> str:
    data = base64.b64encode(io.FileIO(path).readall()).decode()
    return f'<p><img alt="{html.escape(alt)}" src="data:image/png;base64,{data}"></p>'
