"""A run's functions as StableHLO programs, by `jax.export`: what its model computes, and its training step.

A program is one file. JAX runs it on every platform that it was lowered for, without this package.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from research.core.bucket import located
from research.core.console import say, warn
from research.core.errors import RunError, UserError
from research.core.experiment import Experiment, Inference
from research.core.files import failing, make_directory, replacing
from research.core.state import Batch, Learner, State
from research.core.transformations import first_seed
from research.core.types import Tree
from research.nets.transformer import Stack
from research.training import config, run, workdir
from research.training.leaves import named, plain, typed

Platform = Literal["cpu", "cuda", "tpu"]

TOLERANCE = 1e-5
"""Largest difference of a program's outputs that passes the check; see `difference`. A program for batches of any size
and one for a single example sum in different orders, which changes results by about 1e-6."""

MAX_BYTES = 2**31 - 2**20
"""Size of the largest program that can be written: `jax.export` uses a format of at most 2 GiB."""


REMEDY = "make room, or choose another --output"
"""What to do where a file can't be written."""


class Differs(RunError):
    """A program computes something else than the run; the message has the difference."""


class Written(NamedTuple):
    """A program that was written to a file, read back and checked.

    path        the file
    program     what was read back
    difference  the largest one from the run's own outputs, see `difference`
    size        of the file, in bytes
    """

    path: Path
    program: export.Exported
    difference: float
    size: int


def export_run(directory: Path, output: Path, platforms: Sequence[Platform]) -> list[Written]:
    """Write the programs of the run in `directory` to `output`, each checked on the run's own data.

    The weights are in the programs of what the model computes. The training step takes the State, which state.npz
    holds. export.json describes the programs; files that are needed to interpret their inputs, such as tokenizer.json,
    are copied.

    Raises UserError where there is no run or no checkpoint, or where this device can't check the programs; RunError
    where a file can't be written or a program differs from the run.
    """
    check_platforms(platforms)
    directory, output = located(directory), located(output)
    experiment, _, state = run.load(directory)
    about = workdir.run_in(directory)
    experiment = with_xla_attention(experiment)
    learner, _ = run.build(experiment, about["seeds"], config.as_over(about))
    feeds, step, kind = experiment.feeds(), int(state.step), experiment.run.checkpoint_for_test
    workdir.check_kept(directory, feeds.kept)
    say(f"{directory}: exporting the {kind} checkpoint, step {step}")
    if not (directory / "summary.json").exists():
        warn(f"the run has not finished: it has {experiment.run.steps} steps")
    if about["seeds"] is not None:
        say(f"what the model computes is that of seed {experiment.run.seed} alone; the training step has all seeds")
    with failing("write", output, REMEDY):
        make_directory(output)
        (output / "export.json").unlink(missing_ok=True)  # it is there only where all of it is

    inferences, validation = experiment.inference(first_seed(state)), feeds.validation[0]
    if not inferences:
        warn(f"{type(experiment).__name__} does not define `inference`: only its training step is exported")
    found = {
        name: write_inference(output / f"{name}.stablehlo", inference, validation, platforms)
        for name, inference in inferences.items()
    }
    step_program = write_step(output / "step.stablehlo", learner, state, feeds.train.batch_at(step), platforms)
    for name, text in feeds.kept.items():
        with writing(output / name) as temporary:
            temporary.write_text(text)
    described = {
        "config": about["name"],
        "step": step,
        "jax": version("jax"),
        "platforms": list(platforms),
        "files": ["state.npz", *feeds.kept],
        "programs": {
            **{name: inference_signature(found[name], inference, validation) for name, inference in inferences.items()},
            "step": step_signature(step_program),
        },
    }
    with writing(output / "export.json") as temporary:
        temporary.write_text(json.dumps(described, indent=2) + "\n")
    return [*found.values(), step_program]


def check_platforms(platforms: Sequence[Platform]) -> None:
    """Raise UserError unless the platforms have that of this process, where the programs are checked."""
    here = jax.default_backend().replace("gpu", "cuda")
    if here not in platforms:
        raise UserError(f"--platforms must have {here}: programs are checked on the device that exports them")


def with_xla_attention(experiment: Experiment) -> Experiment:
    """The experiment without cuDNN's attention, which other versions of JAX and cuDNN may not be able to load."""
    net: Any = getattr(experiment, "net", None)
    stacks = {name: value for name, value in vars(net).items() if isinstance(value, Stack)} if net else {}
    if not stacks:
        return experiment
    xla = {name: replace(stack, attention="xla") for name, stack in stacks.items()}
    return replace(experiment, net=net.clone(**xla))  # type: ignore[call-arg]


def write_inference(path: Path, inference: Inference, validation: Batch, platforms: Sequence[Platform]) -> Written:
    """The program of `inference`, weights inside, for batches of any size where it can be traced for them."""
    inputs = tuple(map(np.asarray, inference.inputs(validation).values()))
    # With the weights as constants here too: compilers compute products of them ahead, and round otherwise.
    expected = jax.jit(inference.function)

    def checked(shapes: Any, examples: list[Any]) -> Written:
        return written(path, inference.function, shapes, platforms, [(x, expected(*x)) for x in examples])

    try:
        return checked(any_batch(inputs), [inputs, tuple(x[:1] for x in inputs)])
    except RunError:
        raise
    except Exception as error:  # a net may do with a shape whatever is done with numbers alone
        warn(f"{path.stem}: batches must have {len(inputs[0])} examples, not any number: {str(error).splitlines()[0]}")
        return checked(inputs, [inputs])


def any_batch(inputs: Tree) -> Tree:
    """The shapes of inputs [batch, ...] with the symbol `batch` for the number of examples."""
    return export.symbolic_args_specs(inputs, "batch, ...")


def write_step(path: Path, learner: Learner, state: State, batch: Batch, platforms: Sequence[Platform]) -> Written:
    """The program of the training step, on leaves by name, see `flat_step`; beside it state.npz, which it is run on."""
    with writing(path.with_name("state.npz")) as temporary:
        np.savez(temporary, **jax.device_get(stored(state)))
        leaves = dict(np.load(temporary)), named(batch)

    def checked(step: Callable) -> Written:
        after, metrics = step(state, batch)
        examples = [(leaves, (stored(after), named(metrics)))]
        return written(path, flat_step(learner, state, batch), leaves, platforms, examples)

    try:
        return checked(jax.jit(learner.step))
    except Differs as error:
        # XLA may round a program for several platforms otherwise, and Adam magnifies gradients that are but rounding.
        found = checked(lowered(learner.step, (state, batch), platforms).call)
        warn(f"{error}, by rounding alone: it equals the run's step, lowered for the same platforms")
        return found


def stored(state: State) -> dict[str, Any]:
    """The leaves of a State as NumPy's files can hold them: bfloat16, which they can't, as float32 of equal values."""
    return {name: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x for name, x in plain(named(state)).items()}


def flat_step(learner: Learner, state: State, batch: Batch) -> Callable[[Tree, Tree], tuple[Tree, Tree]]:
    """`learner.step` on dicts of leaves, (state, batch) -> (state, metrics), for a State and a batch of these shapes.

    Names are those of a checkpoint, e.g. "params/net/Dense_0/kernel"; a PRNG key is its u32 data, and the State's
    bfloat16 is float32, see `stored`. Then a reader of the program needs none of this package's classes.
    """
    state_shapes, batch_shapes = jax.eval_shape(lambda *trees: trees, state, batch)

    def filled(shapes: Tree, leaves: Mapping[str, Any]) -> Any:
        def value(name: str, shape: Any) -> Any:
            found = typed(leaves.get(name), shape)
            return found.astype(jnp.bfloat16) if shape.dtype == jnp.bfloat16 else found

        values = [value(name, shape) for name, shape in named(shapes).items()]
        return jax.tree.unflatten(jax.tree.structure(shapes), values)

    def step(state: Tree, batch: Tree) -> tuple[Tree, Tree]:
        after, metrics = learner.step(filled(state_shapes, state), filled(batch_shapes, batch))
        return stored(after), named(metrics)

    return step


def lowered(function: Callable, arguments: Any, platforms: Sequence[Platform]) -> export.Exported:
    """`function` as a program for arguments of these shapes, lowered for the platforms."""
    return export.export(jax.jit(function), platforms=platforms)(*arguments)


def written(
    path: Path, function: Callable, shapes: Any, platforms: Sequence[Platform], examples: Sequence[tuple[Any, Any]]
) -> Written:
    """Write `function` as a program for arguments of these shapes, read it back and run it on the examples.

    examples: (arguments, the run's own outputs)

    Raises Differs, and leaves no file, where the outputs differ by more than `TOLERANCE`.
    """
    program = lowered(function, shapes, platforms)
    size = len(program.mlir_module_serialized)
    if size > MAX_BYTES:
        raise RunError(
            f"{path.name} would have {size / 2**30:.1f} GiB, and at most 2 can be exported: use a smaller net"
        )
    with writing(path) as temporary:
        temporary.write_bytes(program.serialize())
        back = export.deserialize(bytearray(temporary.read_bytes()))
        size = temporary.stat().st_size
        apart = max(difference(back.call(*arguments), outputs) for arguments, outputs in examples)
        if not apart <= TOLERANCE:
            raise Differs(f"{path.name} differs from the run by {apart:.1e}, more than {TOLERANCE:.0e}")
    return Written(path, back, apart, size)


def difference(outputs: Tree, expected: Tree) -> float:
    """The largest difference of a leaf's numbers, relative to the largest of the numbers expected there.

    Of whole numbers, the difference itself. NaN or infinite where a number is not finite and the other isn't the same.
    """

    def of_leaf(a: Any, b: Any) -> float:
        whole = not jnp.issubdtype(b.dtype, jnp.floating)
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        with np.errstate(invalid="ignore"):
            apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0, np.abs(a - b)).max(initial=0)
        largest = np.abs(b[np.isfinite(b)]).max(initial=0)
        return float(apart if whole else apart / (largest or 1))

    return float(np.max(jax.tree.leaves(jax.tree.map(of_leaf, outputs, expected)), initial=0))


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a path to write to in place of `path`, see `replacing`. Raise RunError where that fails."""
    with failing("write", path, REMEDY), replacing(path) as temporary:
        yield temporary


def inference_signature(written: Written, inference: Inference, validation: Batch) -> dict[str, Any]:
    """What export.json says of a program of `Experiment.inference`."""
    names = [*inference.inputs(validation)]
    inputs, output = signature(written.program)
    return {
        "file": written.path.name,
        "inputs": dict(zip(names, inputs, strict=True)),
        "outputs": {inference.output: output},
        "about": inference.about,
        **({"names": list(inference.names)} if inference.names else {}),
        "use": f"{inference.output} = {_loaded(written)}.call({', '.join(names)})",
    }


def step_signature(written: Written) -> dict[str, Any]:
    """What export.json says of the program of the training step."""
    (state, batch), (_, metrics) = signature(written.program)
    return {
        "file": written.path.name,
        "inputs": {"state": state, "batch": batch},
        "outputs": {"state": "as the input", "metrics": metrics},
        "about": "One training step. Leaves of metrics add up over steps; a mean is its total divided by its count.",
        "use": f"state, metrics = {_loaded(written)}.call(dict(numpy.load('state.npz')), batch)",
    }


def _loaded(written: Written) -> str:
    return f"jax.export.deserialize(bytearray(open('{written.path.name}', 'rb').read()))"


def signature(program: export.Exported) -> tuple[Any, Any]:
    """The positional arguments and the outputs of a program, a dict {"shape", "dtype"} for each array.

    A size that callers choose is a name in the shape.
    """

    def described(aval: Any) -> dict[str, Any]:
        sizes = [size if isinstance(size, int) else str(size) for size in aval.shape]
        return {"shape": sizes, "dtype": aval.dtype.name}

    arguments, _ = jax.tree.unflatten(program.in_tree, map(described, program.in_avals))
    return arguments, jax.tree.unflatten(program.out_tree, map(described, program.out_avals))
