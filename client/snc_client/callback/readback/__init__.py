"""Bring measurements from the device to the host without waiting for the device."""
