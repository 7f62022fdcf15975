"""The store as Prometheus text: a view whose only state is caches.

`Exposition` renders; `families` is the table of all names; `text` implements the format; `layers`
selects the layers under the cap. Only this package imports prometheus_client.
"""

from snc_service.exposition.exposition import Exposition
from snc_service.exposition.families import FAMILIES, Family
from snc_service.exposition.text import CONTENT_TYPE, OPENMETRICS_TYPE

__all__ = ["CONTENT_TYPE", "FAMILIES", "OPENMETRICS_TYPE", "Exposition", "Family"]
