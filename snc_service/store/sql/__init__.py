"""The statements, written once for both engines, a file per noun."""

from snc_service.store.sql.store import SqlStore

__all__ = ["SqlStore"]
