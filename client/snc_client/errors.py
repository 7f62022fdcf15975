"""SNCError: the base class of the exceptions that this package raises.

::

    RuntimeError
    └── SNCError
        ├── ThresholdBreached   a layer with the action ``stop`` exceeded its threshold
        ├── GuardStopped        the guard rolled back repeatedly and the fault stayed
        └── ApiError            `Api`: the service is unreachable or refuses the request

Only the first two leave a training loop.

Arguments that are not allowed raise `ValueError`, when the object is built or the function called.
Any other failure inside `SNCallback.step` is logged and counted in ``SNCallback.errors``.
"""


class SNCError(RuntimeError):
    """Base class of the exceptions of this package. A `RuntimeError`, as they have been."""


class ApiError(SNCError):
    """The service cannot be read: one sentence, and ``status``, None if there was no answer."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
