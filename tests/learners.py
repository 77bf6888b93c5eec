"""The tiny settings that every file of research/learners brings, for what holds for every learner."""

from research import learners

EXPERIMENTS = learners.tiny()
