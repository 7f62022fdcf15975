"""The arguments of ``snc runs VERB``: rename, tag, note, archive, delete and finish runs."""

from __future__ import annotations

import argparse

from snc_service.cli.arguments import later, reader


def add(runs: argparse.ArgumentParser) -> None:
    """Add the verbs below ``snc runs``; without one it lists runs."""
    metavar = "rename|tag|note|archive|delete|finish"
    verbs = runs.add_subparsers(title="commands that change runs", metavar=metavar)
    rename = _verb(verbs, "rename", "give a run another name; its id stays", many=False)
    rename.add_argument("name", metavar="NAME")
    tag = _verb(verbs, "tag", "add tags to runs, or take them off")
    tag.add_argument("--add", action="append", default=[], metavar="TAG", help="may be repeated")
    tag.add_argument("--remove", action="append", default=[], metavar="TAG", help="may be repeated")
    note = _verb(verbs, "note", "set the note of a run", many=False)
    note.add_argument("text", metavar="TEXT", help="- reads stdin; empty removes it")
    archive = _verb(verbs, "archive", "leave runs out of lists; nothing of them is lost")
    archive.add_argument("--undo", action="store_true", help="bring them back")
    delete = _verb(verbs, "delete", "delete everything of runs; this cannot be undone")
    delete.add_argument("--yes", action="store_true", help="do not ask")
    finish = _verb(verbs, "finish", "close runs whose jobs have ended without a word")
    finish.add_argument("--failed", action="store_true", help="as failed")


def _verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    text: str,
    *,
    many: bool = True,
) -> argparse.ArgumentParser:
    verb = reader(verbs, name, text)
    if many:
        verb.add_argument("runs", metavar="RUN", nargs="+")
    else:
        verb.add_argument("run", metavar="RUN")
    verb.set_defaults(command=later("runs", name))
    return verb
