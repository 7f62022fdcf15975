"""Routes about the service itself: health, Prometheus, the API reference."""
