"""The instance: what a host creates, and what it is created of."""
