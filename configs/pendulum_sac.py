"""Pendulum by soft actor-critic: swing it up by a torque, which is continuous, and hold it there.

Method: Haarnoja et al. 2018, arXiv:1812.05905, with nets of two layers of 64 where theirs have 256, batches of 128
(theirs 256) and a rate of 0.001 (theirs 0.0003).
Published: Stable-Baselines3's zoo has -176 +- 102 (sb3/sac-Pendulum-v1, one run of 20,000 frames; the spread is that of
its episodes).

    python -m experiments.train pendulum_sac --seeds 10

Expected: about -143 over 100 fresh episodes of actions without noise, by the last State. Measured by the command:
-142.5 as the mean of ten seeds, -145.7 to -140.1, after 20,000 frames each. It took 224 s on one core beside much other
work.
"""

from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.learners.sac import SAC
from research.nets.q import MLP
from research.rl.environments import Environment


def config() -> SAC:
    """The experiment: 8 frames and 8 updates per step."""
    return SAC(
        environment=Environment("Pendulum-v1"),
        actor=MLP(widths=(64, 64)),
        critic=MLP(widths=(64, 64)),
        batch=128,
        optimizer=Optimizer(learning_rate=1e-3),
        run=Run(
            steps=2_500,
            steps_per_dispatch=50,
            evaluate_every=500,
            save_every=500,
            metric="return",
            published=(("return", -176.33),),
        ),
    )
