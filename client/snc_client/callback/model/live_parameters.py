"""Every parameter of a model, looked up where it is now."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.parameter import is_lazy


class Slots:
    """The places that hold a model's parameters, tied ones once.

    It keeps no tensor, so it follows ``load_state_dict(assign=True)`` and ``.to()``; a module that
    is put in another's place later is not seen.
    """

    def __init__(self, model: nn.Module) -> None:
        seen: set[int] = set()
        self._parameters: list[tuple[dict[str, nn.Parameter | None], str]] = []
        self._buffers: list[tuple[dict[str, Tensor | None], str]] = []
        for module in model.modules():
            for key, parameter in module._parameters.items():
                if parameter is not None and id(parameter) not in seen:
                    seen.add(id(parameter))
                    self._parameters.append((module._parameters, key))
            for key, buffer in module._buffers.items():
                kept = key not in module._non_persistent_buffers_set
                if buffer is not None and kept and id(buffer) not in seen:
                    seen.add(id(buffer))
                    self._buffers.append((module._buffers, key))

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters that have values."""
        found = [here.get(key) for here, key in self._parameters]
        return [p for p in found if p is not None and not is_lazy(p)]

    def buffers(self) -> list[Tensor]:
        """Return the floating-point buffers that the state dict holds, such as running means."""
        found = (here.get(key) for here, key in self._buffers)
        return [buffer for buffer in found if buffer is not None and buffer.is_floating_point()]
