"""The command line: ``snc serve``, ``runs``, ``layers``, ``history``, ``events``, ``policy``.

Commands that need torch (``demo``) are entry points of the group ``snc.commands``: started by name,
never imported here. Expensive modules are imported only by the commands that need them.
"""

from snc_service.cli.main import main

__all__ = ["main"]
