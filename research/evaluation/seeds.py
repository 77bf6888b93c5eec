"""What host-side evaluations share: how they return numbers of several seeds."""

from collections.abc import Mapping, Sequence

from research.core.metrics import Numbers


def by_seed(each: Sequence[Mapping[str, float]]) -> Numbers:
    """The numbers of each seed, by name: lists of one number per seed, or plain numbers of a single seed."""
    if len(each) == 1:
        return dict(each[0])
    return {name: [numbers[name] for numbers in each] for name in each[0]}
