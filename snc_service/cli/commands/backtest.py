"""``snc backtest``: the events that other rules would raise in runs, and their score."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from snc_service.backtest.compare import EventChange, compare
from snc_service.backtest.files import read_run
from snc_service.backtest.labels import Label, read_labels
from snc_service.backtest.replay import Replay, replay
from snc_service.backtest.score import Score
from snc_service.cli.commands.alerts import read_document
from snc_service.cli.failure import Failure
from snc_service.cli.output import clean, print_json, print_table
from snc_service.cli.recorded_rows import recorded_runs
from snc_service.cli.service import ServiceClient
from snc_service.cli.stored_rows import stored_run
from snc_service.importing.sources import is_recorded
from snc_service.store.types import Event, RunRows
from snc_service.wire import RuleSettings, WireError

MOST_LABEL_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Judged:
    """One run judged by both settings; without other settings ``after`` is ``before``."""

    run: str
    before: Replay
    after: Replay

    @property
    def changes(self) -> list[EventChange]:
        """Return its events, paired."""
        return compare(self.before.events, self.after.events)


def backtest(arguments: Namespace) -> int:
    """Judge runs and files by the rules in force and by those of ``--rules``."""
    changed = _settings(arguments.rules)
    labels = _labels(arguments.labels)
    scores = (Score(), Score())
    shown: list[dict[str, Any]] = []
    with ExitStack() as stack:
        service: list[ServiceClient] = []

        def connected() -> ServiceClient:
            if not service:
                service.append(stack.enter_context(ServiceClient.of(arguments)))
            return service[0]

        for judged in _judgements(arguments, connected, changed):
            label = labels.get(judged.run)
            if label is not None:
                for score, found in zip(scores, (judged.before, judged.after), strict=True):
                    score.add(label, found.active, found.last_step)
            if arguments.json:
                shown.append(_as_json(judged, label))
            else:
                _print_run(judged, label, changed=changed is not None)
    if arguments.json:
        names = ("before", "after")
        both = {name: score.as_dict() for name, score in zip(names, scores, strict=True)}
        print_json({"items": shown, "score": both if labels else None})
    elif labels:
        _print_scores(*scores, changed=changed is not None)
    return 0


def _settings(path: str | None) -> RuleSettings | None:
    if path is None:
        return None
    try:
        return RuleSettings.parse(read_document(path))
    except WireError as error:
        raise Failure(f"{path}: {error}") from None


def _labels(path: str | None) -> Mapping[str, Label]:
    if path is None:
        return {}
    try:
        if Path(path).stat().st_size > MOST_LABEL_BYTES:
            raise Failure(f"{path} must be at most {MOST_LABEL_BYTES} bytes")
        with Path(path).open(encoding="utf-8", newline="") as lines:
            return read_labels(lines)
    except OSError as error:
        raise Failure(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise Failure(f"{path} must be CSV in UTF-8") from None
    except WireError as error:
        raise Failure(f"{path}: {error}") from None


def _judgements(
    arguments: Namespace, connected: Callable[[], ServiceClient], changed: RuleSettings | None
) -> Iterator[Judged]:
    """Yield every run judged: those of files and folders, else of the service."""
    settings = [None] if changed is None else [None, changed]
    for run, stream in _runs(arguments, connected):
        found = replay(stream, settings)
        yield Judged(run, found[0], found[-1])


def _runs(
    arguments: Namespace, connected: Callable[[], ServiceClient]
) -> Iterator[tuple[str, Iterator[RunRows]]]:
    for source in arguments.sources:
        path = Path(source)
        if path.suffix.lower() == ".npz":
            yield path.stem, _file(path)
        elif path.is_dir():
            arrays = sorted(path.glob("*.npz"))
            yield from ((each.stem, _file(each)) for each in arrays)
            if not arrays:
                yield from recorded_runs(path, arguments.map, arguments.step)
        elif is_recorded(path):
            yield from recorded_runs(path, arguments.map, arguments.step)
        else:
            yield source, stored_run(connected(), source)


def _file(path: Path) -> Iterator[RunRows]:
    try:
        yield from read_run(path)
    except OSError as error:
        raise Failure(f"cannot read {path}: {error.strerror or error}") from None
    except WireError as error:
        raise Failure(str(error)) from None


def lead(event: Event | None, label: Label | None) -> int | None:
    """Return how many steps before the symptom an event came, None if that is undefined."""
    if event is None or label is None or label.symptom is None or event.step - 1 < label.cause:
        return None
    return label.symptom + 1 - event.step


def _print_run(judged: Judged, label: Label | None, *, changed: bool) -> None:
    changes = judged.changes
    count = {kind: sum(c.kind == kind for c in changes) for kind in ("added", "gone", "moved")}
    number = len(judged.before.events)
    title = f"{judged.run}: {number} event{'' if number == 1 else 's'} by the rules in force"
    if changed:
        title += f", {len(judged.after.events)} by the others ({_counts(count)})"
    if not changes:
        print(clean(title))
        return
    columns = ["step", "rule", "severity", "layer", "message"]
    rows = [[c.event.step, c.event.rule, c.event.severity, c.event.layer, c.event.message]
            for c in changes]  # fmt: skip
    if label is not None:
        columns.insert(1, "lead")
        for row, change in zip(rows, changes, strict=True):
            row.insert(1, lead(change.event, label))
    if changed:
        columns.insert(0, "change")
        for row, change in zip(rows, changes, strict=True):
            row.insert(0, _change(change))
    print_table(title, columns, rows)


def _counts(count: dict[str, int]) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in count.items())


def _change(change: EventChange) -> str:
    if change.kind != "moved":
        return "" if change.kind == "same" else change.kind
    assert change.moved is not None
    return f"{abs(change.moved)} {'later' if change.moved > 0 else 'earlier'}"


def _as_json(judged: Judged, label: Label | None) -> dict[str, Any]:
    return {
        "run": judged.run,
        "last_step": judged.after.last_step,
        "events": [
            {
                "change": change.kind,
                "moved_steps": change.moved,
                "before": _event(change.before, label),
                "after": _event(change.after, label),
            }
            for change in judged.changes
        ],
    }


def _event(event: Event | None, label: Label | None) -> dict[str, Any] | None:
    return None if event is None else {**asdict(event), "lead": lead(event, label)}


def _print_scores(before: Score, after: Score, *, changed: bool) -> None:
    columns = ("", "rules in force", *(("others",) if changed else ()))
    lines = (
        ("false alarms per 10k healthy rows", _rate, "false_rate", "<= 1"),
        ("  from row 150 on", _rate, "late_false_rate", "<= 0.3"),
        ("recall by symptom + 5 rows", _share, "recall", ">= 0.90"),
        ("gradual faults: recall", _share, "gradual_recall", ""),
        ("gradual faults: lead >= 5 rows", _share, "lead_5", ">= 0.85"),
        ("gradual faults: median lead", _rate, "median_lead", ">= 50"),
    )
    scores = (before, after) if changed else (before,)
    rows = [
        (text, *(form(_figure(score, name)) for score in scores)) for text, form, name, _ in lines
    ]
    print_table(f"Score over {before.symptoms} runs with a symptom, {before.gradual} gradual, "
                f"{before.healthy_rows} healthy rows", columns, rows)  # fmt: skip
    print(clean(f"Missed: {', '.join(after.missed) or 'none'}"))
    print(clean(f"False alarms in: {', '.join(sorted(after.noisy)) or 'none'}"))
    if after.excluded:
        print(clean(f"Excluded: {', '.join(sorted(after.excluded))}"))


def _figure(score: Score, name: str) -> float:
    return score.lead_share(5) if name == "lead_5" else float(getattr(score, name))


def _rate(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
