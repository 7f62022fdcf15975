"""Alerts: events become incidents, and incidents are told to the receivers they are routed to."""

from snc_service.alerts.document import Alerting
from snc_service.alerts.post import NotDelivered
from snc_service.alerts.worker import Alerts

__all__ = ["Alerting", "Alerts", "NotDelivered"]
