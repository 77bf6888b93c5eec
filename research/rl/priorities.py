"""Prioritised replay (Schaul, Quan, Antonoglou & Silver 2016, arXiv:1511.05952): sum trees inside jit.

A tree of one environment is f32[2 * leaves], leaves a power of two: node i has the children 2i and 2i + 1, each node is
the sum of its children, node 1 of all, and slot s of the replay buffer is node leaves + s. Node 0, which no tree needs,
holds the greatest priority that there has been, which new transitions get. Of many environments the leaves are
[num_envs, 2 * leaves], so that they split over devices with the buffer.
"""

import jax
import jax.numpy as jnp


def empty(num_envs: int, slots: int) -> jax.Array:
    """Trees of `slots` priorities of 0, f32[num_envs, 2 * leaves]."""
    leaves = 1 << max(slots - 1, 1).bit_length()
    return jnp.zeros((num_envs, 2 * leaves)).at[:, 0].set(1)


def put(tree: jax.Array, slots: jax.Array, priorities: jax.Array) -> jax.Array:
    """The tree of one environment with new priorities f32[n] at slots i32[n]; of one named twice, the greater."""
    node = len(tree) // 2 + slots
    # A set and a max, whose results do not depend on an order, as that of sets to one place would.
    tree = tree.at[node].set(0).at[node].max(priorities)
    for _ in range((len(tree) // 2).bit_length() - 1):
        node = node // 2
        tree = tree.at[node].set(tree[2 * node] + tree[2 * node + 1])
    return tree.at[0].max(priorities.max())


def find(tree: jax.Array, mass: jax.Array) -> jax.Array:
    """The slots i32[n] in which masses f32[n] from [0, 1) of the whole sum lie."""
    node, mass = jnp.ones(mass.shape, jnp.int32), mass * tree[1]
    for _ in range((len(tree) // 2).bit_length() - 1):
        left, right = tree[2 * node], tree[2 * node + 1]
        # By rounding a mass may lie beyond the sum; what has no priority is never found.
        go_right = (mass >= left) & (right > 0)
        node, mass = 2 * node + go_right, mass - jnp.where(go_right, left, 0)
    return node - len(tree) // 2


def write(trees: jax.Array, step: jax.Array, rollout_length: int, slots: int, n: int) -> jax.Array:
    """The trees after a step has written `rollout_length` transitions of each environment.

    What now begins a whole window of n transitions gets the greatest priority so far; what does not yet, and what was
    written over, 0.
    """
    number = step * rollout_length - (n - 1) + jnp.arange(rollout_length + n - 1)
    oldest = jnp.maximum((step + 1) * rollout_length - slots, 0)  # of the transitions that are still stored
    whole = (number >= oldest) & (jnp.arange(rollout_length + n - 1) < rollout_length)
    return jax.vmap(lambda tree: put(tree, number % slots, jnp.where(whole, tree[0], 0)))(trees)


def sample(trees: jax.Array, keys: jax.Array, shape: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """Slots i32[num_envs, *shape], drawn by their priority, and their probability within their environment.

    keys   [num_envs]
    shape  (batches, samples of an environment in a batch); the sum is cut into equal parts, one for each sample
    """

    def one(tree: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        mass = (jnp.arange(shape[1]) + jax.random.uniform(key, shape)) / shape[1]
        slots = find(tree, mass.reshape(-1)).reshape(shape)
        return slots, tree[len(tree) // 2 + slots] / tree[1]

    return jax.vmap(one)(trees, keys)


def update(trees: jax.Array, slots: jax.Array, td_error: jax.Array, exponent: float) -> jax.Array:
    """The trees with priorities td_error ** exponent at slots; td_error f32 and slots i32 [num_envs, n].

    An error that is not finite, as where a float16 update is skipped, counts as 0: it would be the greatest for ever.
    """
    priorities = (jnp.where(jnp.isfinite(td_error), td_error, 0) + 1e-6) ** exponent
    return jax.vmap(put)(trees, slots, priorities)
