"""Breaks the learners on purpose, one change at a time, and tells which changes the tests catch.

    python tests/mutations.py [--only NAME]     NAME: a file's name without .py, such as gan, update, replay

Each change is made in a temporary copy of the tree, in which the named tests run; the tree itself is left alone. It
takes about a quarter of an hour on two cores. `test_mutations.py` sees that every change can still be made.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
COPIED = ("research", "configs", "experiments", "tests", "pyproject.toml")
LIMIT = 600
"""Seconds that the tests of one change may take; tests that hang have noticed it."""


class Mutation(NamedTuple):
    """A change that the tests should catch.

    file        below research/
    old, new    the text that is replaced, which occurs once in the file, and what replaces it
    tests       what pytest is given
    breaks      what goes wrong
    equivalent  why nothing goes wrong, where nothing does: no test can catch it
    """

    file: str
    old: str
    new: str
    tests: str
    breaks: str
    equivalent: str = ""


class Untouched(ValueError):
    """A change whose `old` text does not occur exactly once."""


GAN_STEP = "tests/test_steps.py -k of_the_gan"
CYCLE_STEP = "tests/test_steps.py -k of_cyclegan"
CNN_STEP = "tests/test_steps.py -k cnn"
TEXT_STEPS = "tests/test_steps.py -k 'lstm or sentences or masked or translator'"
DQN_STEP = "tests/test_dqn.py -k 'equals_one_in_numpy or target'"
PQN_STEP = "tests/test_q_learning.py -k a_table_learns"
PPO_STEP = "tests/test_ppo.py -k equals_one_in_numpy"
SAC_STEP = "tests/test_sac.py -k equals_one_in_numpy"
PPO_VALUES = "tests/test_ppo.py -k 'Truncating or evaluation'"
STATISTICS = "tests/test_ppo.py -k 'running or discounted'"
WRAPPERS = "tests/test_wrappers.py"
REPLAY = "tests/test_dqn.py -k 'equals_one_in_numpy or windows or termination_ends or buffer_holds or remembered'"
EXPLORATION = "tests/test_rl.py tests/test_dqn.py -k 'epsilon or actions_are'"
ROLLOUT = "tests/test_rl.py tests/test_dqn.py -k 'rollout or key or draws or buffer_holds or Truncating'"
EPISODES = "tests/test_rl.py tests/test_dqn.py -k 'episodes or key_twice'"
UPDATE = "tests/test_core.py tests/test_steps.py -k 'update or average_follows or names or moves_nothing or keys'"
CHUNKS = "tests/test_sequences.py -k in_chunks"
HALF = "tests/test_loss_scale.py"
CRITERIA = "tests/test_sequences.py tests/test_nets.py -k 'criterion or classification_by_hand'"

CLASSIFY = [
    Mutation(
        "learners/classify.py",
        "replace(attack, trades=None)",
        "attack",
        "tests/test_attacks.py -k trades_trains",
        "TRADES is evaluated under an attack that does not know the label",
    ),
    Mutation(
        "learners/classify.py",
        "batch = batch._replace(inputs=augmented)",
        "batch = batch._replace(inputs=seen)",
        CNN_STEP,
        "training images are not augmented",
    ),
    Mutation(
        "learners/classify.py",
        'example_keys(rng(state, "augment"), batch.index)',
        "example_keys(state.key, batch.index)",
        CNN_STEP,
        "each step augments an image alike",
    ),
    Mutation(
        "learners/classify.py",
        "classification(self.smoothing)",
        "classification()",
        CNN_STEP,
        "training labels are not smoothed",
    ),
    Mutation(
        "learners/classify.py",
        'net, "net", classification(), state',
        'net, "net", classification(self.smoothing), state',
        CNN_STEP,
        "labels are smoothed in evaluation too",
    ),
    Mutation(
        "learners/classify.py",
        "batch._replace(inputs=standardised(images, spec))",
        "batch._replace(inputs=images)",
        CNN_STEP,
        "evaluation reads images that are not standardised",
    ),
    Mutation(
        "data/pixels.py",
        "return (images - jnp.array(spec.mean)) / jnp.array(spec.std)",
        "return (images - jnp.array(spec.mean)) * jnp.array(spec.std)",
        CNN_STEP,
        "images are multiplied by the deviation",
    ),
    Mutation(
        "learners/supervised.py",
        '.apply(*weights(state, "net"), inputs)',
        '.apply(state.params["net"], weights(state, "net")[1], inputs)',
        "tests/test_experiments.py -k averaged_weights",
        "reports read the last weights, not the averaged ones",
    ),
]

SUPERVISED = [
    Mutation(
        "learners/supervised.py",
        'batch = augment(example_keys(rng(state, "augment"), batch.index), batch)',
        "batch = prepare(batch)",
        TEXT_STEPS,
        "training hides the tokens that evaluation hides",
    ),
    Mutation(
        "learners/supervised.py",
        'criterion_metrics(net, "net", eval_criterion, state, prepare(batch), chunk)',
        'criterion_metrics(net, "net", criterion, state, prepare(batch), chunk)',
        TEXT_STEPS,
        "evaluation has the criterion of training",
    ),
    Mutation(
        "learners/supervised.py",
        '{"net": self.average})',
        "{})",
        CNN_STEP,
        "no average of the weights is kept",
    ),
    Mutation(
        "learners/language.py",
        "tokens(ignored=-1,",
        "tokens(ignored=0,",
        TEXT_STEPS,
        "padding counts, and token 0 does not",
    ),
    Mutation(
        "learners/language.py",
        "eval_criterion=with_perplexity(criterion)",
        "eval_criterion=criterion",
        TEXT_STEPS,
        "no perplexity",
    ),
    Mutation(
        "learners/masked.py",
        "jnp.where(uniform < 0.8, MASK,",
        "jnp.where(uniform < 0.9, MASK,",
        "tests/test_sequences.py -k hidden_tokens",
        "90 % of the chosen tokens are hidden and none replaced",
    ),
    Mutation(
        "learners/masked.py",
        "text.at[places].set(jnp.where(chosen, replacement, truth))",
        "text.at[places].set(truth)",
        "tests/test_sequences.py -k hidden_tokens",
        "the net sees what it is to guess",
    ),
    Mutation(
        "learners/masked.py",
        "candidates = (text != PAD) & (text < predicted)",
        "candidates = text != PAD",
        "tests/test_sequences.py -k hidden_tokens",
        "tokens without a logit are to be predicted",
    ),
    Mutation(
        "learners/masked.py",
        "jnp.maximum(1, jnp.round(length * count / text.size))",
        "count",
        "tests/test_sequences.py -k hidden_tokens",
        "short texts have as many tokens hidden as long ones",
    ),
    Mutation(
        "learners/masked.py",
        "tokens(ignored=PAD),\n            eval_criterion",
        "tokens(ignored=-1),\n            eval_criterion",
        TEXT_STEPS,
        "training counts places where nothing was hidden",
    ),
    Mutation(
        "learners/masked.py",
        "jax.random.key(0), batch.index",
        "jax.random.key(0), 0 * batch.index",
        TEXT_STEPS,
        "evaluation draws the same for all texts",
    ),
    Mutation(
        "learners/detect.py",
        "(jnp.abs(points - middle) < radius * where.stride[:, None, None]).all(-1)",
        "(jnp.abs(points - middle) < radius * where.stride[:, None, None]).any(-1)",
        "tests/test_detection.py -k 'each_location or the_loss'",
        "positive locations form a cross",
    ),
    Mutation(
        "learners/detect.py",
        "chosen = area.argmin(-1)",
        "chosen = area.argmax(-1)",
        "tests/test_detection.py -k 'each_location or the_loss'",
        "a location finds a box that it is not responsible for",
    ),
    Mutation(
        "learners/detect.py",
        "both / union - (hull - union) / hull",
        "both / union",
        "tests/test_detection.py -k the_loss",
        "the loss is that of plain IoU",
    ),
    Mutation(
        "learners/detect.py",
        "(1 - of_truth) ** GAMMA",
        "of_truth**GAMMA",
        "tests/test_detection.py -k the_loss",
        "easy locations count most",
    ),
    Mutation(
        "learners/detect.py",
        "jnp.maximum(is_object.sum(1), 1)",
        "is_object.sum(1)",
        "tests/test_detection.py -k the_loss",
        "an image without objects is not counted",
    ),
    Mutation(
        "learners/detect.py",
        "rivals[n] & (later > n)",
        "rivals[n]",
        "tests/test_detection.py -k what_is_found",
        "boxes suppress themselves",
    ),
    Mutation(
        "learners/detect.py",
        "gone | (~gone[n] & rivals[n]",
        "gone | (rivals[n]",
        "tests/test_detection.py -k what_is_found",
        "suppressed boxes suppress others",
    ),
    Mutation(
        "data/box_augment.py",
        "corners.min(1), corners.max(1)",
        "corners[:, 0], corners[:, 1]",
        "tests/test_detection.py -k augmentation",
        "boxes of flipped images are inside out",
    ),
    Mutation(
        "learners/sentences.py",
        "classification(self.smoothing)",
        "classification()",
        TEXT_STEPS,
        "training labels are not smoothed",
    ),
    Mutation(
        "learners/sentences.py",
        "classification(names=self.data.spec().names)",
        "classification()",
        TEXT_STEPS,
        "no F1 by class",
    ),
    Mutation(
        "learners/translate.py",
        "tokens(ignored=PAD, smoothing=self.smoothing)",
        "tokens(ignored=PAD)",
        TEXT_STEPS,
        "training targets are not smoothed",
    ),
    Mutation(
        "learners/translate.py",
        "eval_criterion=tokens(ignored=PAD)",
        "eval_criterion=criterion",
        TEXT_STEPS,
        "targets are smoothed in evaluation too",
    ),
    Mutation(
        "learners/translate.py",
        "criterion = tokens(ignored=PAD,",
        "criterion = tokens(ignored=-1,",
        TEXT_STEPS,
        "training counts padding",
    ),
]

GAN = [
    Mutation(
        "learners/gan.py",
        """        state, d = scan_updates(update, state, "discriminator", discriminator_loss, parts)
        # Sample m examples of noise; update the generator.
        state, g = update(state, "generator", generator_loss, jax.tree.map(lambda x: x[-1], parts))
""",
        """        state, g = update(state, "generator", generator_loss, jax.tree.map(lambda x: x[-1], parts))
        state, d = scan_updates(update, state, "discriminator", discriminator_loss, parts)
""",
        GAN_STEP,
        "the generator is updated first",
    ),
    Mutation(
        "learners/gan.py",
        '(fold_name(keys, "noise"))',
        '(fold_name(jax.random.split(jax.random.key(0), len(keys)), "noise"))',
        GAN_STEP,
        "the noise is always the same",
    ),
    Mutation(
        "learners/gan.py",
        "jax.tree.map(lambda x: x[-1], parts)",
        "jax.tree.map(lambda x: x[0], parts)",
        GAN_STEP,
        "the generator has the labels of the first part",
    ),
    Mutation(
        "learners/gan.py",
        "parts = strided(batch, num_updates)",
        "parts = jax.tree.map(lambda x: x.reshape(num_updates, -1, *x.shape[1:]), batch)",
        GAN_STEP,
        "the parts are blocks, which leaves devices without a share",
    ),
    Mutation(
        "learners/gan.py",
        "values = gan_loss.real(real) + gan_loss.fake(fake)",
        "values = gan_loss.real(real)",
        GAN_STEP,
        "the discriminator does not learn from samples",
    ),
    Mutation(
        "learners/gan.py",
        "return mean(gan_loss.generator(score), batch.mask), Aux(moved=moved)",
        "return mean(gan_loss.fake(score), batch.mask), Aux(moved=moved)",
        GAN_STEP,
        "the generator helps the discriminator",
    ),
    Mutation(
        "learners/gan.py",
        "inputs = (noise(rng), labels)",
        "inputs = (noise(rng), labels[::-1])",
        GAN_STEP,
        "samples have other labels than the discriminator is told",
    ),
    Mutation(
        "learners/gan.py",
        "jax.nn.softplus, lambda s: jax.nn.softplus(-s)),",
        "jax.nn.softplus, lambda s: -jax.nn.softplus(s)),",
        "tests/test_gan.py -k losses_by_hand",
        "the generator's loss saturates",
    ),
    Mutation(
        "learners/gan.py",
        "return (jnp.sqrt(squared + 1e-12) - 1) ** 2",
        "return (squared - 1) ** 2",
        "tests/test_gan.py -k penalt",
        "the penalty is of the squared norm",
    ),
    Mutation(
        "learners/gan.py",
        "values += config.r1 / 2 *",
        "values += config.r1 *",
        "tests/test_gan.py -k sum_of_its_parts",
        "R1 counts twice",
    ),
    Mutation(
        "learners/gan.py",
        "share * reals + (1 - share) * fakes",
        "(1 - share) * reals + share * fakes",
        "tests/test_gan.py -k penalt",
        "epsilon counts from the other end",
    ),
    Mutation(
        "learners/gan.py",
        "discriminator.apply(params, moved, (fakes, labels), rng=rng)",
        "discriminator.apply(params, own, (fakes, labels), rng=rng)",
        "tests/test_steps.py -k batch_statistics",
        "the images leave no trace in the discriminator's batch statistics",
    ),
    Mutation(
        "learners/gan.py",
        "return mean(values, batch.mask), Aux(scores, moved)",
        "return mean(values, batch.mask), Aux(scores)",
        "tests/test_steps.py -k batch_statistics",
        "the discriminator's batch statistics stand still",
    ),
    Mutation(
        "learners/gan.py",
        "Aux(moved=moved)",
        "Aux()",
        "tests/test_steps.py -k batch_statistics",
        "the generator's batch statistics stand still",
    ),
    Mutation(
        "learners/gan.py",
        'params, own = evaluated(state, "generator"), owned(state, "generator")',
        'params, own = state.params["generator"], owned(state, "generator")',
        "tests/test_gan.py -k average",
        "the last generator is evaluated, not the averaged one",
    ),
    Mutation(
        "learners/gan.py",
        'if self.average is not None and "batch_stats" in own:',
        "if False:",
        "tests/test_gan.py -k average",
        "the averaged generator has the batch statistics of the last one",
    ),
    Mutation(
        "learners/gan.py",
        "replace(self.data, batch=self.num_updates * self.data.batch).feeds()",
        "self.data.feeds()",
        "tests/test_gan.py -k batch_for_each",
        "the updates of a step share one batch",
    ),
]

CYCLEGAN = [
    Mutation(
        "data/pixels.py",
        "/ 127.5 - 1",
        "/ 255",
        GAN_STEP,
        "images are in [0, 1], and samples in [-1, 1]",
    ),
    Mutation(
        "learners/cyclegan.py",
        "discriminator_loss, (x, y, fakes, batch.mask))",
        "discriminator_loss, (x, y, g.rows, batch.mask))",
        CYCLE_STEP,
        "the pools are bypassed",
    ),
    Mutation(
        "learners/cyclegan.py",
        '{"X": fake_x, "Y": fake_y}',
        '{"X": fake_y, "Y": fake_x}',
        CYCLE_STEP,
        "each discriminator sees the other's fakes",
    ),
    Mutation(
        "learners/cyclegan.py",
        'total = terms["adversarial"] + config.cycle * terms["cycle_error"]',
        'total = config.cycle * terms["cycle_error"]',
        CYCLE_STEP,
        "the generators do not play against the discriminators",
    ),
    Mutation(
        "learners/cyclegan.py",
        """        state, g = update(state, "generators", generator_loss, (x, y, batch.mask))
        # The discriminators see the translations of the generators before their update, out of the pools.
        state, fakes = pool_fakes(state, g.rows)
        state, d = update(state, "discriminators", discriminator_loss, (x, y, fakes, batch.mask))
""",
        """        _, g = update(state, "generators", generator_loss, (x, y, batch.mask))
        state, fakes = pool_fakes(state, g.rows)
        state, d = update(state, "discriminators", discriminator_loss, (x, y, fakes, batch.mask))
        state, g = update(state, "generators", generator_loss, (x, y, batch.mask))
""",
        CYCLE_STEP,
        "the discriminators are updated first",
    ),
    Mutation(
        "learners/cyclegan.py",
        "        state, fakes = pool_fakes(state, g.rows)\n",
        '        of_new = generator_terms(state.params["generators"], state.params["discriminators"], x, y)[2]\n'
        "        state, fakes = pool_fakes(state, of_new)\n",
        CYCLE_STEP,
        "the pools take translations of the updated generators",
    ),
    Mutation(
        "learners/cyclegan.py",
        "jnp.abs(translate(back, fake, rng) - x)",
        "jnp.abs(translate(there, fake, rng) - x)",
        CYCLE_STEP,
        "the way back is the way there",
    ),
    Mutation(
        "learners/cyclegan.py",
        "jnp.abs(translate(back, x, rng) - x)",
        "jnp.abs(translate(there, x, rng) - x)",
        CYCLE_STEP,
        "the wrong generator is to leave an image as it is",
    ),
    Mutation(
        "learners/cyclegan.py",
        'one(nets["G"], nets["F"], critics["Y"], x)',
        'one(nets["G"], nets["F"], critics["X"], x)',
        CYCLE_STEP,
        "translations to Y are shown to the discriminator of X",
    ),
    Mutation(
        "learners/cyclegan.py",
        "(per_example_mean((real - 1) ** 2) + per_example_mean(fake**2)) / 2",
        "per_example_mean((real - 1) ** 2) + per_example_mean(fake**2)",
        CYCLE_STEP,
        "the discriminators' loss is not halved",
    ),
    Mutation(
        "learners/cyclegan.py",
        "jnp.where(filling | ~exchange, image, past)",
        "image",
        CYCLE_STEP,
        "the pool takes images and gives none",
    ),
    Mutation(
        "learners/cyclegan.py",
        "jnp.where(filling | exchange, image, past)",
        "jnp.where(filling, image, past)",
        CYCLE_STEP,
        "the full pool stays as it is",
    ),
    Mutation(
        "learners/cyclegan.py",
        'f"augment {name}"), batch.index)',
        '"augment"), batch.index)',
        CYCLE_STEP,
        "both sets are augmented alike",
    ),
    Mutation(
        "learners/cyclegan.py",
        'params["generators"]["G" if to_y else "F"]',
        'params["generators"]["F" if to_y else "G"]',
        "tests/test_samples.py -k translate_by",
        "reports translate by the other generator",
    ),
]

DQN = [
    Mutation(
        "learners/dqn.py",
        "net.q(params, sample.next_observation)).argmax(-1)",
        "net.q(params, sample.next_observation)).argmin(-1)",
        DQN_STEP,
        "double Q-learning takes the worst action",
    ),
    Mutation(
        "learners/dqn.py",
        "best = jax.lax.stop_gradient(net.q(params, sample.next_observation)).argmax(-1)",
        "best = distribution.mean(next_).argmax(-1)",
        DQN_STEP,
        "double Q-learning is left out",
    ),
    Mutation(
        "learners/dqn.py",
        "jax.lax.stop_gradient(net.q(params, sample.next_observation)).argmax(-1)",
        "net.q(params, sample.next_observation).argmax(-1)",
        DQN_STEP,
        "no stop_gradient",
        equivalent="an argmax has no gradient",
    ),
    Mutation(
        "learners/dqn.py",
        "best = distribution.mean(next_).argmax(-1)",
        "best = distribution.mean(next_).argmin(-1)",
        DQN_STEP,
        "the target takes the worst action",
    ),
    Mutation(
        "learners/dqn.py",
        '(state.collections["target"], samples.next_observation)',
        '(state.params["q"], samples.next_observation)',
        DQN_STEP,
        "the net values its own targets",
    ),
    Mutation(
        "learners/dqn.py",
        '(state.collections["target"], samples.next_observation)',
        '(state.collections["target"], samples.observation)',
        DQN_STEP,
        "the target values the observation itself",
    ),
    Mutation(
        "learners/replay_learning.py",
        "optax.periodic_update(moved, target, state.step + 1,",
        "optax.periodic_update(moved, target, state.step,",
        DQN_STEP,
        "Q̂ is reset a step late",
    ),
    Mutation(
        "learners/replay_learning.py",
        'optax.incremental_update(state.params["q"], target, config.tau)',
        "optax.incremental_update(target, target, config.tau)",
        DQN_STEP,
        "Q̂ is never reset",
    ),
    Mutation(
        "learners/replay_learning.py",
        'optax.incremental_update(state.params["q"], target, config.tau)',
        'optax.incremental_update(state.params["q"], target, 1 - config.tau)',
        DQN_STEP,
        "Q̂ goes the rest of the way",
    ),
    Mutation(
        "learners/dqn.py",
        "of_action(net.outputs(params, sample.observation, rng), sample.action)",
        "of_action(net.outputs(params, sample.observation, rng), best)",
        DQN_STEP,
        "another action is valued than that which was done",
    ),
    Mutation(
        "learners/replay_learning.py",
        "jax.lax.cond(state.step >= config.",
        "jax.lax.cond(state.step > config.",
        "tests/test_dqn.py -k learning_starts",
        "learning starts a step late",
    ),
    Mutation(
        "learners/dqn.py",
        "return mean(loss, weight), Aux",
        "return mean(loss), Aux",
        "tests/test_q_learning.py -k importance",
        "importance weights are left out",
    ),
    Mutation(
        "learners/dqn.py",
        "weight = (valid * probability) ** -exponent",
        "weight = (valid * probability) ** exponent",
        "tests/test_q_learning.py -k importance",
        "importance weights are upside down",
    ),
    Mutation(
        "learners/dqn.py",
        "td_error = aux.rows.reshape(config.updates, -1, config.share).swapaxes(0, 1)",
        "td_error = aux.rows.reshape(-1, config.updates, config.share)",
        "tests/test_q_learning.py -k importance",
        "priorities go to other transitions",
    ),
    Mutation(
        "learners/q_learning.py",
        "q(observation).argmax(-1), batch, prediction)",
        "q(observation).argmin(-1), batch, prediction)",
        "tests/test_dqn.py -k evaluation",
        "evaluation plays the worst actions",
    ),
    Mutation(
        "learners/pqn.py",
        "jnp.roll(transitions.action, -1, 1)",
        "transitions.action",
        PQN_STEP,
        "SARSA values the action itself, not the next one",
    ),
    Mutation(
        "learners/pqn.py",
        "follows = ~transitions.done & (",
        "follows = (",
        PQN_STEP,
        "SARSA takes the first action of the next episode",
    ),
    Mutation(
        "rl/evaluation.py",
        "prediction.gamma**time * prediction.reward(timestep.reward)",
        "prediction.reward(timestep.reward)",
        "tests/test_rl.py -k overestimation",
        "the realised return is not discounted",
    ),
    Mutation(
        "rl/wrappers.py",
        "terminated=_done(timestep), truncated=jnp.zeros_like(timestep.truncated)",
        "terminated=timestep.terminated, truncated=timestep.truncated",
        WRAPPERS + " -k limit",
        "a limit does not terminate",
    ),
    Mutation(
        "evaluation/values.py",
        "np.where(right, 1.0, -1.0)",
        "np.where(right, -1.0, 1.0)",
        "tests/test_rl_pictures.py -k deep_sea",
        "arrows point to the other side",
    ),
    Mutation(
        "learners/q_learning.py",
        "jax.nn.one_hot(action, outputs.shape[1])[..., None]).sum(1)",
        "jax.nn.one_hot(action, outputs.shape[1])[..., None]).max(1)",
        DQN_STEP,
        "a negative value counts as 0",
    ),
    Mutation(
        "learners/pqn.py",
        "mean(0.5 * (batch.target - q) ** 2)",
        "mean((batch.target - q) ** 2)",
        PQN_STEP,
        "the loss is twice as large",
    ),
    Mutation(
        "learners/pqn.py",
        '(state.params["q"], transitions.next_observation)',
        '(state.params["q"], transitions.observation)',
        PQN_STEP,
        "the target values the observation itself",
    ),
    Mutation(
        "learners/pqn.py",
        "value = q.max(-1)",
        "value = q.min(-1)",
        PQN_STEP,
        "the target takes the worst action",
    ),
    Mutation(
        "learners/drqn.py",
        "jnp.where(done[:, None], 0, memory), (memory, values)",
        "memory, (memory, values)",
        "tests/test_q_learning.py -k unrolls",
        "memories last beyond the end of an episode",
    ),
    Mutation(
        "learners/drqn.py",
        "jax.lax.scan(frame, observation[0, :, -size:], ",
        "jax.lax.scan(frame, 0 * observation[0, :, -size:], ",
        "tests/test_q_learning.py -k unrolls",
        "the stored memory is left out",
    ),
    Mutation(
        "learners/drqn.py",
        "with_memory(following[n:], memories)",
        "following[n:]",
        "tests/test_q_learning.py -k unrolls",
        "what follows is valued by the memory of the time of acting",
    ),
    Mutation(
        "learners/drqn.py",
        "memory = jax.lax.stop_gradient(memory)",
        "memory = memory * 1",
        "tests/test_q_learning.py -k burn_in_is_not",
        "gradients flow through the burn-in",
    ),
    Mutation(
        "rl/priorities.py",
        "go_right = (mass >= left) & (right > 0)",
        "go_right = mass >= left",
        "tests/test_q_learning.py -k sum_tree",
        "what has no priority is found by rounding",
    ),
    Mutation(
        "rl/priorities.py",
        ".at[node].set(0).at[node].max(priorities)",
        ".at[node].set(priorities)",
        "tests/test_q_learning.py -k sum_tree",
        "of a slot named twice, the last priority counts",
    ),
    Mutation(
        "rl/priorities.py",
        "whole = (number >= oldest) & (",
        "whole = (",
        "tests/test_q_learning.py -k whole_windows",
        "slots that hold nothing are drawn",
    ),
    Mutation(
        "rl/priorities.py",
        "number = step * rollout_length - (n - 1) +",
        "number = step * rollout_length +",
        "tests/test_q_learning.py -k whole_windows",
        "windows cross the seam",
    ),
    Mutation(
        "rl/returns.py",
        "jnp.clip(return_[:, None] + discount[:, None] * support, v_min, v_max)",
        "return_[:, None] + discount[:, None] * support",
        "tests/test_q_learning.py -k projected",
        "returns beyond the last category are lost",
    ),
    Mutation(
        "rl/returns.py",
        "jnp.abs(tau[:, None] - (u < 0))",
        "jnp.abs(tau[:, None] - (u > 0))",
        "tests/test_q_learning.py -k quantiles_as",
        "quantiles are mirrored",
    ),
    Mutation(
        "rl/returns.py",
        "y = jax.lax.stop_gradient(return_[:, None] + discount[:, None] * next_)",
        "y = return_[:, None] + discount[:, None] * next_",
        "tests/test_q_learning.py -k quantiles_as",
        "the target has a gradient",
    ),
    Mutation(
        "rl/epochs.py",
        "return jax.tree.map(lambda x: x[order.reshape(count, -1)], frames)",
        "return jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), frames)",
        "tests/test_q_learning.py -k minibatches",
        "frames are not shuffled",
    ),
    Mutation(
        "nets/q.py",
        "value + advantage - advantage.mean(1, keepdims=True)",
        "value + advantage",
        "tests/test_q_learning.py -k dueling",
        "advantages keep their mean",
    ),
    Mutation(
        "nets/q.py",
        "jnp.sign(normal) * jnp.sqrt(jnp.abs(normal))",
        "normal",
        "tests/test_q_learning.py -k noise",
        "the noise is not of the paper's scale",
    ),
]

RL = [
    Mutation(
        "learners/sac.py",
        "batch.next_observation, action).min(0) - alpha(state)",
        "batch.next_observation, action).max(0) - alpha(state)",
        SAC_STEP,
        "the target is the greater critic's",
    ),
    Mutation(
        "learners/sac.py",
        "min(0) - alpha(state) * log_prob",
        "min(0) + alpha(state) * log_prob",
        SAC_STEP,
        "the target is paid for certainty",
    ),
    Mutation(
        "learners/sac.py",
        'q(state.collections["target"], batch.next_observation',
        'q(state.params["critic"], batch.next_observation',
        SAC_STEP,
        "the target is the critics' own",
    ),
    Mutation(
        "learners/sac.py",
        "y = batch.return_ + batch.discount * value",
        "y = batch.return_ + config.gamma * value",
        SAC_STEP,
        "a terminated transition is bootstrapped",
    ),
    Mutation(
        "learners/sac.py",
        "alpha(state) * log_prob - q(",
        "log_prob - q(",
        SAC_STEP,
        "the actor's entropy has no temperature",
    ),
    Mutation(
        "learners/sac.py",
        'q(state.params["critic"], batch.observation, action).min(0)',
        'q(state.params["critic"], batch.observation, action).mean(0)',
        SAC_STEP,
        "the actor follows the mean of the critics",
    ),
    Mutation(
        "learners/sac.py",
        'mean(-params["log_alpha"] * (log_prob - size))',
        'mean(params["log_alpha"] * (log_prob - size))',
        SAC_STEP,
        "the temperature rises with the entropy",
    ),
    Mutation(
        "learners/sac.py",
        'state.collections["target"], config.tau)',
        'state.collections["target"], 1 - config.tau)',
        SAC_STEP,
        "the target critics follow fast",
    ),
    Mutation(
        "rl/distributions.py",
        "self.gaussian.log_prob(u) - log_derivative.sum(-1)",
        "self.gaussian.log_prob(u)",
        "tests/test_sac.py -k density",
        "the density is that before tanh",
    ),
    Mutation(
        "learners/ppo.py",
        "surrogate = jnp.minimum(",
        "surrogate = jnp.maximum(",
        PPO_STEP,
        "the surrogate is an optimistic bound",
    ),
    Mutation(
        "learners/ppo.py",
        "error = jnp.maximum(error, optax.l2_loss(near, batch.return_))",
        "error = jnp.minimum(error, optax.l2_loss(near, batch.return_))",
        PPO_STEP,
        "a clipped value has the smaller error",
    ),
    Mutation(
        "learners/ppo.py",
        "config.value_coef * error - config.entropy_coef * entropy",
        "config.value_coef * error + config.entropy_coef * entropy",
        PPO_STEP,
        "entropy is a cost",
    ),
    Mutation(
        "learners/ppo.py",
        "advantage = gae(transitions, value, next_value, config.gamma, config.gae_lambda)",
        "advantage = gae(transitions, value, next_value, config.gamma, config.gamma)",
        PPO_STEP,
        "lambda is gamma",
    ),
    Mutation(
        "learners/ppo.py",
        "log_ratio = distribution.log_prob(batch.action) - batch.log_prob",
        "log_ratio = batch.log_prob - distribution.log_prob(batch.action)",
        PPO_STEP,
        "the ratio is that of the old policy to the new",
    ),
    Mutation(
        "learners/ppo.py",
        'moments = normalisation.merged(statistics(state)["observation"], transitions.observation)',
        'moments = normalisation.merged(statistics(state)["observation"], rows.observation)',
        PPO_STEP,
        "the statistics are of normalised observations",
    ),
    Mutation(
        "learners/ppo.py",
        "flat(seen(state, transitions.next_observation))",
        "flat(seen(state, jnp.roll(transitions.observation, -1, 1)))",
        PPO_VALUES,
        "a truncated episode bootstraps from the start of the next",
    ),
    Mutation(
        "learners/ppo.py",
        'apply(evaluated(state, "policy"), seen(state, observation))',
        'apply(state.params["policy"], seen(state, observation))',
        PPO_VALUES,
        "evaluation is by the last weights, not by their average",
    ),
    Mutation(
        "rl/normalisation.py",
        "apart**2 * moments.count * count / both",
        "0 * apart",
        STATISTICS,
        "the distance of the means is left out",
    ),
    Mutation(
        "rl/normalisation.py",
        "deviations = summed(((x - mean) ** 2).sum(0))",
        "deviations = ((x - mean) ** 2).sum(0)",
        STATISTICS,
        "deviations are those of one device",
    ),
    Mutation(
        "rl/normalisation.py",
        "return jnp.where(done, 0, found), found",
        "return found, found",
        STATISTICS,
        "an episode's rewards go on in the next",
    ),
    Mutation(
        "rl/wrappers.py",
        "(inner, _where(_done(timestep), none, executed))",
        "(inner, executed)",
        WRAPPERS,
        "an action sticks beyond its episode",
    ),
    Mutation(
        "rl/wrappers.py",
        "stack = _where(_done(timestep), first_stack, next_stack)",
        "stack = next_stack",
        WRAPPERS,
        "observations of one episode stand in the next",
    ),
    Mutation(
        "rl/wrappers.py",
        "return _where(done, (first, zero), (inner, time + 1)), timestep",
        "return (inner, time + 1), timestep",
        WRAPPERS,
        "a truncated episode goes on",
    ),
    Mutation(
        "rl/advantages.py",
        "jnp.where(done, value, (1 - decay) * value + decay * later)",
        "(1 - decay) * value + decay * later",
        "tests/test_q_learning.py -k lambda_returns",
        "returns run on into the next episode",
    ),
    Mutation(
        "rl/advantages.py",
        "jnp.where(terminated, 0, follows)",
        "follows",
        "tests/test_q_learning.py -k lambda_returns",
        "targets bootstrap beyond the end of an episode",
    ),
    Mutation(
        "rl/replay.py",
        "discount * gamma * ~buffer.terminated[at]",
        "discount * gamma",
        REPLAY,
        "targets bootstrap beyond the end of an episode",
    ),
    Mutation(
        "rl/replay.py",
        "discount * gamma * ~buffer.terminated[at]",
        "discount * gamma * ~buffer.done[at]",
        REPLAY,
        "episodes cut short count as ended",
    ),
    Mutation(
        "rl/replay.py",
        "return_ += jnp.where(done, 0, discount * buffer.reward[at])",
        "return_ += discount * buffer.reward[at]",
        REPLAY,
        "a return runs on into the next episode",
    ),
    Mutation(
        "rl/replay.py",
        "return_ += jnp.where(done, 0, discount * buffer.reward[at])",
        "return_ += jnp.where(done, 0, buffer.reward[at])",
        REPLAY,
        "rewards of a window are not discounted",
    ),
    Mutation(
        "rl/replay.py",
        "following(buffer, slot(last))",
        "following(buffer, slot(n - 1))",
        REPLAY,
        "the next observation is one of another episode",
    ),
    Mutation(
        "rl/replay.py",
        "(full - n + 1)",
        "full",
        REPLAY,
        "windows cross the seam",
    ),
    Mutation(
        "rl/replay.py",
        "oldest = jnp.where(full == slots, cursor(step + 1, rollout_length, slots), 0)",
        "oldest = jnp.where(full == slots, cursor(step, rollout_length, slots), 0)",
        REPLAY,
        "the oldest slot is one that was just written",
    ),
    Mutation(
        "rl/replay.py",
        "full = filled(step + 1, rollout_length, slots)",
        "full = filled(step, rollout_length, slots)",
        REPLAY,
        "the newest transitions are never drawn while the buffer fills",
    ),
    Mutation(
        "rl/replay.py",
        "return jnp.where(along(buffer.done[slot]), buffer.final[buffer.final_place[slot]], found)",
        "return found",
        REPLAY,
        "the next observation is that after the reset",
    ),
    Mutation(
        "rl/replay.py",
        "found = jnp.where(along(slot == buffer.newest_slot), buffer.newest, found)",
        "",
        REPLAY,
        "the newest transition leads to the oldest one's observation",
    ),
    Mutation(
        "rl/replay.py",
        "cut = transitions.done & ~transitions.terminated",
        "cut = transitions.done",
        REPLAY,
        "the ends of terminated episodes take the room of truncated ones",
    ),
    Mutation(
        "rl/replay.py",
        "place = (number - 1) % cuts",
        "place = number % cuts",
        REPLAY,
        "a ring begins with its second place",
        equivalent="where a ring begins does not matter",
    ),
    Mutation(
        "rl/replay.py",
        "number = buffer.cuts[:, None] + jnp.cumsum(cut, 1)",
        "number = jnp.cumsum(cut, 1)",
        REPLAY,
        "every step writes the same ends over",
    ),
    Mutation(
        "rl/replay.py",
        "cuts = (slots - 1) // environment.least_truncated + 1",
        "cuts = (slots - 1) // environment.least_truncated",
        REPLAY,
        "there is room for one end too few",
    ),
    Mutation(
        "rl/replay.py",
        "return step % (slots // rollout_length) * rollout_length",
        "return step % slots * rollout_length % slots",
        REPLAY,
        "a step is written where it does not belong",
        equivalent="the slots are a multiple of rollout_length: both are step * rollout_length modulo the slots",
    ),
    Mutation(
        "rl/exploration.py",
        "(uniform / jnp.maximum(epsilon, 1e-8) * q.shape[-1])",
        "(uniform * q.shape[-1])",
        EXPLORATION,
        "random actions are mostly the first ones",
    ),
    Mutation(
        "rl/exploration.py",
        "jnp.minimum(random, q.shape[-1] - 1)",
        "random",
        "tests/test_rl.py -k those_there_are",
        "an action more than there are",
    ),
    Mutation(
        "rl/exploration.py",
        "jnp.where(uniform < epsilon, random, q.argmax(-1))",
        "jnp.where(uniform < epsilon, random, q.argmin(-1))",
        EXPLORATION,
        "greedy actions are the worst ones",
    ),
    Mutation(
        "rl/exploration.py",
        "jnp.where(uniform < epsilon, random,",
        "jnp.where(uniform > epsilon, random,",
        EXPLORATION,
        "actions are random with probability 1 - epsilon",
    ),
    Mutation(
        "rl/exploration.py",
        "return start + (end - start) * fraction",
        "return start - (end - start) * fraction",
        EXPLORATION,
        "epsilon rises",
    ),
    Mutation(
        "rl/exploration.py",
        "jnp.where(step < duration, step / jnp.maximum(duration, 1e-8), 1.0)",
        "jnp.where(step < duration, step / duration, step / duration)",
        EXPLORATION,
        "epsilon falls on, and is NaN where it may end at once",
    ),
    Mutation(
        "rl/exploration.py",
        "(cumulative <= uniform[:, None])",
        "(cumulative > uniform[:, None])",
        EXPLORATION,
        "actions are drawn by the probability of others",
    ),
    Mutation(
        "rl/rollout.py",
        "done = timestep.terminated | timestep.truncated",
        "done = timestep.terminated",
        ROLLOUT,
        "episodes that are cut short do not end",
    ),
    Mutation(
        "rl/rollout.py",
        "timestep.reward, timestep.terminated, done, timestep.next_observation",
        "timestep.reward, done, done, timestep.next_observation",
        ROLLOUT,
        "episodes that are cut short count as ended",
    ),
    Mutation(
        "rl/rollout.py",
        "timestep.terminated, done, timestep.next_observation",
        "timestep.terminated, done, timestep.observation",
        ROLLOUT,
        "the next observation is that after the reset",
    ),
    Mutation(
        "rl/rollout.py",
        "actor.observation, action, timestep.reward",
        "timestep.observation, action, timestep.reward",
        ROLLOUT,
        "a transition starts at its end",
    ),
    Mutation(
        "rl/rollout.py",
        "episode_return=jnp.where(done, 0, episode_return)",
        "episode_return=episode_return",
        ROLLOUT,
        "returns run on into the next episode",
    ),
    Mutation(
        "rl/rollout.py",
        "(keys[length:-1], uniform, starts)",
        "(keys[:length], uniform, starts)",
        ROLLOUT,
        "a frame has the key of a reset",
    ),
    Mutation(
        "rl/rollout.py",
        "uniform = jax.vmap(lambda key: jax.random.uniform(key, draws), out_axes=1)(keys[-1])",
        "uniform = jnp.broadcast_to(jax.vmap(jax.random.uniform)(keys[-1]), (length, len(actor.env_id)))",
        ROLLOUT,
        "all frames of a rollout have one draw",
    ),
    Mutation(
        "rl/evaluation.py",
        "return_ + jnp.where(done, 0, timestep.reward)",
        "return_ + timestep.reward",
        EPISODES,
        "frames after the end of an episode count",
    ),
    Mutation(
        "rl/evaluation.py",
        "done |= timestep.terminated | timestep.truncated",
        "done = timestep.terminated | timestep.truncated",
        EPISODES,
        "episodes begin again",
    ),
]

HIGHWAY = [
    Mutation(
        "rl/highway.py",
        "jnp.maximum(0, speed * HEADWAY",
        "(speed * HEADWAY",
        "tests/test_highway.py -k 'idm'",
        "a leader that runs away pulls",
    ),
    Mutation(
        "rl/highway.py",
        "- (wanted / jnp.maximum(gap, 0.1)) ** 2",
        "- wanted / jnp.maximum(gap, 0.1)",
        "tests/test_highway.py -k 'idm or equilibrium'",
        "the gap is not squared",
    ),
    Mutation(
        "rl/highway.py",
        "(before(then) > -SAFE) & (lead(then) > -SAFE)",
        "lead(then) > -SAFE",
        "tests/test_highway.py -k mobil",
        "the new follower may have to brake as hard as it can",
    ),
    Mutation(
        "rl/highway.py",
        "+ (without(now) - before(now))",
        "",
        "tests/test_highway.py -k mobil",
        "what the old follower gains does not count",
    ),
    Mutation(
        "rl/highway.py",
        "POLITENESS * others > THRESHOLD",
        "POLITENESS * others > 0",
        "tests/test_highway.py -k mobil",
        "any advantage is enough",
    ),
    Mutation(
        "rl/highway.py",
        "course = cars.heading + turn / 2 + slip",
        "course = cars.heading + turn / 2",
        "tests/test_highway.py -k circle",
        "the centre of mass goes where the car points",
    ),
    Mutation(
        "rl/highway.py",
        "distance < -1 / TICKS",
        "distance < 0",
        "tests/test_highway.py -k side_by_side",
        "a car beside another one is a whole turn away",
    ),
    Mutation(
        "rl/highway.py",
        "ahead = jnp.where(ahead < 0, ahead + jnp.int32(ring * TICKS), ahead)\n    return",
        "return",
        "tests/test_highway.py -k neighbours",
        "nobody is seen across the seam of the ring",
    ),
    Mutation(
        "rl/highway.py",
        "jnp.where(left, bits << 1, bits >> 1) & ((1 << lanes) - 1)",
        "jnp.where(left, bits << 1, bits >> 1)",
        "tests/test_highway.py -k 'overtakes or conserved'",
        "cars leave the road",
    ),
    Mutation(
        "rl/highway.py",
        "left, turn = count % 2 == 0,",
        "left, turn = numbers < 3,",
        "tests/test_highway.py -k two_sides",
        "two cars take one gap from two sides",
    ),
    Mutation(
        "rl/highway.py",
        "return meet(ego.heading) & meet(others.heading)",
        "return meet(ego.heading)",
        "tests/test_highway.py -k rectangles",
        "cars collide with the corners of others' boxes",
    ),
    Mutation(
        "rl/highway.py",
        "dx = dx - ring * jnp.round(dx / ring)",
        "dx = dx",
        "tests/test_highway.py -k rectangles",
        "no collision is seen across the seam of the ring",
    ),
    Mutation(
        "rl/highway.py",
        "jnp.where(state.crashed, old, new)",
        "new",
        "tests/test_highway.py -k conserved",
        "cars drive on after a crash",
    ),
    Mutation(
        "rl/highway.py",
        "(sign * ahead[which] >= 0)",
        "True",
        "tests/test_highway.py -k 'kinematics or range'",
        "what is far behind is seen ahead",
    ),
    Mutation(
        "evaluation/highway.py",
        "gammaincinv(count + 1, 0.95)",
        "gammaincinv(count + 1, 0.975)",
        "tests/test_highway.py -k bound",
        "the bound is that of another level",
    ),
    Mutation(
        "rl/highway.py",
        "seconds=state.seconds + DT,",
        "seconds=before.seconds + DT * self.substeps,",
        "tests/test_highway.py -k time_of_an_episode",
        "the time after a collision lowers the speed",
    ),
    Mutation(
        "rl/environments.py",
        "state = jax.tree.map(restarted, start[0], state)",
        "state = jax.tree.map(restarted, start[0], state) if default_step else state",
        "tests/test_wrappers.py -k step_of_its_own",
        "an environment that resets itself goes on from its own start, and wrappers show another",
    ),
    Mutation(
        "rl/priorities.py",
        "jnp.where(jnp.isfinite(td_error), td_error, 0)",
        "td_error",
        "tests/test_q_learning.py -k not_finite",
        "an infinite error stays the greatest priority",
    ),
]

CORE = [
    Mutation(
        "core/update.py",
        "g / jnp.maximum(examples, 1e-8)",
        "g / size",
        UPDATE,
        "what is masked out counts",
    ),
    Mutation(
        "core/update.py",
        "gradient, examples = summed((gradient, value.count))",
        "examples = value.count",
        "tests/test_devices.py",
        "each device goes its own way",
    ),
    Mutation(
        "core/update.py",
        "position(size))",
        "jnp.arange(size))",
        "tests/test_devices.py",
        "all devices draw the same",
    ),
    Mutation(
        "core/update.py",
        "rng(state._replace(step=count), name)",
        "rng(state, name)",
        GAN_STEP,
        "all updates of a step have the same noise",
    ),
    Mutation(
        "core/update.py",
        "rng(state._replace(step=count), name)",
        'rng(state._replace(step=count), "net")',
        GAN_STEP,
        "both nets have the same noise",
    ),
    Mutation(
        "core/update.py",
        "Moving(count + 1, inner, scale)",
        "Moving(count, inner, scale)",
        UPDATE,
        "updates are not counted",
    ),
    Mutation(
        "core/update.py",
        "if scale else count)",
        "if scale else state.step)",
        UPDATE,
        "the log tells the learning rate of another update",
    ),
    Mutation(
        "core/update.py",
        "value.value * scale.factor if scale else",
        "value.value if scale else",
        HALF,
        "small gradients of float16 are lost",
    ),
    Mutation(
        "core/update.py",
        "after = optax.tree.where(overflow, before, after)",
        "pass",
        HALF,
        "an overflow makes the parameters NaN",
    ),
    Mutation(
        "core/update.py",
        "count - scale.skipped if scale",
        "count if scale",
        HALF,
        "the log gives a learning rate that skipped updates have moved",
    ),
    Mutation(
        "core/update.py",
        "overflow & (scale.factor > 1)",
        "overflow",
        HALF,
        "an overflow at a scale of 1 goes unnoticed",
    ),
    Mutation(
        "core/update.py",
        "jnp.where(overflow, 0.5,",
        "jnp.where(overflow, 0.25,",
        HALF,
        "the scale falls too fast",
    ),
    Mutation(
        "core/update.py",
        "jnp.minimum(1, clip / jnp.maximum(norm, 1e-8))",
        "clip / jnp.maximum(norm, 1e-8)",
        UPDATE,
        "small gradients are made large",
    ),
    Mutation(
        "core/update.py",
        "rows = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(",
        "rows = jax.tree.map(lambda x: x.reshape(",
        UPDATE,
        "rows come back in the order of the microbatches",
    ),
    Mutation(
        "core/update.py",
        "(jnp.add, carry[1], gradient)",
        "(jnp.subtract, gradient, carry[1])",
        UPDATE,
        "microbatches work against each other",
    ),
    Mutation(
        "core/update.py",
        "= part(carry[0], microbatch)",
        "= part(start[0], microbatch)",
        UPDATE,
        "only the last microbatch moves the batch statistics",
    ),
    Mutation(
        "core/update.py",
        "        state = _put(state, name, own)\n        if name in decays:",
        "        if name in decays:",
        CNN_STEP,
        "batch statistics stand still",
    ),
    Mutation(
        "core/update.py",
        "jnp.minimum(decay, (1 + t) / (10 + t))",
        "decay",
        UPDATE,
        "the average never forgets the first weights soon",
    ),
    Mutation(
        "core/update.py",
        "keep * a + (1 - keep) * p",
        "keep * p + (1 - keep) * a",
        UPDATE,
        "the average follows the wrong way round",
    ),
    Mutation(
        "core/update.py",
        "decays[name], count + 1)",
        "decays[name], count)",
        UPDATE,
        "the average's warm-up is one update late",
    ),
    Mutation(
        "core/update.py",
        "Aux(added(metrics), owned(after, name), rows)",
        "Aux(jax.tree.map(lambda x: x[-1], metrics), owned(after, name), rows)",
        UPDATE,
        "the metrics are those of the last update alone",
    ),
    Mutation(
        "core/update.py",
        "return after._replace(world=state.world)",
        "return after",
        UPDATE,
        "the world is lost",
    ),
    Mutation(
        "core/losses.py",
        "spread = jax.nn.logsumexp(logits, -1) - logits.mean(-1)",
        "spread = jax.nn.logsumexp(logits, -1) - logits.sum(-1)",
        CRITERIA,
        "smoothing weighs all classes whole",
    ),
    Mutation(
        "core/losses.py",
        "weights = mask[:, None] * (targets != ignored)",
        "weights = jnp.ones_like(mask)[:, None] * (targets != ignored)",
        CRITERIA,
        "padded examples count",
    ),
    Mutation(
        "core/losses.py",
        "weights = mask[:, None] * (targets != ignored)",
        "weights = mask[:, None] * jnp.ones_like(targets)",
        CRITERIA,
        "ignored targets count",
    ),
    Mutation(
        "core/losses.py",
        "targets = jnp.maximum(targets, 0)",
        "pass",
        CRITERIA,
        "ignored targets are looked up as they are",
        equivalent="-1 looks up the last class, and weighs nothing",
    ),
    Mutation(
        "core/losses.py",
        "Mean(nats.total / math.log(2), characters)",
        "Mean(nats.total, characters)",
        CRITERIA,
        "nats are called bits",
    ),
    Mutation(
        "core/losses.py",
        "predicted = logits.mean(1).argmax(-1)",
        "predicted = logits[:, 0].argmax(-1)",
        CRITERIA,
        "the first reader alone is counted",
    ),
    Mutation(
        "core/losses.py",
        "return value, Aux(metrics, moved)",
        "return value, Aux(metrics)",
        CNN_STEP,
        "batch statistics stand still",
    ),
    Mutation(
        "core/losses.py",
        "criterion, evaluated(state, name), owned(state, name), batch, None",
        "criterion, state.params[name], owned(state, name), batch, None",
        CNN_STEP,
        "the last weights are evaluated, not the averaged ones",
    ),
    Mutation(
        "core/losses.py",
        "    if rest:\n",
        "    if False:\n",
        CHUNKS,
        "the last tokens do not count where the chunks do not divide a sequence",
    ),
    Mutation(
        "core/losses.py",
        "part = jax.checkpoint(part, prevent_cse=False)",
        "part = part",
        CHUNKS,
        "the logits of every chunk are kept for the backward pass",
    ),
]

LARGE_IMAGES = "tests/test_large_images.py"

VISION = [
    Mutation(
        "data/large_images.py",
        "uniforms(seed, epoch, index, DRAWS)",
        "uniforms(seed, epoch * 0, index, DRAWS)",
        LARGE_IMAGES,
        "an image has the same part in every pass",
    ),
    Mutation(
        "data/large_images.py",
        "mask = (index < count) & readable[row]",
        "mask = index < count",
        LARGE_IMAGES,
        "unreadable images are evaluated on, as black ones",
    ),
    Mutation(
        "data/crops.py",
        "(low + (high - low) * shape) / 2",
        "(low + (high - low) * shape)",
        LARGE_IMAGES,
        "random parts have the square of their ratio",
    ),
    Mutation(
        "data/mixing.py",
        "own = criterion(outputs, targets.labels, mask * targets.share)",
        "own = criterion(outputs, targets.labels, mask * (1 - targets.share))",
        LARGE_IMAGES,
        "mixed images count for the other one's label",
    ),
    Mutation(
        "data/mixing.py",
        "1 - inside.mean()))",
        "1 - inside.any(0).mean()))",
        LARGE_IMAGES,
        "the labels of CutMix do not have the shares of the pixels",
    ),
    Mutation(
        "nets/bottleneck.py",
        "BatchNorm(zero=self.zero_init)",
        "BatchNorm(False)",
        LARGE_IMAGES,
        "blocks do not start as their shortcuts",
    ),
    Mutation(
        "learners/classify.py",
        "images = (images, others) if attack.paired else others",
        "images = (images, images) if attack.paired else images",
        "tests/test_attacks.py -k trained_and_attacked",
        "training images are not changed by the attack",
    ),
    Mutation(
        "learners/robust.py",
        "beta * apart.total",
        "apart.total",
        "tests/test_attacks.py -k trades_by_hand",
        "the weight of the divergence is 1",
    ),
    Mutation(
        "learners/robust.py",
        "jnp.exp(p) * (p - q)",
        "jnp.exp(q) * (p - q)",
        "tests/test_attacks.py -k trades_by_hand",
        "the divergence is weighed by the changed image's predictions",
    ),
    Mutation(
        "learners/robust.py",
        "(step + 1) / max(self.ramp, 1)",
        "step / max(self.ramp, 1)",
        "tests/test_attacks.py -k ramp",
        "the radius begins at 0",
    ),
    Mutation(
        "evaluation/attacks.py",
        "x + alpha * jnp.sign(gradient)",
        "x - alpha * jnp.sign(gradient)",
        "tests/test_attacks.py -k gradient_by_hand",
        "the attack lowers the loss",
    ),
    Mutation(
        "evaluation/attacks.py",
        "jnp.clip(x, images - radius, images + radius)",
        "x",
        "tests/test_attacks.py -k gradient_by_hand",
        "the attack leaves the box",
    ),
    Mutation(
        "evaluation/attacks.py",
        "return stands & right(",
        "return right(",
        "tests/test_attacks.py -k every_restart",
        "the last restart alone counts",
    ),
    Mutation(
        "evaluation/attacks.py",
        "better = other > value",
        "better = other < value",
        "tests/test_attacks.py -k without_gradients",
        "the search keeps what is worse",
    ),
    Mutation(
        "core/update.py",
        "gradient = jax.tree.map(lambda g, stays: jnp.zeros_like(g) if stays else g, gradient, frozen)",
        "pass",
        "tests/test_optimizers.py -k frozen",
        "the norm counts what is frozen",
    ),
    Mutation(
        "core/update.py",
        '"True": optax.set_to_zero()',
        '"True": tx',
        "tests/test_optimizers.py -k frozen",
        "frozen parameters decay",
    ),
    Mutation(
        "core/update.py",
        "optax.scale(factor)",
        "optax.scale(1.0)",
        "tests/test_optimizers.py -k frozen",
        "the rates of parameters do not differ",
    ),
    Mutation(
        "learners/diffusion.py",
        "noisy(x_0, epsilon, alpha_bar[t])",
        "noisy(x_0, epsilon, alpha_bar[t - 1])",
        "tests/test_diffusion.py -k by_a_loop",
        "the noise is that of the step before",
    ),
    Mutation(
        "learners/diffusion.py",
        "x_0 = 2 * batch.inputs - 1",
        "x_0 = batch.inputs",
        "tests/test_diffusion.py -k by_a_loop",
        "images are not scaled to [-1, 1]",
    ),
    Mutation(
        "learners/diffusion.py",
        "labels = jnp.where(hide, spec.classes, labels)",
        "pass",
        "tests/test_diffusion.py -k hides_labels",
        "labels are never hidden",
    ),
    Mutation(
        "learners/diffusion.py",
        "(1 - alpha_bar_before) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_before)",
        "(1 - alpha_bar_before) / (1 - alpha_bar)",
        "tests/test_diffusion.py -k posterior",
        "the variance is not the posterior's",
    ),
    Mutation(
        "learners/diffusion.py",
        "jnp.sqrt(alpha_bar_before) * x_0 + jnp.sqrt(1 - alpha_bar_before) * epsilon, None",
        "x_0, None",
        "tests/test_diffusion.py -k keeps_the_noise",
        "each step goes to the end",
    ),
    Mutation(
        "learners/segment.py",
        "counted = mask * valid.any((1, 2))",
        "counted = mask",
        "tests/test_segmentation.py -k 'by_loops or void'",
        "an image without any class counts",
    ),
    Mutation(
        "learners/segment.py",
        "losses += dice * dice_loss(logits, labels, valid)",
        "pass",
        "tests/test_segmentation.py -k by_loops",
        "the Dice loss does not count",
    ),
    Mutation(
        "learners/segment.py",
        "2 * both / jnp.maximum(sizes, 1e-8)",
        "both / jnp.maximum(sizes, 1e-8)",
        "tests/test_segmentation.py -k 'by_loops or perfect'",
        "half the Dice coefficient",
    ),
    Mutation(
        "learners/segment.py",
        "jnp.maximum(share, rarest) ** -balance",
        "share**-balance",
        "tests/test_segmentation.py -k weights",
        "a class that does not occur has an infinite weight",
    ),
    Mutation(
        "learners/restore.py",
        "jax.nn.softplus(-real) + jax.nn.softplus(fake)",
        "jax.nn.softplus(real) + jax.nn.softplus(-fake)",
        "tests/test_restore.py -k by_hand",
        "the discriminator is turned around",
    ),
    Mutation(
        "learners/restore.py",
        "real, fake = both[::2], both[1::2]",
        "real, fake = jnp.split(both, 2)",
        "tests/test_restore.py -k by_hand",
        "originals and repaired images are mixed up",
    ),
    Mutation(
        "learners/restore.py",
        "damaged.images + damaged.missing * net",
        "damaged.images + net",
        "tests/test_restore.py -k adds_to",
        "what is not missing changes",
    ),
    Mutation(
        "learners/vae.py",
        "elbo = likelihood.mean(1) - divergence",
        "elbo = likelihood.mean(1)",
        "tests/test_vae.py -k integral",
        "the bound has no divergence",
    ),
    Mutation(
        "learners/vae.py",
        "math.log(self.num_samples) - jax.nn.logsumexp(weights, 1)",
        "-jax.nn.logsumexp(weights, 1)",
        "tests/test_vae.py -k integral",
        "a sum over samples, not their mean",
    ),
    Mutation(
        "learners/vae.py",
        "(noise**2 - codes**2 + log_variance[:, None]).sum(-1) / 2",
        "(noise**2 - codes**2).sum(-1) / 2",
        "tests/test_vae.py -k integral",
        "the density of codes is not scaled",
    ),
    Mutation(
        "learners/simclr.py",
        "(row[:, None] == column) | (there == 0)",
        "there == 0",
        "tests/test_self_supervised.py -k nt_xent",
        "a view is a negative of itself",
    ),
    Mutation(
        "learners/simclr.py",
        "position(len(z)), jnp.arange",
        "jnp.arange(len(z)), jnp.arange",
        "tests/test_self_supervised.py -k all_devices",
        "each device takes its rows for the first ones",
    ),
    Mutation(
        "learners/simclr.py",
        "@ everything.T / temperature",
        "@ everything.T",
        "tests/test_self_supervised.py -k nt_xent",
        "no temperature",
    ),
    Mutation(
        "learners/mae.py",
        "hidden = 1.0 - is_kept(kept, truth.shape[1])",
        "hidden = jnp.ones(error.shape)",
        "tests/test_self_supervised.py -k hidden_patches_alone",
        "visible patches count",
    ),
    Mutation(
        "learners/mae.py",
        "(truth - centre) / scale",
        "truth",
        "tests/test_self_supervised.py -k hidden_patches_alone",
        "patches are not normalised",
    ),
    Mutation(
        "evaluation/explanations.py",
        "return jnp.abs(gradients(logits, images, classes)).max(-1)",
        "return jnp.abs(gradients(logits, images, classes)).sum(-1)",
        "tests/test_explain.py -k saliency_of_a_linear",
        "saliency adds the channels",
    ),
    Mutation(
        "evaluation/explanations.py",
        "(jnp.arange(steps) + 0.5) / steps",
        "(jnp.arange(steps) + 1.0) / steps",
        "tests/test_explain.py -k gradients_by_hand",
        "the integral is taken at the right ends",
    ),
    Mutation(
        "evaluation/explanations.py",
        "return change * total / steps",
        "return images * total / steps",
        "tests/test_explain.py -k gradients_by_hand",
        "attributions forget the baseline",
    ),
    Mutation(
        "evaluation/explanations.py",
        "images + spread * jax.vmap(normal)(keys), classes)",
        "images, classes)",
        "tests/test_explain.py -k mean_of_a_loop",
        "SmoothGrad adds no noise",
    ),
    Mutation(
        "evaluation/explanations.py",
        "weights = slopes.mean((1, 2))",
        "weights = slopes.max((1, 2))",
        "tests/test_explain.py -k grad_cam",
        "Grad-CAM's weights are not means",
    ),
    Mutation(
        "evaluation/explanations.py",
        "place = len(maps) - 1",
        "place = 0",
        "tests/test_explain.py -k weighs_its_last_block",
        "Grad-CAM weighs the first maps",
    ),
    Mutation(
        "evaluation/explanations.py",
        "kernels[0] if kernels else None",
        "kernels[-1] if kernels else None",
        "tests/test_explain.py -k weighs_its_last_block",
        "the filters are those of the last convolution",
    ),
    Mutation(
        "evaluation/explanations.py",
        "0.5 * weights.mean(2) + 0.5",
        "weights.mean(2) + 0.0",
        "tests/test_explain.py -k two_layers_by_hand",
        "roll-out forgets the residual connection",
    ),
    Mutation(
        "evaluation/explanations.py",
        "jnp.matmul(layer, below,",
        "jnp.matmul(below, layer,",
        "tests/test_explain.py -k two_layers_by_hand",
        "roll-out multiplies the layers in the wrong order",
    ),
    Mutation(
        "evaluation/explanations.py",
        "shares = rollout(attention_maps(logits, images)).mean(1)",
        "shares = rollout(attention_maps(logits, images)).mean(2)",
        "tests/test_explain.py -k softmax_in_numpy",
        "roll-out sums over the wrong tokens",
    ),
    Mutation(
        "evaluation/explanations.py",
        "order = jnp.argsort(-importance",
        "order = jnp.argsort(importance",
        "tests/test_explain.py -k planted_pixel",
        "the least important pixels are removed first",
    ),
    Mutation(
        "nets/attention.py",
        "k = jnp.repeat(k, q.shape[-2] // k.shape[-2], -2)",
        "k = jnp.tile(k, (1, 1, 1, q.shape[-2] // k.shape[-2], 1))",
        "tests/test_explain.py -k softmax_in_numpy",
        "queries meet the keys of another group",
    ),
    Mutation(
        "evaluation/groups.py",
        "(predicted - right) / (total[..., None] - true)",
        "(predicted - right) / total[..., None]",
        "tests/test_explain.py -k in_loops",
        "false positives are a share of all examples",
    ),
    Mutation(
        "evaluation/groups.py",
        "np.maximum(true_positive, false_positive)",
        "true_positive",
        "tests/test_explain.py -k two_classes",
        "equalised odds are of the true positives alone",
    ),
    Mutation(
        "evaluation/groups.py",
        "several = (~np.isnan(x)).sum(axis) > 1",
        "several = (~np.isnan(x)).sum(axis) > 0",
        "tests/test_explain.py -k one_group",
        "a single group has a difference of 0",
    ),
    Mutation(
        "evaluation/groups.py",
        "np.full(len(places), 1 / len(places)), samples)",
        "np.full(len(places), 1 / len(places)), samples) * 0 + 1",
        "tests/test_explain.py -k bootstrap",
        "bootstrap samples are all the data themselves",
    ),
    Mutation(
        "evaluation/groups.py",
        "count(random.permutation(groups), num_groups",
        "count(groups, num_groups",
        "tests/test_explain.py -k bootstrap",
        "groups by chance are the groups themselves",
    ),
    Mutation(
        "data/columns.py",
        "if set(pair[0]) != {tfds.NO_LABEL}",
        "if pair[0]",
        "tests/test_explain.py -k columns_of_a_data_set",
        "a test split without labels is taken",
    ),
]

OPTIMIZERS = [
    Mutation("core/optimizers.py", old, new, "tests/test_optimizers.py -k rmsprop", breaks)
    for old, new, breaks in (
        ("b2 * (nu + (1 - b2) * d**2)", "nu + (1 - b2) * (d**2 - nu)", "the variance is about the mean before"),
        ("mu + (1 - b2) * d, state.mu, offset", "0 * mu, state.mu, offset", "RMSProp is not centred"),
        ("g / (nu**0.5 + eps)", "g / (nu + eps) ** 0.5", "eps is inside the root"),
    )
]

WHITENED = [
    Mutation(
        file,
        old,
        new,
        f"tests/test_whitened.py -k '{tests}'",
        breaks,
    )
    for file, old, new, tests, breaks in (
        ("nets/whitened.py", "np.sqrt(values[::-1] + eps)", "np.sqrt(values + eps)", "whitened", "other eigenvalues"),
        ("nets/whitened.py", "[vectors, -vectors]", "[vectors, vectors]", "whitened", "each filter is there twice"),
        ("nets/whitened.py", "height // 2, width // 2].set", "0, 0].set", "pytorch", "channels are moved"),
        ("nets/whitened.py", "norm(max_pool(IdentityConv(width)(x)))", "max_pool(norm(IdentityConv(width)(x)))",
         "net_equals", "statistics of all pixels, not of the largest"),
        ("nets/whitened.py", "BatchNorm(self.momentum, 1e-12, scale=False)", "BatchNorm(0.9, 1e-12, scale=False)",
         "net_equals", "long averages of batch statistics"),
        ("nets/whitened.py", "return self.scale * nn.Dense", "return nn.Dense", "net_equals", "logits are not scaled"),
        ("data/images.py", "windows.transpose(0, 1, 2, 4, 5, 3)", "windows.transpose(0, 1, 2, 3, 4, 5)", "whitened",
         "moments in another order than the kernel"),
        ("core/lookahead.py", "(count / steps) ** config.power", "1", "by_hand", "the decay does not rise"),
        ("core/lookahead.py", "jnp.where(due | last, s - p, u)", "u", "by_hand",
         "parameters are not set to their average"),
        ("core/lookahead.py", "due | last", "due", "by_hand", "training does not end at the average"),
        ("core/lookahead.py", "count % config.every == 0", "state.count % config.every == 0", "by_hand",
         "the average moves an update too early"),
        ("core/update.py", "lambda count, n=n: count < n", "lambda count, n=n: count <= n", "sgd",
         "frozen an update too late"),
        ("core/optimizers.py", "d and not own", "d", "takes_the_place",
         "kernels with a decay of their own decay twice"),
        ("core/optimizers.py", "linear_schedule(config.initial_ratio, 1.0", "linear_schedule(0.0, 1.0", "triangle",
         "the warmup begins at 0"),
        ("data/augment.py", "(keys) + epoch) % 2 == 1", "(keys) + 0 * epoch) % 2 == 1", "every_other",
         "an image is flipped in each pass alike"),
        ("data/augment.py", "(keys) + epoch) % 2 == 1", "(keys) * 0 + epoch) % 2 == 1", "every_other",
         "all images are flipped at once"),
        ("data/augment.py", "n - 1 - abs(n - 1 - at %", "n - 1 - abs(n - 2 - at %", "reflected",
         "the outermost pixel is not that of the reflection"),
        ("data/augment.py", "for at in (0, 2)]", "for at in (0, 1)]", "views", "the second view is not moved"),
        ("data/augment.py", "yield weight / 2, view[:, :, ::-1]", "yield weight / 2, view[:, ::-1]", "views",
         "images stand on their heads"),
        ("learners/classify.py", "epoch, _ = positions(state.step,", "epoch, _ = positions(state.step + 1,",
         "every_other", "passes begin a batch too early"),
        ("learners/classify.py", "if rng is not None:", "if rng is None:", "views", "views in training"),
    )
]  # fmt: skip

COMPRESSION = [
    Mutation(file, old, new, f"tests/test_compression.py -k '{tests}'", breaks)
    for file, old, new, tests, breaks in (
        ("core/pruning.py", "(self.initial - final) * left**3", "(self.initial - final) * left", "schedule",
         "the schedule is no cubic"),
        ("core/pruning.py", "(count - begin) % self.every == 0", "count % self.every == 0", "schedule",
         "weights are chosen at other updates"),
        ("core/pruning.py", "jnp.abs(p + step)", "jnp.abs(p)", "come_back", "chosen by the weights before the step"),
        ("core/pruning.py", "jnp.where(stays, step, -p)", "jnp.where(stays, step, 0 * p)", "come_back",
         "pruned weights stay as they are"),
        ("core/pruning.py", "jnp.where(below <= dropped", "jnp.where(below < dropped", "sort",
         "one weight more is kept"),
        ("core/update.py", "jnp.where(p == 0, 0, a) if hit else a", "a", "averages", "averages are not pruned"),
        ("core/int8.py", "jnp.abs(x) <= bound", "jnp.abs(x) >= 0", "gradient", "clipped inputs have a gradient"),
        ("core/int8.py", "tuple(range(kernel.ndim - 1))", "None", "loop", "one scale for all outputs"),
        ("core/int8.py", "jnp.round(x.astype(jnp.float32) / scale)", "jnp.floor(x.astype(jnp.float32) / scale)", "loop",
         "integers are rounded down"),
        ("core/modules.py", 'context.method_name == "logits" and quantization', "False", "read_the_ranges",
         "the last layer is of int8, and on chunks its inputs' range is 0"),
        ("evaluation/decoding.py", "(logits, carry), _ = apply(*weights, token[:, None]",
         "(logits, carry), _ = apply(weights[0], {}, token[:, None]", "read_the_ranges", "sampling has no ranges"),
    )
]  # fmt: skip

MUTATIONS = [
    *(*COMPRESSION, *OPTIMIZERS, *WHITENED, *CLASSIFY, *SUPERVISED, *GAN, *CYCLEGAN),
    *(*DQN, *RL, *HIGHWAY, *CORE, *VISION),
]


def mutated(mutation: Mutation, root: Path = ROOT) -> str:
    """The text of the file with the change. Raises Untouched where `old` does not occur exactly once."""
    text = (root / "research" / mutation.file).read_text()
    if text.count(mutation.old) != 1:
        raise Untouched(f"{mutation.file}: {text.count(mutation.old)} times, not once: {mutation.old!r}")
    return text.replace(mutation.old, mutation.new)


def outcome(root: Path, tests: str) -> str:
    """What becomes of the tests in the tree `root`: "passed", "failed" or, where they can't tell, pytest's words."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *shlex.split(tests)]
    try:
        done = subprocess.run(
            command, cwd=root, env=cache | os.environ, timeout=LIMIT, capture_output=True, text=True, check=False
        )
    except subprocess.TimeoutExpired:
        return "failed"
    if "ERROR collecting" in done.stdout:  # pytest's exit status may be that of a failed test
        return done.stdout[-2000:]
    words = {5: "no test has such a name"}.get(done.returncode, f"{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return {0: "passed", 1: "failed"}.get(done.returncode, f"exit status {done.returncode}: {words}")


def main() -> int:
    """Makes the changes one after another. 0 where all are caught that can be."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", help="the name, without .py, of the file that is changed", metavar="NAME")
    only = parser.parse_args().only
    chosen = [mutation for mutation in MUTATIONS if only in (None, Path(mutation.file).stem)]
    if not chosen:
        parser.error(f"no change to {only}: give one of {', '.join(sorted({Path(m.file).stem for m in MUTATIONS}))}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, root / name)
        texts = [mutated(mutation) for mutation in chosen]
        for tests in sorted({mutation.tests for mutation in chosen}):
            found = outcome(root, tests)
            if found != "passed":
                raise SystemExit(f"without any change: {tests}: {found}")
        counts = {"caught": 0, "SURVIVED": 0, "equivalent": 0, "ERROR": 0}
        for mutation, text in zip(chosen, texts, strict=True):
            path = root / "research" / mutation.file
            before, started = path.read_text(), time.monotonic()
            path.write_text(text)
            found = outcome(root, mutation.tests)
            path.write_text(before)
            survived = "equivalent" if mutation.equivalent else "SURVIVED"
            verdict = {"failed": "caught", "passed": survived}.get(found, "ERROR")
            counts[verdict] += 1
            note = f" ({mutation.equivalent})" if mutation.equivalent else ""
            seconds = time.monotonic() - started
            if verdict == "ERROR":
                print(found)
            print(f"{verdict:10} {seconds:4.0f} s  {mutation.file:22} {mutation.breaks}{note}", flush=True)
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()), f"of {len(chosen)}")
    return 1 if counts["SURVIVED"] or counts["ERROR"] else 0


if __name__ == "__main__":
    sys.exit(main())
