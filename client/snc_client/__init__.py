"""The client: measures sigma of every layer in a training job, holds it under a threshold."""

from snc_client.callback import SNCallback, ThresholdBreached
from snc_client.certificate import certify
from snc_client.measure import measure

__all__ = ["SNCallback", "ThresholdBreached", "certify", "measure"]
