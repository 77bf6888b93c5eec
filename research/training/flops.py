"""How much a program computes, counted in its jaxpr, and how much a device can compute at most."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from research.training.hardware import PEAKS


def flops(jaxpr: ClosedJaxpr | Jaxpr) -> float:
    """The floating-point operations of matrix products and convolutions in a jaxpr: two for each multiplication.

    What is in a scan counts as often as it runs, what is in a `shard_map` once for each device, and of a `cond` the
    branch with the most counts. The zeros that a strided or transposed convolution puts between its inputs do not
    count. What rematerialisation computes a second time does.

    NaN where a `while` loop, whose length is not known, or a Pallas kernel has some.
    """
    return math.fsum(_flops(equation) for equation in jaxpr.eqns)


def _flops(equation: JaxprEqn) -> float:
    params, inner = equation.params, [flops(jaxpr) for jaxpr in _jaxprs(equation.params)]
    shape = lambda x: x.aval.shape
    match equation.primitive.name:
        case "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            length = math.prod(shape(equation.invars[0])[axis] for axis in contracted)
            return 2 * length * math.prod(shape(equation.outvars[0]))
        case "conv_general_dilated":
            kernel, features = shape(equation.invars[1]), params["dimension_numbers"].rhs_spec[0]
            length = math.prod(kernel) / kernel[features] / math.prod(params["lhs_dilation"])
            return 2 * length * math.prod(shape(equation.outvars[0]))
        case "scan":
            return params["length"] * sum(inner)
        case "shard_map":
            return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"]) * sum(inner)
        case "cond":
            return float(np.max(inner))  # NaN where one of them is
        case "while" | "pallas_call":
            return math.nan if sum(inner) else 0.0
    return sum(inner)


def _jaxprs(params: dict[str, Any]) -> Iterator[ClosedJaxpr | Jaxpr]:
    """The jaxprs among the parameters of an equation: a loop's body, the branches of a `cond`, a function's."""
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, ClosedJaxpr | Jaxpr):
                yield one


def peak(devices: int) -> float | None:
    """FLOP/s of so many devices of the kind that is there, at most, in bfloat16; None where `PEAKS` lacks it."""
    one = PEAKS.get(jax.devices()[0].device_kind)
    return None if one is None else devices * one
