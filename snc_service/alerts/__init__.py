"""Alerts: group events into incidents and send incidents to the receivers they are routed to."""

from snc_service.alerts.document import Alerting
from snc_service.alerts.post import NotDelivered
from snc_service.alerts.worker import Alerts

__all__ = ["Alerting", "Alerts", "NotDelivered"]
