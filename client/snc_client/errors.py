"""SNCError: the base class of the exceptions that this package raises into a training loop.

::

    RuntimeError
    └── SNCError
        ├── ThresholdBreached   a layer with the action ``stop`` exceeded its threshold
        └── GuardStopped        the guard rolled back repeatedly and the fault stayed

Arguments that are not allowed raise `ValueError`, when the object is built or the function called.
Any other failure inside `SNCallback.step` is logged and counted in ``SNCallback.errors``.
"""


class SNCError(RuntimeError):
    """Base class of `ThresholdBreached` and `GuardStopped`. A `RuntimeError`, as they have been."""
