"""The command line: arguments -> one command -> exit status 0, or 1 with one line on stderr."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points

from snc_service import __version__
from snc_service.cli import rule_arguments, run_verbs
from snc_service.cli.arguments import (
    USES,
    count,
    later,
    naming,
    of_run_or_project,
    port,
    reader,
    step,
    steps,
)
from snc_service.cli.failure import Failure
from snc_service.cli.guides import guide

GROUP = "snc.commands"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status (2: wrong usage, from argparse)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        outside = _outside(arguments[0]) if arguments else None
        if outside is not None:
            return _start(outside, arguments[1:])
        _suggest(arguments)
        parsed = _parser().parse_args(arguments)
        status: int = parsed.command(parsed)
        return status
    except Failure as failure:
        print(f"snc: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader closed the pipe (`snc runs | head`): this is no error, and the interpreter must
        # not fail on the same pipe when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _outside(name: str) -> EntryPoint | None:
    """Return the command ``name`` of another package, None if there is none."""
    if name.startswith("-") or name in BUILT_IN:
        return None
    return next(iter(entry_points(group=GROUP, name=name)), None)


def _suggest(arguments: Sequence[str]) -> None:
    """Print which commands a mistyped one resembles; argparse says the rest and ends."""
    names = [*BUILT_IN, *(command.name for command in entry_points(group=GROUP))]
    if arguments and not arguments[0].startswith("-") and arguments[0] not in BUILT_IN:
        close = difflib.get_close_matches(arguments[0], names, n=3)
        if close:
            print(f"snc: did you mean {' or '.join(close)}?", file=sys.stderr)


def complete_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands, those of other packages by name, for a shell's completion.

    ``snc`` itself starts commands of other packages before it parses.
    """
    parser = _parser()
    (commands,) = (each for each in parser._actions if isinstance(each.choices, dict))
    for command in entry_points(group=GROUP):
        commands.add_parser(command.name, help=command.value)  # type: ignore[attr-defined]
    return parser


def _start(command: EntryPoint, arguments: Sequence[str]) -> int:
    try:
        run: Callable[[Sequence[str]], int | None] = command.load()
    except ModuleNotFoundError as error:
        extra = "demo" if error.name == "torch" else "service"
        raise Failure(
            f"{command.name} needs {error.name}, which is not installed: "
            f"pip install 'spectral-norm-constraint[{extra}]'"
        ) from None
    return run(list(arguments)) or 0


def _parser() -> argparse.ArgumentParser:
    others = ", ".join(sorted({command.name for command in entry_points(group=GROUP)}))
    parser = argparse.ArgumentParser(
        prog="snc",
        description="Measure, hold, store and show the spectral norm of every layer.",
        epilog=(f"More commands, each with its own --help: {others}. " if others else "")
        + "Guides: README.md and docs/ of the project; the REST interface: /docs of a service.",
    )
    parser.add_argument("--version", action="version", version=f"snc {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, add in BUILT_IN.items():
        add(commands, name)
        commands.choices[name].epilog = guide(name)
    return parser


def _serve(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> None:
    text = "start the service: store, REST, Prometheus and the page"
    serve = commands.add_parser(name, help=text, description=text)
    serve.add_argument("--host", help="address to listen on (default: SNC_HOST or 127.0.0.1)")
    serve.add_argument(
        "--port", type=port, help="port to listen on, 0: any (default: SNC_PORT or 8470)"
    )
    serve.add_argument("--store", metavar="URL", help="store, such as sqlite:///snc.db (SNC_STORE)")
    serve.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that share the port, on PostgreSQL (default: SNC_WORKERS or 1)",
    )
    serve.add_argument(
        "--insecure",
        action="store_true",
        help="listen on other addresses than loopback although there is no token",
    )
    serve.add_argument(
        "--check",
        action="store_true",
        help="say whether settings, store and port are fit for it, and end",
    )
    serve.set_defaults(command=later("serve", "serve"))


def _runs(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> None:
    runs = reader(commands, name, "list runs, newest first; or change one")
    runs.add_argument("--project", help="only runs of this project")
    runs.add_argument("--state", choices=("active", "silent", "finished", "failed"))
    runs.add_argument(
        "-q",
        "--query",
        help='what must hold, such as "tag:base* config.lr=0.01 layer:*qkv* -name:*debug*"',
    )
    runs.add_argument("--sort", help="attention, loss, config.lr ...; -loss is descending")
    runs.add_argument("--limit", type=count, default=50, help="at most so many (default: 50)")
    runs.set_defaults(command=later("runs", "list_runs"))
    run_verbs.add(runs)


def _layers(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> None:
    layers = reader(commands, name, "list a run's layers, worst ratio first")
    layers.add_argument("run", metavar="RUN")
    layers.add_argument("--sort", default="-ratio", help="column, - for descending (-ratio)")
    layers.add_argument("--limit", type=count, default=50, help="at most so many (default: 50)")
    layers.set_defaults(command=later("history", "layers"))


def _history(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> None:
    history = reader(commands, name, "show one layer's history")
    history.add_argument("run", metavar="RUN")
    history.add_argument("layer", metavar="LAYER")
    history.add_argument("--metric", default="sigma", help="what to show (default: sigma)")
    steps(history)
    history.add_argument("--points", type=count, default=30, help="at most so many (default: 30)")
    history.set_defaults(command=later("history", "history"))


def _worst(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> None:
    worst = reader(commands, name, "list the layers with the largest single values in a run")
    worst.add_argument("run", metavar="RUN")
    worst.add_argument("--metric", default="ratio", help="of what (default: ratio)")
    steps(worst)
    worst.add_argument("--limit", type=count, default=10, help="at most so many (default: 10)")
    worst.set_defaults(command=later("history", "worst"))


def _compare(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> None:
    compare = reader(commands, name, "show one layer in several runs")
    compare.add_argument("runs", metavar="RUN", nargs="+")
    compare.add_argument("--layer", required=True, help="found in each run by its name")
    compare.add_argument("--metric", default="sigma", help="what to show (default: sigma)")
    steps(compare)
    compare.add_argument("--points", type=count, default=60, help="at most so many (default: 60)")
    compare.set_defaults(command=later("history", "compare"))


def _top(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> None:
    top = reader(commands, name, "watch a run, or all active ones: worst layers, loss, incidents")
    top.add_argument("run", metavar="RUN", nargs="?", help="default: all active runs")
    top.add_argument(
        "--every", type=count, default=2, metavar="SECONDS", help="between looks (default: 2)"
    )
    top.add_argument("--once", action="store_true", help="print one look and end")
    top.set_defaults(command=later("top", "top"))


def _completion(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> None:
    text = 'print a script for a shell\'s completion, such as: eval "$(snc completion bash)"'
    completion = commands.add_parser(name, help=text, description=text)
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    completion.set_defaults(command=later("completion", "completion"))


def _import(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> None:
    what = "W&B, TensorBoard, MLflow, CSV or Parquet"
    imported = reader(commands, name, f"make runs of what other tools recorded: {what}")
    imported.add_argument("paths", metavar="PATH", nargs="+", help="a file, or a folder of them")
    imported.add_argument(
        "--dry-run", action="store_true", help="send nothing: say what would be, by which names"
    )
    imported.add_argument("--name", help="of the run, if it is one (default: that of the source)")
    imported.add_argument("--project", help="of all runs (default: that of the source)")
    imported.add_argument(
        "--tag", action="append", default=[], metavar="TAG", help="of all runs; may be repeated"
    )
    naming(imported)
    imported.set_defaults(command=later("imports.command", "import_runs"))


def _export(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> None:
    export = reader(commands, name, "write all values of a run to a file")
    export.add_argument("run", metavar="RUN")
    export.add_argument("--format", choices=("csv", "parquet"), help="default: the file's, or csv")
    export.add_argument("-o", "--output", metavar="FILE", help="- is stdout (default: RUN.FORMAT)")
    export.add_argument("--metric", action="append", help="only this one; may be repeated")
    export.add_argument("--layer", action="append", help="only this one; may be repeated")
    steps(export)
    export.add_argument("--attempt", type=step, help="only this one (default: all)")
    export.set_defaults(command=later("export", "export"))


def _events(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> None:
    events = reader(commands, name, "list a run's events, oldest first")
    events.add_argument("run", metavar="RUN")
    events.add_argument("--rule", help="only events of this rule")
    events.add_argument("--severity", choices=("info", "warning", "critical"))
    events.add_argument("--limit", type=count, default=50, help="the newest so many (default: 50)")
    events.add_argument("--follow", action="store_true", help="wait for more until the run closes")
    events.set_defaults(command=later("history", "events"))


def _policy(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> None:
    text = "show or change the policy in force, or print one to begin with"
    policy = commands.add_parser(name, help=text, description=text)
    verbs = policy.add_subparsers(title="commands", metavar="get|set|recipe", required=True)
    get = reader(verbs, "get", "show the policy in force")
    of_run_or_project(get)
    get.set_defaults(command=later("policy", "get"))
    put = reader(verbs, "set", "set the policy: a running job obeys within a few steps")
    of_run_or_project(put)
    put.add_argument(
        "--entry",
        action="append",
        dest="entries",
        metavar="PATTERN=THRESHOLD[:ACTION]",
        help='such as "*.weight=3x init:rescale"; may be repeated, the first match wins',
    )
    put.add_argument(
        "--file", metavar="PATH", help='{"entries": [...]}, .toml or JSON; - reads stdin'
    )
    put.add_argument("--if-version", type=step, help="change nothing unless this is in force")
    put.set_defaults(command=later("policy", "put"))
    recipe = verbs.add_parser("recipe", help="print a policy file to begin with, with comments")
    recipe.add_argument("use", choices=USES, help="what the network is for: docs/uses.md")
    recipe.set_defaults(command=later("policy", "recipe"))


def _token(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> None:
    text = "make, list or revoke the tokens that the service asks for"
    token = commands.add_parser(name, help=text, description=text)
    verbs = token.add_subparsers(title="commands", metavar="create|list|revoke", required=True)
    create = reader(verbs, "create", "make a token; its secret is printed, once")
    create.add_argument("name", metavar="NAME", help="who it is for: the author in the audit log")
    create.add_argument(
        "--scope",
        action="append",
        dest="scopes",
        required=True,
        choices=("ingest", "read", "admin"),
        help="what it allows; may be repeated, admin includes the others",
    )
    create.add_argument("--project", help="only for this project")
    create.add_argument("--expires", metavar="TIME", help="after 12h, 90d or 4w (default: never)")
    create.set_defaults(command=later("token", "create"))
    listed = reader(verbs, "list", "list all tokens, never their secrets")
    listed.set_defaults(command=later("token", "list_tokens"))
    revoke = reader(verbs, "revoke", "revoke a token: at once here, elsewhere within a second")
    revoke.add_argument("name", metavar="NAME")
    revoke.set_defaults(command=later("token", "revoke"))
    for verb in (create, listed, revoke):
        verb.add_argument(
            "--store",
            metavar="URL",
            help="do it in this store, such as sqlite:///snc.db, instead of asking a service",
        )


def _alerts(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> None:
    text = "who is told of what goes wrong, what does, and what is done about it"
    alerts = commands.add_parser(name, help=text, description=text)
    verbs = alerts.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(verb: str, text: str, function: str) -> argparse.ArgumentParser:
        parser = reader(verbs, verb, text)
        parser.set_defaults(command=later("alerts", function))
        return parser

    add("get", "show the routing in force; --json can be given to set", "get")
    put = add("set", "set the routing: receivers, and routes that lead to them", "put")
    put.add_argument("--file", required=True, metavar="PATH", help=".toml, or JSON; - reads stdin")
    put.add_argument("--if-version", type=step, help="change nothing unless this is in force")
    test = add("test", "send receivers a message that says it is a test", "test")
    test.add_argument("receivers", nargs="*", metavar="RECEIVER", help="default: all of them")
    listed = add("list", "list incidents, newest or most severe first", "incidents")
    listed.add_argument("--run")
    listed.add_argument("--project")
    listed.add_argument("--state", choices=("open", "resolved", "notice"))
    listed.add_argument("--severity", choices=("info", "warning", "critical"))
    listed.add_argument("--sort", choices=("newest", "severity"), help="what comes first")
    listed.add_argument("--limit", type=count, default=50, help="at most so many (default: 50)")
    ack = add("ack", "look after an incident: nobody is told again unless it gets worse",
              "acknowledge")  # fmt: skip
    ack.add_argument("incident", type=count, metavar="INCIDENT")
    ack.add_argument("--comment", default="", help="for the audit log")
    silence = add("silence", "keep what matches from telling anybody for a while", "silence")
    silence.add_argument("--for", dest="duration", required=True, help="such as 90m, 2h or 1d")
    for glob in ("project", "run", "rule", "layer"):
        silence.add_argument(f"--{glob}", metavar="GLOB", help="default: any")
    silence.add_argument("--comment", default="")
    add("silences", "list the silences in force", "silences")
    unsilence = add("unsilence", "end a silence", "unsilence")
    unsilence.add_argument("silence", type=count, metavar="SILENCE")


def _db(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> None:
    text = "upgrade, back up, verify, repair or distribute a store"
    db = commands.add_parser(name, help=text, description=text)
    verbs = db.add_subparsers(
        title="commands", metavar="upgrade|backup|verify|repair|citus", required=True
    )
    upgrade = verbs.add_parser("upgrade", help="lead a store of an earlier release to this one's")
    upgrade.set_defaults(command=later("db", "upgrade"))
    backup = verbs.add_parser("backup", help="copy an embedded store to a file while it is used")
    backup.add_argument("file", metavar="FILE", help="a new file")
    backup.set_defaults(command=later("db", "backup"))
    verify = verbs.add_parser("verify", help="compare all that is stored with its checksums")
    verify.set_defaults(command=later("db", "verify"))
    repair = verbs.add_parser("repair", help="drop what verify finds damaged, and say what")
    repair.set_defaults(command=later("db", "repair"))
    spread = verbs.add_parser(
        "citus", help="print what shards a store by run, or do what is missing"
    )
    spread.add_argument("--store", metavar="URL", help="store (default: SNC_STORE)")
    spread.add_argument("--apply", action="store_true", help="run what is missing")
    spread.set_defaults(command=later("db", "citus"))
    for verb in (upgrade, backup, verify, repair):
        verb.add_argument("--store", metavar="URL", help="store (default: SNC_STORE)")
        verb.add_argument("--json", action="store_true", help="print JSON instead of a sentence")


BUILT_IN = {
    "serve": _serve,
    "runs": _runs,
    "top": _top,
    "layers": _layers,
    "history": _history,
    "worst": _worst,
    "compare": _compare,
    "export": _export,
    "import": _import,
    "events": _events,
    "onset": rule_arguments.onset,
    "annotate": rule_arguments.annotate,
    "rules": rule_arguments.rules,
    "backtest": rule_arguments.backtest,
    "suggest": rule_arguments.suggest,
    "policy": _policy,
    "alerts": _alerts,
    "token": _token,
    "db": _db,
    "completion": _completion,
}
