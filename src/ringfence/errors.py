"""RingfenceError, the root of every error this package raises."""

__all__ = ["RingfenceError"]


class RingfenceError(Exception):
    """The root of every error that ringfence raises on purpose."""
