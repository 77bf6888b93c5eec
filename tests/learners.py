"""The tiny settings that every file of research/learners brings, for what holds for every learner."""

from research import learners

EXPERIMENTS = learners.tiny()

KINDS = ("cnn", "dqn", "gan")
"""A learner of each kind of State: one net, with a world, two nets. They are compiled for every place and dtype; the
others for three seeds at once, by microbatches on four devices, and in bfloat16. `experiments.places` has all places
for all."""
