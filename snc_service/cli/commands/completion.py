"""``snc completion``: the script that makes a shell complete commands and options."""

from __future__ import annotations

from argparse import Namespace

from snc_service.cli.failure import Failure


def completion(arguments: Namespace) -> int:
    """Print the completion script of a shell."""
    from snc_service.cli.main import complete_parser

    try:
        import shtab
    except ModuleNotFoundError:
        raise Failure(
            "completion needs shtab: pip install 'spectral-norm-constraint[service]'"
        ) from None
    print(shtab.complete(complete_parser(), shell=arguments.shell))
    return 0
