"""The one error of this package."""

__all__ = ["ProxyError"]


class ProxyError(ValueError):
    """A proxy that does not exist, or that cannot be computed for this model and batch.

    The text is one line: what was wrong, where, what is allowed, what was got.
    """
