"""CartPole by deep Q-learning: balance a pole on a cart for 500 frames.

Method: Mnih et al. 2015, doi:10.1038/nature14236 (arXiv:1312.5602), with double Q-learning (van Hasselt et al. 2016,
arXiv:1509.06461), 5-step returns (Hessel et al. 2018, arXiv:1710.02298), a target net that follows softly, averaged
weights for evaluation, and 8 environments in parallel. Published: CleanRL (Huang et al. 2022, arXiv:2111.08819) reports
a return of 498.38 +- 2.29 after 500,000 frames with its JAX version, 488.69 +- 16.11 with PyTorch.

    python -m experiments.train cartpole_dqn --seeds 10

Expected: a mean greedy return of 475 or more over 100 fresh episodes, by the averaged weights of the last State, for at
least 29 of 30 seeds, after 256,000 frames. Measured, seeds 0 to 29 in each of three roundings (the default,
XLA_FLAGS=--xla_cpu_max_isa=AVX2, which on that machine gave the same numbers, and SSE4_2): 90 of 90; the least was
486.2. Of the evaluations in the second half of a run 4 to 16 % are below 475, the early ones. The setting was chosen on
seeds 100 to 109; also tried: --tau 0.2, which gave 10 of 10 too.
"""

from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.core.update import UpdateConfig
from research.learners.dqn import DQN
from research.nets.q import MLP
from research.rl.environments import Environment


def config() -> DQN:
    """The experiment: 128 frames and 16 updates per step."""
    return DQN(
        environment=Environment("CartPole-v1"),
        net=MLP(widths=(120, 84)),
        num_envs=8,
        rollout_length=16,
        buffer_size=102_400,
        learning_starts=10_240,
        batch=64,
        updates=16,
        target_update_interval=1,
        tau=0.05,
        gamma=0.99,
        n_step=5,
        double=True,
        average=0.998,
        epsilon_fraction=0.3,
        optimizer=Optimizer(name="adamw", learning_rate=1e-3, schedule="linear"),
        update=UpdateConfig(clip=10.0),
        run=Run(
            steps=2000,
            steps_per_dispatch=200,
            evaluate_every=200,
            save_every=1000,
            metric="return",
            published=(("return", 498.38),),
        ),
    )
