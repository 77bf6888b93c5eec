"""samestep: CNN, LSTM, Transformer, GAN, DQN and PPO on one state/step abstraction, in JAX."""

from typing import Any


def load(directory: Any) -> Any:
    """(config, learner, state) of the run kept in `directory`; see `research.training.run.load`."""
    from research.training.run import load  # here, so that importing a small module imports no other

    return load(directory)
