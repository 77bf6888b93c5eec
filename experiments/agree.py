"""Does it train as PyTorch does? python -m experiments.agree [NAME] [--steps N]: the losses of both, step by step.

A language model without dropout, from the same initial weights, on the same batches, with the same AdamW, schedule and
clipping, in float32. Needs PyTorch (the extra `bench`).
"""

import dataclasses
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import tyro
from flax.traverse_util import flatten_dict

from experiments.console import check_output, print_table, script
from experiments.results import provenance
from research.core.errors import NotInstalled, UserError
from research.core.files import write_json
from research.core.optimizers import schedule
from research.core.state import Batch
from research.core.update import UpdateConfig
from research.learners.language import Language
from research.nets.transformer import LanguageModel
from research.training import config

SHOWN = 10
"""Losses in the table."""


def agree(
    name: tyro.conf.Positional[str] = "shakespeare_transformer", steps: int = 50, output: Path | None = None
) -> None:
    """Trains both and prints their losses, and how far they are apart at most.

    Args:
        name: a config of a Transformer language model with learned positions and AdamW
        steps: number of training steps
        output: JSON file that the figures are written to, for `experiments.results`
    """
    if steps < 1:
        raise UserError(f"--steps must be at least 1, not {steps}")
    check_output(output)
    if importlib.util.find_spec("torch") is None:
        raise NotInstalled("this needs PyTorch: pip install -e .[bench]")
    experiment = without_dropout(config.load(name))
    feed = experiment.feeds().train
    ours, start = jax_losses(experiment, [feed.batch_at(step) for step in range(steps)])
    theirs = torch_losses(experiment, start, (feed.batch_at(step) for step in range(steps)))
    shown = [(step, ours[step], theirs[step]) for step in sorted({*np.linspace(0, steps - 1, SHOWN).astype(int)})]
    rows = [(str(step + 1), f"{a:.6f}", f"{b:.6f}", f"{a - b:.1e}") for step, a, b in shown]
    print_table(("step", "samestep", "PyTorch", "difference"), rows, f"{name}: training loss")
    largest = float(np.abs(np.subtract(ours, theirs)).max())
    print(f"largest difference in {steps} steps: {largest:.1e} nats")
    if output is not None:
        measured = provenance(f"python -m experiments.agree {name} --steps {steps}", jax.devices()[0].device_kind)
        losses = {"first_loss": ours[0], "last_loss": ours[-1], "largest_difference": largest}
        write_json(output, {"about": measured, "steps": steps, **losses})


def without_dropout(experiment: object) -> Language:
    """The experiment with no dropout, in float32. Raises UserError where PyTorch's net here is not the same."""
    net = experiment.net if isinstance(experiment, Language) else None
    if not isinstance(experiment, Language) or not isinstance(net, LanguageModel):
        raise UserError("expected the config of a Transformer language model")
    stack, optimizer = net.stack, experiment.optimizer
    same = (stack.positions, stack.norm, stack.activation, stack.num_kv_heads, stack.mlp_dim, optimizer.name, net.tied)
    if same != ("learned", "pre", "gelu", None, None, "adamw", True):
        raise UserError("expected learned positions, pre-norm, GELU, no groups, tied embeddings and AdamW")
    plain = net.clone(stack=dataclasses.replace(stack, dropout=0.0, attention_dropout=0.0))
    return dataclasses.replace(experiment, net=plain, update=UpdateConfig(clip=experiment.update.clip))


def jax_losses(experiment: Language, batches: list[Batch]) -> tuple[list[float], dict[str, np.ndarray]]:
    """Our losses, and the initial parameters by name."""
    learner = experiment.build()
    state = jax.jit(learner.init)(jax.random.key(experiment.run.seed))
    start = {"/".join(path): np.array(x) for path, x in flatten_dict(jax.device_get(state.params["net"])).items()}
    step, losses = jax.jit(learner.step, donate_argnums=0), []
    for batch in batches:
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"].value))
    return losses, start


def torch_losses(experiment: Language, start: dict[str, np.ndarray], batches: Iterator[Batch]) -> list[float]:
    """PyTorch's losses from these parameters."""
    import torch
    from torch.nn.functional import cross_entropy

    from experiments import baselines

    torch.set_num_threads(os.cpu_count() or 1)
    how, rate = experiment.optimizer, schedule(experiment.optimizer, experiment.run.steps)
    net = baselines.LanguageModel(experiment.net.stack, experiment.data.context, experiment.data.spec().classes)
    baselines.copy(start, net)
    decayed = [p for p in net.parameters() if p.ndim > 1]
    groups = [
        {"params": decayed, "weight_decay": how.weight_decay},
        {"params": [p for p in net.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=1.0, betas=how.betas, eps=how.eps)
    losses, tensor = [], lambda x: torch.from_numpy(np.array(x)).long()
    for step, batch in enumerate(batches):
        for group in adam.param_groups:
            group["lr"] = float(rate(step))
        adam.zero_grad()
        loss = cross_entropy(net(tensor(batch.inputs)).flatten(0, 1), tensor(batch.targets).flatten())
        loss.backward()
        if experiment.update.clip is not None:
            torch.nn.utils.clip_grad_norm_(net.parameters(), experiment.update.clip)
        adam.step()
        losses.append(loss.item())
    return losses


main = script("agree", __doc__, agree)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
