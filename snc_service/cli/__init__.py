"""The command line: ``snc serve``, ``runs``, ``layers``, ``history``, ``events``, ``policy``.

Commands that need torch (``demo``) are entry points of the group ``snc.commands``: started by name,
never imported from here. Whatever is heavy is imported by the command that needs it.
"""

from snc_service.cli.main import main

__all__ = ["main"]
