"""Arguments of the commands about rules: settings, onset, planned changes, backtest."""

from __future__ import annotations

import argparse

from snc_service.cli.arguments import USES, count, later, naming, of_run_or_project, reader, step


def rules(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> None:
    """Add ``snc rules``."""
    text = "show, change or check what the rules are set to"
    parser = commands.add_parser(name, help=text, description=text)
    verbs = parser.add_subparsers(title="commands", metavar="get|set|check", required=True)
    get = reader(verbs, "get", "show every rule as it is in force")
    of_run_or_project(get, "rules")
    get.set_defaults(command=later("rule_settings", "get"))
    put = reader(verbs, "set", "set the rules: the next batch obeys")
    of_run_or_project(put, "rules")
    put.add_argument("--if-version", type=step, help="change nothing unless this is in force")
    put.set_defaults(command=later("rule_settings", "put"))
    check = verbs.add_parser("check", help="say what is wrong with a file, asking no service")
    check.set_defaults(command=later("rule_settings", "check"))
    for verb in (put, check):
        verb.add_argument(
            "--file", required=True, metavar="PATH", help=".toml, or JSON; - is stdin"
        )
    check.add_argument("--json", action="store_true", help="print JSON instead of a table")


def onset(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> None:
    """Add ``snc onset``."""
    parser = reader(commands, name, "list the layers that left their healthy band, first one first")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--limit", type=count, default=20, help="at most so many (default: 20)")
    parser.set_defaults(command=later("rule_settings", "onset"))


def annotate(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> None:
    """Add ``snc annotate``."""
    parser = reader(commands, name, "mark a planned change, for which rules make room")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("step", metavar="STEP", type=step)
    parser.add_argument("text", metavar="TEXT")
    parser.add_argument(
        "--quiet-steps",
        type=step,
        default=50,
        help="for so long, rules that compare with the past say nothing (default: 50)",
    )
    parser.set_defaults(command=later("rule_settings", "annotate"))


def backtest(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> None:
    """Add ``snc backtest``."""
    backtest = reader(commands, name, "show what other rules would have said of runs")
    backtest.add_argument(
        "sources",
        metavar="RUN|PATH",
        nargs="+",
        help="a run's id; an .npz file; what snc import reads; a folder of these",
    )
    naming(backtest)
    backtest.add_argument("--rules", metavar="PATH", help="the other rules, .toml or JSON")
    backtest.add_argument(
        "--labels", metavar="PATH", help="CSV of id, healthy, cause, symptom: leads and a score"
    )
    backtest.set_defaults(command=later("backtest", "backtest"))


def suggest(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> None:
    """Add ``snc suggest``."""
    suggest = reader(commands, name, "derive thresholds and rule limits from healthy runs")
    suggest.add_argument("runs", metavar="RUN", nargs="+", help="a run that went well")
    suggest.add_argument("-o", "--output", metavar="PATH", help="policy, for snc policy set --file")
    suggest.add_argument("--rules-output", metavar="PATH", help="rule limits, for snc backtest")
    suggest.add_argument(
        "--margin",
        type=float,
        default=1.5,
        help="threshold: so many times the largest sigma (default: 1.5)",
    )
    suggest.add_argument(
        "--action",
        choices=("observe", "rescale", "cap", "normalize", "stop"),
        default="observe",
        help="of every entry (default: observe)",
    )
    suggest.add_argument(
        "--recipe",
        metavar=f"{'|'.join(USES)}|PATH",
        help="a recipe or a policy file: its entries come first, as they are",
    )
    suggest.set_defaults(command=later("suggest", "suggest"))
