"""The store as Prometheus text: a view without a state of its own but caches.

`Exposition` renders; `families` is the table of all names; `text` knows the format; `layers`
chooses what the cap lets through. Nobody else imports prometheus_client.
"""

from snc_service.exposition.exposition import Exposition
from snc_service.exposition.families import FAMILIES, Family
from snc_service.exposition.text import CONTENT_TYPE, OPENMETRICS_TYPE

__all__ = ["CONTENT_TYPE", "FAMILIES", "OPENMETRICS_TYPE", "Exposition", "Family"]
