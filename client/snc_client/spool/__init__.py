"""The spool: an append-only log on local disk, for one process at a time."""

from snc_client.spool.claim import SpoolBusy
from snc_client.spool.log import Spool

__all__ = ["Spool", "SpoolBusy"]
