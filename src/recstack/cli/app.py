"""The commands: their options, help and examples. What they do is imported when they run, so that --help is fast."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from recstack.cli.output import INTERRUPTED, emit_json, emit_table, exit_code, note
from recstack.errors import ConfigError, RecStackError


class Commands(TyperGroup):
    """Prints what a person can mend as one sentence, with an exit code that says of what kind it is."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--debug" in args:  # wherever it stands
            args = ["--debug", *(a for a in args if a != "--debug")]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            note("Interrupted.")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            raise
        except (RecStackError, OSError) as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            typer.secho("Error: ", fg="red", bold=True, err=True, nl=False)
            note(str(error))
            raise typer.Exit(exit_code(error)) from None


EXIT_CODES = (
    "Exit codes: 0 done · 1 unexpected · 2 wrong option or configuration · 3 bad data or schema · "
    "4 bad bundle · 5 training failed · 130 interrupted"
)
app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def example(*lines: str) -> str:
    """The end of a command's help."""
    shown = (line.replace("[", r"\[") for line in lines)
    return "\n\n".join(["[bold]Example:[/bold]" if len(lines) == 1 else "[bold]Examples:[/bold]", *shown])


AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder that was saved.", show_default=False)]
Users = Annotated[str | None, typer.Option(help="Files with one row per user.", show_default=False)]
Items = Annotated[str | None, typer.Option(help="Files with one row per item.", show_default=False)]
Implicit = Annotated[bool, typer.Option("--implicit", help="Rows are positives; what is no row is unknown.")]
Length = Annotated[int, typer.Option("--k", "-k", help="Length of the page.")]


def _version(asked: bool) -> None:
    if asked:
        import recstack

        print(recstack.__version__)
        raise typer.Exit


@app.callback()
def recstack(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """From interaction logs to a served, measured, multi-stage recommender."""


@app.command(epilog=example("recstack demo", "recstack demo --data movielens-1m --no-serve"))
def demo(
    data: Annotated[str, typer.Option(help="simulator, movielens-1m or kuairand-pure.")] = "simulator",
    data_dir: Annotated[Path | None, typer.Option(help="Where the public sets are.", show_default=False)] = None,
    out: Annotated[Path, typer.Option(help="Folder for metrics.json, report.html and the bundle.")] = Path("runs/demo"),
    serve: Annotated[bool, typer.Option(help="Serve the page when it is ready.")] = True,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
) -> None:
    """Data to a served page, all stages: about five minutes, everything measured."""
    from recstack.cli.demo import run

    run(data=data, data_dir=data_dir, out=out, serve=serve, seed=seed)


@app.command(
    epilog=example(
        "recstack prepare --data 'events/*.parquet' --suggest-schema > schema.yaml",
        "recstack prepare --data 'events/*.parquet' --schema schema.yaml --out store/",
    )
)
def prepare(
    data: Annotated[str, typer.Option(help="Events: a file, a folder or a glob; Parquet, CSV, Arrow.")],
    schema: Annotated[str | None, typer.Option(help="What the columns mean: YAML or JSON.", show_default=False)] = None,
    users: Users = None,
    items: Items = None,
    implicit: Implicit = False,
    request: Annotated[
        str | None, typer.Option(help="Column that groups rows into shown lists.", show_default=False)
    ] = None,
    weight: Annotated[str | None, typer.Option(help="Column with a weight per row.", show_default=False)] = None,
    split: Annotated[
        str,
        typer.Option(
            help="by_time, last_per_user, leave_last_out, by_user, random, or none: all for training, encoded in parts."
        ),
    ] = "by_time",
    valid: Annotated[
        float | None, typer.Option(help="Fraction, or events per user, for validation.", show_default=False)
    ] = None,
    test: Annotated[
        float | None, typer.Option(help="Fraction, or events per user, for the test.", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of a random split.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the store.", show_default=False)] = None,
    suggest_schema: Annotated[
        bool, typer.Option("--suggest-schema", help="Only print a schema guessed from the columns.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Split events, fit the encoder on the training part, and save encoded columns."""
    from recstack.cli import prepare as command

    if suggest_schema:
        command.suggest(data, users, items)
        return
    if schema is None or out is None:
        raise ConfigError(f"Missing {'--schema' if schema is None else '--out'}; --suggest-schema needs neither.")
    options = {"users": users, "items": items, "implicit": implicit or None, "request": request, "weight": weight}
    parts = {"by": split, "valid": _number(valid), "test": _number(test), "seed": seed}
    command.prepare(data, schema, _given(options), _given(parts), out, not as_json)


@app.command(
    epilog=example(
        "recstack train --print-config DIN > din.yaml", "recstack train din.yaml", "recstack train din.yaml --resume"
    )
)
def train(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="YAML or JSON.", show_default=False)] = None,
    print_config: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Only print a file to start from, with all defaults.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the bundle, in place of the file's out.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was interrupted.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train the model of a configuration file; save a bundle and metrics.json."""
    if print_config is not None:
        from recstack.cli.config import template

        print(template(print_config), end="")
        return
    if config is None:
        raise ConfigError("Missing the configuration file; `recstack train --print-config DIN` prints one.")
    from recstack.cli import train as command

    command.train(config, out, resume, not as_json)


@app.command(
    epilog=example(
        "recstack evaluate runs/demo/bundle --data test.parquet --past train.parquet",
        "recstack evaluate runs/din --data store/test --json",
        "recstack evaluate runs/din --config din.yaml --part test",
    )
)
def evaluate(
    bundle: BundlePath,
    data: Annotated[
        str | None, typer.Option(help="Held-out events: files, or a part of a store.", show_default=False)
    ] = None,
    past: Annotated[
        str | None, typer.Option(help="Files of earlier events, for histories.", show_default=False)
    ] = None,
    users: Users = None,
    items: Items = None,
    implicit: Implicit = False,
    config: Annotated[
        Path | None, typer.Option(help="Take the data of this training file.", show_default=False)
    ] = None,
    part: Annotated[str, typer.Option(help="Of --config: train, valid or test.")] = "test",
    k: Length = 10,
    max_requests: Annotated[int | None, typer.Option(help="Ask for a sample of the users.", show_default=False)] = None,
    figure: Annotated[Path | None, typer.Option(help="Also draw the funnel: .png or .svg.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a bundle: the funnel of a cascade or retriever, or a model's metrics."""
    from recstack.cli import evaluate as command

    if (data is None) == (config is None):
        raise ConfigError("Give either --data (files, or a part of a store) or --config.")
    rows = {"data": data, "past": past, "users": users, "items": items, "implicit": implicit}
    asked = None if config is None else (config, part)
    command.evaluate(bundle, rows, asked, {"k": k, "max_requests": max_requests}, figure, not as_json)


@app.command(
    epilog=example(
        "recstack recommend runs/demo/bundle --user 42 --k 5",
        "recstack recommend runs/demo/bundle --users users.csv --out pages.parquet",
    )
)
def recommend(
    bundle: BundlePath,
    user: Annotated[str | None, typer.Option(help="One user's id.", show_default=False)] = None,
    users: Annotated[
        str | None, typer.Option(help="Files with a column of user ids; prints JSON lines.", show_default=False)
    ] = None,
    k: Length = 10,
    out: Annotated[
        Path | None, typer.Option(help="With --users: a .parquet, .csv or .jsonl file.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The page of a user, or of all users of a file."""
    from recstack.cli import recommend as command

    if (user is None) == (users is None):
        raise ConfigError("Give either --user (one id) or --users (a file of them).")
    if user is not None:
        if out is not None:
            raise ConfigError("--out goes with --users; the page of one --user is printed.")
        command.one(bundle, user, k, not as_json)
    else:
        command.many(bundle, str(users), k, out)


@app.command(epilog=example("recstack serve runs/demo/bundle", "recstack serve page/ --port 9000 --api-key-env KEY"))
def serve(
    bundle: BundlePath,
    host: Annotated[
        str, typer.Option(help="Address; anything but this machine's own should have a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port.")] = 8000,
    api_key_env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Ask requests for the key in this environment variable.", show_default=False),
    ] = None,
    event_log: Annotated[
        Path | None, typer.Option(help="File that keeps new events over a restart.", show_default=False)
    ] = None,
    fusion: Annotated[
        str | None,
        typer.Option(help="Order by this instead of the saved: 'click * like ** 0.3'.", show_default=False),
    ] = None,
) -> None:
    """Serve a cascade over HTTP, with a page for people."""
    key = None
    if api_key_env is not None:
        key = os.environ.get(api_key_env)
        if not key:
            raise ConfigError(f"--api-key-env: the environment variable {api_key_env!r} is not set, or empty.")
    from recstack.serving import serve as run

    ready = lambda url: note(f"{bundle} is served at {url} (Ctrl-C ends it).")  # noqa: E731
    run(bundle, host=host, port=port, api_key=key, event_log=event_log, fusion=fusion, ready=ready)


@app.command(epilog=example("recstack models --stage ranking", "recstack models --json | jq '.[].name'"))
def models(
    stage: Annotated[str | None, typer.Option(help="Only these: retrieval, ranking, ...", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Every model, with its paper: read from the files, so it is complete."""
    from recstack import catalog

    found = catalog.models(stage)
    if as_json:
        emit_json([m.to_dict() for m in found])
        return
    emit_table(["model", "stage", "paper", "venue", "measured", "link"], [_row(m) for m in found])
    if sys.stdout.isatty():
        note("`--json` adds equation and options; `recstack train --print-config MODEL` prints a file to start from.")


def _row(entry: Any) -> list[str]:
    venue = " ".join(str(v) for v in (entry.venue, entry.year) if v)
    return [entry.name, entry.stage, entry.title, venue, "; ".join(entry.measured), entry.link or ""]


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in options.items() if v is not None}


def _number(value: float | None) -> float | int | None:
    """5 events per user are a whole number."""
    return int(value) if value is not None and value.is_integer() else value
