"""``snc suggest``: thresholds and rule limits from healthy runs, with a margin."""

from __future__ import annotations

import json
import math
import sys
from argparse import Namespace
from pathlib import Path

from snc_service.backtest.margins import (
    Observed,
    as_toml,
    policy_from,
    rules_from,
    starting_with,
)
from snc_service.cli.arguments import USES
from snc_service.cli.commands.policy import RECIPES, policy_in
from snc_service.cli.failure import Failure
from snc_service.cli.output import clean, print_json, print_table
from snc_service.cli.service import ServiceClient
from snc_service.cli.stored_rows import stored_run
from snc_service.wire import Policy, RuleSettings, WireError


def suggest(arguments: Namespace) -> int:
    """Print the suggested policy and rules, or write them to files."""
    margin = arguments.margin
    if not (math.isfinite(margin) and 1 <= margin <= 1_000):
        raise Failure(f"--margin must be a number from 1 to 1000, got {margin:g}")
    start = Policy() if arguments.recipe is None else _recipe(arguments.recipe)
    observed = Observed()
    with ServiceClient.of(arguments) as service:
        for run in arguments.runs:
            observed.add(stored_run(service, run))
    for run, what in observed.critical.items():
        print(clean(f"snc: {run} had {what}: is it a run that went well?"), file=sys.stderr)
    try:
        policy = starting_with(start, observed, policy_from(observed, margin, arguments.action))
    except WireError as error:
        raise Failure(f"the runs give no policy: {error}") from None
    if not policy.entries:
        raise Failure(f"{', '.join(arguments.runs)} must have reported sigma, got none")
    for entry in start.entries:
        if entry not in policy.entries:
            print(clean(f"snc: {entry.pattern} of {arguments.recipe} matches no layer of the runs: "
                        "left out"), file=sys.stderr)  # fmt: skip
    rules = rules_from(observed, margin)
    basis = (f"{margin:g} times the largest value in {', '.join(arguments.runs)} "
             f"({observed.num_rows} rows), rounded up to two digits")  # fmt: skip
    if start.entries:
        basis += f", after the entries of {arguments.recipe}"
    if arguments.output:
        _write(arguments.output, json.dumps(policy.as_dict(), indent=2) + "\n")
    if arguments.rules_output:
        _write(arguments.rules_output, as_toml(rules, [basis]))
    if arguments.json:
        print_json({**policy.as_dict(), **rules.changes(), "margin": margin,
                    "runs": arguments.runs, "rows": observed.num_rows})  # fmt: skip
    else:
        _print(policy, rules, observed, basis)
    return 0


def _recipe(named: str) -> Policy:
    return policy_in(str(RECIPES / f"{named}.toml") if named in USES else named)


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise Failure(f"cannot write {path}: {error.strerror or error}") from None


def _print(policy: Policy, rules: RuleSettings, observed: Observed, basis: str) -> None:
    rows = []
    for entry in policy.entries:
        mine = [layer for layer in observed.sigma if policy.entry(layer) is entry]
        largest = max(observed.sigma[layer] for layer in mine)
        rows.append((entry.pattern, len(mine), largest, entry.threshold, entry.action))
    print_table(
        clean(f"Thresholds: {basis}"),
        ("pattern", "layers", "largest sigma", "threshold", "action"),
        rows,
    )
    shipped = RuleSettings()
    limits = [
        (name, value, shipped[name].limit, rules[name].limit)
        for name, value in sorted(observed.values.items())
        if name in rules.changes()["rules"]
    ]
    if limits:
        print_table(
            "Rule limits, where the shipped ones would be too near:",
            ("rule", "largest value", "shipped limit", "suggested limit"),
            limits,
        )
    else:
        print("The shipped rule limits leave that margin: none needs to be raised.")
