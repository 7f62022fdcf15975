"""Full-precision masters: an optimizer that keeps them undoes whatever is done to their copies."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from snc_client.layers import Layer
from snc_client.operators.sharded import is_dtensor, is_whole

log = logging.getLogger("snc")

KEYS = ("master_param", "master", "fp32_param")
LOW = (torch.bfloat16, torch.float16)
Find: TypeAlias = Callable[[str, Tensor], Tensor | None]


class Masters:
    """The master of a weight, where there is one: given by name, else found in the optimizer.

    Found are, for parameters in bfloat16 or float16 and nothing else: the entries ``master_param``
    (Transformer Engine), ``master`` and ``fp32_param`` of ``optimizer.state[parameter]``, the pairs
    of apex's amp (``optimizer._amp_stash``), and what Megatron (``main_param``) and DeepSpeed
    (``_hp_mapping``) attach to the parameter itself. They must be wider than the parameter and laid
    out like it. Two tensors are never matched by their shape.

    Raises ValueError for a given master that belongs to no parameter or does not fit it.
    """

    def __init__(
        self,
        model: nn.Module,
        given: Mapping[str | Tensor, Tensor] | None = None,
        optimizers: Sequence[torch.optim.Optimizer] = (),
    ) -> None:
        self._model = model
        self._optimizers = tuple(optimizers)
        self._given = dict(_named(model, given or {}))
        self._attached = any(next(_attached(p), None) is not None for p in model.parameters())
        self._said: set[str] = set()
        self.distributed = any(map(_is_distributed, model.parameters()))
        """Whether masters may be distributed over processes, see `follow`."""

    @torch.no_grad()
    def refresh(self, layers: Iterable[Layer]) -> None:
        """Cast masters to these layers where whoever steps them may do that only later.

        So it is with those that were given, those of amp, and those attached to parameters: they
        are cast after the hooks of the optimizer.
        """
        stashed = any(hasattr(each, "_amp_stash") for each in self._optimizers)
        if not (self._given or self._attached or stashed):
            return
        for layer in layers:
            for weight in layer.factors():
                master = self._of(layer, weight, self._cast_later)
                if master is not None:
                    weight.copy_(master)

    def of(self, layer: Layer, weight: Tensor | None = None) -> Tensor | None:
        """Return the master of ``layer.weight()``, viewed alike; None where there is none.

        Of ``weight`` where that is given: the second factor of a product.
        """
        weight = layer.weight() if weight is None else weight
        master = self._of(layer, weight, self._given_for)
        if master is None and (self._attached or (self._optimizers and weight.dtype in LOW)):
            master = self._of(layer, weight, self._found_for)
        return master

    @torch.no_grad()
    def follow(self, layer: Layer, scale: Tensor) -> None:
        """Multiply what lies here of a distributed master as ``layer.weight()`` was multiplied.

        Such are the masters of ZeRO-1 and 2: the weight is whole, each process steps a fragment.
        """
        parameter = layer.parameter()
        mapping: Any = getattr(parameter, "_hp_mapping", None)
        if parameter is None or mapping is None or not _is_distributed(parameter):
            return
        fragment, first = mapping.get_hp_fragment(), mapping.lp_fragment_address.start
        factors = torch.ones(parameter.shape, dtype=fragment.dtype, device=fragment.device)
        layer.part(factors).copy_(scale)
        fragment.mul_(factors.flatten()[first : first + fragment.numel()])

    def _of(self, layer: Layer, weight: Tensor, find: Find) -> Tensor | None:
        name, parameter = self._owner(layer, weight)
        master = None if parameter is None else find(name, parameter)
        if master is None or parameter is None:
            return None
        offset = weight.storage_offset() - parameter.storage_offset() + master.storage_offset()
        return master.as_strided(weight.size(), weight.stride(), offset)

    def _owner(self, layer: Layer, weight: Tensor) -> tuple[str, Tensor | None]:
        """Return the parameter whose memory ``weight`` is a view of, and its name."""
        if (parameter := layer.parameter()) is not None:
            return layer.name.split("[")[0], parameter
        memory = weight.untyped_storage().data_ptr()
        for name, each in self._model.named_parameters():
            inside = weight.storage_offset() - each.storage_offset()
            if each.untyped_storage().data_ptr() == memory and 0 <= inside < each.numel():
                return name, each
        return layer.name, None

    def _cast_later(self, name: str, parameter: Tensor) -> Tensor | None:
        master = self._given_for(name, parameter)
        if master is None and (self._attached or parameter.dtype in LOW):
            stashed = [m for each in self._optimizers for m in _in_stash(each, parameter)]
            laid = (_laid_like(parameter, m) for m in (*stashed, *_attached(parameter)))
            master = next((m for m in laid if m is not None), None)
        return master

    def _given_for(self, name: str, parameter: Tensor) -> Tensor | None:
        master = self._given.get(name)
        laid = None if master is None else _laid_like(parameter, master)
        if master is not None and laid is None:
            self._say(name, "does not fit its parameter any more, which is written instead")
        return laid

    def _found_for(self, name: str, parameter: Tensor) -> Tensor | None:
        kept = [
            master
            for each in self._optimizers
            for master in (*_in_state(each, parameter), *_in_stash(each, parameter))
        ]
        kept = [*(kept if parameter.dtype in LOW else ()), *_attached(parameter)]
        for master in kept:
            laid = _laid_like(parameter, master)
            if laid is not None and laid.dtype not in LOW:
                return laid
        if kept:
            self._say(name, "is not laid out like its parameter: pass it as masters=, in its shape")
        elif (
            self._optimizers
            and parameter.dtype in LOW
            and not any(_steps(x, parameter) for x in self._optimizers)
        ):
            self._say(
                name,
                "is unknown, and the optimizer does not hold the parameter: if it steps a copy, "
                "that will undo the action: pass it as masters=",
            )
        return None

    def _say(self, name: str, what: str) -> None:
        if name not in self._said:
            self._said.add(name)
            log.warning("snc: the master of %s %s", name, what)


def lowered(
    bound: Tensor, threshold: Tensor, dtypes: Mapping[int, torch.dtype]
) -> tuple[Tensor, Tensor]:
    """Return what to divide by, and what to aim at so that the rounded copy lands there.

    ``dtypes`` are those of the copies, by place. These aim lower, by one unit roundoff; as
    `snc_client.constraint` does for weights of that dtype. A weight that is under its threshold is
    left alone also between the two.
    """
    if not dtypes:
        return bound, threshold
    aim = threshold.clone()
    for i, dtype in dtypes.items():
        aim[i].mul_(1.0 - torch.finfo(dtype).eps / 2)
    return torch.where(bound > threshold, bound, 0.0), aim


def cast_down(copy: Tensor, master: Tensor, scale: Tensor) -> None:
    """Write the master to its copy where ``scale`` (0-d) says that it has changed."""
    copy.copy_(torch.where(scale != 1, master.to(copy.dtype), copy))


def _named(model: nn.Module, given: Mapping[Any, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield each master under every name of its parameter."""
    named = dict(model.named_parameters(remove_duplicate=False))
    for key, master in given.items():
        parameter = named.get(key) if isinstance(key, str) else key
        names = [name for name, each in named.items() if each is parameter]
        if not names or parameter is None:
            got = repr(key) if isinstance(key, str) else f"a {type(key).__name__} of another model"
            raise ValueError(
                f"masters must map parameters of the model or their names, got {got}: "
                "model.named_parameters() lists them"
            )
        if is_dtensor(parameter) and not is_whole(parameter):
            raise ValueError(
                f"masters must be of whole weights, got one of {names[0]!r}, which is sharded: "
                "leave it out"
            )
        if not isinstance(master, Tensor) or _laid_like(parameter, master) is None:
            got = _described(master) if isinstance(master, Tensor) else type(master).__name__
            raise ValueError(
                f"the master of {names[0]!r} must be a floating-point tensor laid out like it, "
                f"{_described(parameter)}, got {got}"
            )
        yield from ((name, master) for name in names)


def _in_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> Iterator[Tensor]:
    """Yield what the optimizer keeps as the master of this very parameter."""
    state = optimizer.state.get(parameter, {})
    yield from (state[key] for key in KEYS if isinstance(state.get(key), Tensor))


def _in_stash(optimizer: object, parameter: Tensor) -> Iterator[Tensor]:
    """Yield the master that apex's amp made of this very parameter."""
    stash = getattr(optimizer, "_amp_stash", None)
    copies = getattr(stash, "all_fp16_params", ())
    masters = getattr(stash, "all_fp32_from_fp16_params", ())
    if len(copies) == len(masters):
        yield from (m for p, m in zip(copies, masters, strict=True) if p is parameter)


def _attached(parameter: Tensor) -> Iterator[Tensor]:
    """Yield the master that Megatron or DeepSpeed has attached to the parameter.

    DeepSpeed's optimizer steps one of a float32 parameter too.
    """
    mapping = None if _is_distributed(parameter) else getattr(parameter, "_hp_mapping", None)
    fragment = getattr(mapping, "get_hp_fragment", None)
    for master in (getattr(parameter, "main_param", None), fragment and fragment()):
        if isinstance(master, Tensor) and master.data_ptr() != parameter.data_ptr():
            yield master


def _is_distributed(parameter: Tensor) -> bool:
    """Return whether ZeRO-1 or 2 has several processes step fragments of its master.

    One that has all of it is treated as the others are, or their weights would round differently.
    """
    group = getattr(parameter, "_dp_group", None)
    return hasattr(parameter, "_hp_mapping") and group is not None and group.size() > 1


def _steps(optimizer: torch.optim.Optimizer, parameter: Tensor) -> bool:
    return any(p is parameter for group in optimizer.param_groups for p in group["params"])


def _laid_like(parameter: Tensor, master: Tensor) -> Tensor | None:
    """Return the master in the shape and strides of the parameter, None if it has others."""
    plain = master.detach()
    if type(plain) is not Tensor or not plain.is_floating_point():
        return None
    if plain.device != parameter.device or plain.layout != torch.strided:
        return None
    if plain.ndim == 1 and plain.is_contiguous() and plain.numel() == parameter.numel():
        plain = plain.view(parameter.shape)
    alike = plain.shape == parameter.shape and plain.stride() == parameter.stride()
    return plain if alike else None


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} with strides {tensor.stride()} on {tensor.device}"
