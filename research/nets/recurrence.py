"""The recurrence of an LSTM layer, with a backward pass of its own.

Hochreiter & Schmidhuber 1997, "Long short-term memory", with the forget gates of Gers, Schmidhuber & Cummins 2000.
"""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def recur(
    gates: jax.Array, kernel: jax.Array, hidden: jax.Array, cell: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The recurrence of one layer, given what its inputs contribute to the gates.

    gates         [time, batch, 4 * width]: input, forget, candidate and output gate, before their nonlinearities
    kernel        [width, 4 * width], from the hidden state to the gates
    hidden, cell  [batch, width], the initial states
    mask          [time, batch, 1], 1 for a token, 0 for padding, which leaves the states as they are; None: no padding

    Returns the hidden states [time, batch, width], and the last hidden and cell states. The gradient of the kernel is
    one matrix product at the end, not one at each step.
    """
    outputs, last, _ = _run(gates, kernel, hidden, cell, mask)
    return outputs, *last


def _gate_scale(width: int, dtype: jnp.dtype) -> jax.Array:
    """The factors [4 * width] by which one tanh computes all gates: sigmoid(z) = (1 + tanh(z / 2)) / 2."""
    return jnp.repeat(jnp.array([0.5, 0.5, 1.0, 0.5], dtype), width)


def _split(activations: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The gates i, f, g (the candidate) and o from the tanh of all."""
    i, f, g, o = jnp.split(activations, 4, -1)
    return 0.5 + 0.5 * i, 0.5 + 0.5 * f, g, 0.5 + 0.5 * o


def _run(gates, kernel, hidden, cell, mask):  # type: ignore[no-untyped-def]
    gate_scale = _gate_scale(hidden.shape[-1], hidden.dtype)

    def step(carry, inputs):  # type: ignore[no-untyped-def]
        (hidden, cell), (gates, mask) = carry, inputs
        activations = jnp.tanh((gates + hidden @ kernel) * gate_scale)
        i, f, g, o = _split(activations)
        new_cell = f * cell + i * g
        new_hidden = o * jnp.tanh(new_cell)
        if mask is not None:
            new_hidden, new_cell = (jnp.where(mask > 0, n, c) for n, c in ((new_hidden, hidden), (new_cell, cell)))
        return (new_hidden, new_cell), (new_hidden, new_cell, activations)

    last, (hiddens, cells, activations) = jax.lax.scan(step, (hidden, cell), (gates, mask), unroll=2)
    return hiddens, last, (cells, activations)


def _forward(gates, kernel, hidden, cell, mask):  # type: ignore[no-untyped-def]
    hiddens, last, (cells, activations) = _run(gates, kernel, hidden, cell, mask)
    return (hiddens, *last), (hiddens, cells, activations, kernel, hidden, cell, mask)


def _backward(saved, gradients):  # type: ignore[no-untyped-def]
    hiddens, cells, activations, kernel, hidden, cell, mask = saved
    previous = lambda initial, states: jnp.concatenate([initial[None], states[:-1]])
    # The factors that do not depend on later gradients, for all times at once: from the gradient of the cell (for o, of
    # the hidden state) to that of the gates, and from that of the hidden state to that of the cell.
    i, f, g, o = _split(activations)
    tanh_cell = jnp.tanh(cells)
    each_gate = [g * i * (1 - i), previous(cell, cells) * f * (1 - f), i * (1 - g**2), tanh_cell * o * (1 - o)]
    to_gates, to_cell = jnp.concatenate(each_gate, -1), o * (1 - tanh_cell**2)
    if mask is not None:
        to_gates, to_cell = to_gates * mask, to_cell * mask
    kernel_t = jax.lax.optimization_barrier(kernel.T)  # transposed once, not at each step

    def step(carry, inputs):  # type: ignore[no-untyped-def]
        (dh, dc), (dy, to_gates, to_cell, f, mask) = carry, inputs
        dh = dh + dy
        dcell = dc + dh * to_cell
        dgates = jnp.concatenate([dcell, dcell, dcell, dh], -1) * to_gates
        if mask is None:
            return (dgates @ kernel_t, dcell * f), dgates
        return (dgates @ kernel_t + dh * (1 - mask), jnp.where(mask > 0, dcell * f, dc)), dgates

    dy, *last = gradients
    inputs = (dy, to_gates, to_cell, f, mask)
    (dhidden, dcell), dgates = jax.lax.scan(step, tuple(last), inputs, reverse=True, unroll=2)
    dkernel = jnp.einsum("tbh,tbg->hg", previous(hidden, hiddens), dgates)
    return dgates, dkernel, dhidden, dcell, None if mask is None else jnp.zeros_like(mask)


recur.defvjp(_forward, _backward)
