"""The two failures of registries that say more than their category."""

from __future__ import annotations

from snapshotter.errors import InvalidError, UnavailableError


class RegistryUnavailableError(UnavailableError):
    """The registry cannot be asked now, or gave up half-way.

    `retryable`: the same request is expected to work soon (a timeout, 429, 5xx, a cut connection), as opposed to what a person
    has to mend first (a certificate, a host name). `retry_after`: the seconds that the registry asked for, if it did.
    Retrying is the caller's decision; nothing in this package sleeps.
    """

    def __init__(self, message: str, *, retryable: bool = True, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.retry_after = retry_after


class DeniedError(InvalidError):
    """The registry refuses this user (401 or 403), credentials having been asked for again."""
