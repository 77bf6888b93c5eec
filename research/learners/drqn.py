"""Deep recurrent Q-learning (Hausknecht & Stone 2015, arXiv:1507.06527), with stored states and burn-in.

`drqn` is `dqn` of sequences: the replay buffer holds with each observation the memory that the agent had there, and an
update unrolls the net from it; the first frames of a sequence only bring that memory up to date (Kapturowski et al.
2019, "Recurrent experience replay in distributed reinforcement learning").
"""

import math
from dataclasses import dataclass, field

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from research.core.errors import between, positive
from research.core.experiment import Experiment, Inference, Load, Report, Run
from research.core.metrics import Mean, Metrics, mean
from research.core.modules import bind, network
from research.core.optimizers import Optimizer
from research.core.state import Batch, Learner, State, evaluated, learner, rng
from research.core.types import Tree
from research.core.update import Aux, scan_updates
from research.learners.q_learning import greedy_episodes
from research.learners.replay_learning import ReplayLearning, act_and_learn, uniform_slots, with_target, with_world
from research.nets.recurrent_q import RecurrentQ
from research.rl import replay
from research.rl.environments import VectorEnv, make
from research.rl.exploration import epsilon_greedy
from research.rl.rollout import ActorState, Transition, rollout
from research.rl.wrappers import append_memory


@dataclass(frozen=True, kw_only=True)
class DRQN(ReplayLearning):
    """An experiment in recurrent Q-learning.

    Attributes:
        net: a recurrent net from flat observations that end in its memory, of 2 * net.width numbers, to the memory
            after them and the values of the actions
        sequence: number of frames of a sample that are learned from
        burn_in: number of frames before them, which bring the stored memory up to date
    """

    net: nn.Module = field(default_factory=RecurrentQ)
    learning_starts: int = 1024
    batch: int = 32
    sequence: int = 8
    burn_in: int = 4
    updates: int = 4
    target_update_interval: int = 10

    dtypes = ("float32", "bfloat16")

    def __post_init__(self) -> None:
        positive(self, "", "sequence")
        between(self, "", 0, math.inf, "burn_in")
        super().__post_init__()

    @property
    def length(self) -> int:
        """Number of frames of a sequence, those of the burn-in among them."""
        return self.burn_in + self.sequence

    @property
    def window(self) -> tuple[str, int]:
        """See `OffPolicy`."""
        return "burn_in + sequence", self.length

    def reports(self, load: Load) -> tuple[Report, ...]:
        """None: what the agent does hangs on a memory that no picture shows."""
        return ()

    def inference(self, state: State) -> dict[str, Inference]:
        """None yet: the memory would have to go in and out."""
        return {}

    def build(self) -> Learner:
        """See `Experiment`."""
        return drqn(self)


def drqn(config: DRQN) -> Learner:
    """The learner. Q is `state.params["q"]`, Q̂ is `state.collections["target"]`, D is `state.world.buffer`."""
    plain = make(config.environment)
    net = network(bind(config.net, outputs=plain.num_actions), config.update.dtype)
    size = 2 * config.net.width
    flat = append_memory(plain, lambda observation: observation[:, -size:], size)  # for its shapes
    init_state, update = config.updater()

    def forward(params: Tree, observation: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(the memory after observations that end in one, f32[batch, ...], their actions' values [batch, actions])."""
        return net.apply(params, {}, observation)[0]

    def remembered(environment: VectorEnv, params: Tree) -> VectorEnv:
        return append_memory(environment, lambda observation: forward(params, observation)[0], size)

    def unrolled(params: Tree, sequences: Transition) -> tuple[jax.Array, jax.Array]:
        """The values f32[batch, sequence, actions] after the burn-in of sequences, and those at what followed each."""

        def with_memory(observation: jax.Array, memory: jax.Array) -> jax.Array:
            return jnp.concatenate([observation[..., :-size], memory], -1)

        def frame(memory: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            observation, done = now
            memory, values = forward(params, with_memory(observation, memory))
            return jnp.where(done[:, None], 0, memory), (memory, values)

        observation, done, following = jax.tree.map(
            lambda x: x.swapaxes(0, 1), (sequences.observation, sequences.done, sequences.next_observation)
        )
        n = config.burn_in
        memory, _ = jax.lax.scan(frame, observation[0, :, -size:], (observation[:n], done[:n]))
        # The burn-in makes a memory to start from; it is not learned from, so no gradient flows through it.
        memory = jax.lax.stop_gradient(memory)
        _, (memories, values) = jax.lax.scan(frame, memory, (observation[n:], done[n:]))
        _, next_values = jax.vmap(forward, (None, 0))(params, with_memory(following[n:], memories))
        return values.swapaxes(0, 1), next_values.swapaxes(0, 1)

    def init(key: jax.Array) -> State:
        params, _ = net.init(key, jnp.zeros((1, *flat.observation_shape)))
        state = init_state(key, {"q": (params, {})}, {"target": jax.tree.map(jnp.copy, params)})
        return with_world(config, flat, state)

    def act(state: State) -> tuple[ActorState, Transition, Metrics]:
        """Act epsilon-greedily."""
        params, epsilon = state.params["q"], config.epsilon(state.step)
        policy = lambda observation, uniform: epsilon_greedy(forward(params, observation)[1], uniform, epsilon)
        environment, actor = remembered(plain, params), state.world.actor
        actor, transitions, metrics = rollout(environment, policy, actor, rng(state, "act"), config.rollout_length)
        return actor, transitions, {**metrics, "epsilon": mean(epsilon)}

    def sample(state: State) -> tuple[Transition, jax.Array]:
        """The sequences of a step, leaves [updates, batch, length, ...], and the best values of Q̂ after
        each frame that is learned from, f32[updates, batch, sequence]."""
        found = replay.sequences(state.world.buffer, uniform_slots(config, state), config.length)
        _, next_values = jax.vmap(unrolled, (None, 0))(state.collections["target"], found)
        return found, next_values.max(-1)

    def td_loss(params: Tree, state: State, batch: tuple[Transition, jax.Array], rng: jax.Array) -> tuple[Mean, Aux]:
        """The squared temporal difference of the frames after the burn-in."""
        sequences, next_value = batch
        learned = jax.tree.map(lambda x: x[:, config.burn_in :], sequences)
        y = learned.reward + config.gamma * jnp.where(learned.terminated, 0, next_value)
        values, _ = unrolled(params, sequences)
        value = (values * jax.nn.one_hot(learned.action, values.shape[-1])).sum(-1)
        return mean(optax.squared_error(value, y)), Aux({"q": mean(value)})

    def learn(state: State) -> tuple[State, Metrics]:
        """A gradient descent step on each minibatch."""
        state, aux = scan_updates(update, state, "q", td_loss, sample(state))
        return state, dict(aux.metrics)

    def evaluate(state: State, batch: Batch) -> Metrics:
        """One whole greedy episode for each seed of `batch.index`."""
        params = evaluated(state, "q")
        environment = remembered(make(config.environment.unscaled), params)
        return greedy_episodes(config, environment, lambda observation: forward(params, observation)[1], batch)

    return learner(init, with_target(config, act_and_learn(config, act, learn)), evaluate)


def tiny() -> dict[str, Experiment]:
    """Tiny settings, for the tests of what holds for every learner: SGD; it learns from its second step on."""
    return {
        "drqn": DRQN(
            net=RecurrentQ(width=8),
            num_envs=8,
            rollout_length=4,
            buffer_size=8 * 16,
            learning_starts=32,
            batch=16,
            sequence=4,
            burn_in=2,
            updates=2,
            target_update_interval=2,
            episodes=16,
            optimizer=Optimizer(name="sgd", learning_rate=0.05),
            run=Run(steps=12, steps_per_dispatch=3, evaluate_every=6, save_every=6, metric="return"),
        )
    }
