"""GANs: losses, penalties and layers against hand computations and PyTorch; what the learners do."""

from dataclasses import dataclass, replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from learners import EXPERIMENTS

from experiments.console import status
from research.core.errors import UserError
from research.core.experiment import Run
from research.core.modules import network
from research.core.optimizers import Optimizer
from research.core.state import evaluated, example_keys, fold_name, rng
from research.core.transformations import scan_steps, with_feed
from research.data.feed import prefetched
from research.data.images import Arrays, Images
from research.data.order import indices
from research.data.unpaired import Unpaired, splits
from research.evaluation.samples import latent_inputs
from research.learners.cyclegan import query_pool
from research.learners.gan import GAN, LOSSES, STATISTICS, gradient_norm_squared, gradient_penalty
from research.nets import cyclegan, dcgan, residual
from research.nets import gan as nets
from research.nets.conv import BatchNorm, _lax_transposed, convolve_transposed, recomputed_statistics
from research.training import checkpoint, config, run


@pytest.fixture(scope="module")
def torch():
    """PyTorch, on one thread; what needs it skips where it isn't there."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    return torch


TINY = EXPERIMENTS["gan"]


@pytest.fixture(scope="module")
def tiny():
    """(feeds; init, step and evaluation of TINY, compiled)"""
    learner = TINY.build()
    return TINY.feeds(), jax.jit(learner.init), jax.jit(learner.step), jax.jit(learner.evaluate)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def inward(x):
    """PyTorch's [batch, channels, height, width] in the nets' order."""
    return np.asarray(x).transpose(1, 2, 3, 0)


# ---- losses


def test_losses_by_hand():
    s = np.array([-2.0, 0.0, 0.5, 3.0])
    sigmoid = 1 / (1 + np.exp(-s))
    expected = {
        "non_saturating": (-np.log(sigmoid), -np.log(1 - sigmoid), -np.log(sigmoid)),
        "least_squares": ([4.5, 0.5, 0.125, 2], [2, 0, 0.125, 4.5], [4.5, 0.5, 0.125, 2]),
        "hinge": ([3, 1, 0.5, 0], [0, 1, 1.5, 4], -s),
        "wasserstein": (-s, s, -s),
    }
    assert expected.keys() == LOSSES.keys()
    for name, values in expected.items():
        for found, value in zip(LOSSES[name], values, strict=True):
            np.testing.assert_allclose(found(jnp.array(s)), value, rtol=1e-5, atol=1e-6, err_msg=name)
        assert np.isfinite(LOSSES[name].real(jnp.array([-200.0, 200.0]))).all()


W1, W2 = normal(0, 12, 7), normal(1, 7)


def test_penalties_and_their_gradients_are_those_of_autograd(torch):
    """Of a critic of two layers; the gradient with respect to its kernel takes a second derivative."""
    reals, fakes, epsilon = normal(2, 4, 2, 2, 3), normal(3, 4, 2, 2, 3), np.array([0, 0.3, 0.5, 1], np.float32)
    critic = lambda x, w: jnp.tanh(x.reshape(len(x), -1) @ w) @ W2

    def by_torch(x, w, of):
        x = torch.tensor(x, requires_grad=True)
        score = torch.tanh(x.reshape(len(x), -1) @ w) @ torch.tensor(W2)
        (gradient,) = torch.autograd.grad(score.sum(), x, create_graph=True)
        return of(gradient.reshape(len(x), -1))

    share = epsilon[:, None, None, None]
    cases = [
        (lambda w: gradient_penalty(lambda x: critic(x, w), reals, fakes, epsilon), share * reals + (1 - share) * fakes,
         lambda g: (g.norm(dim=1) - 1) ** 2),
        (lambda w: gradient_norm_squared(lambda x: critic(x, w), reals), reals, lambda g: (g**2).sum(1)),
    ]  # fmt: skip
    for mine, x, of in cases:
        w = torch.tensor(W1, requires_grad=True)
        expected = by_torch(x, w, of)
        np.testing.assert_allclose(mine(W1), expected.detach(), rtol=1e-4)
        expected.mean().backward()
        np.testing.assert_allclose(jax.grad(lambda w, f=mine: f(w).mean())(W1), w.grad, rtol=1e-3, atol=1e-5)


def test_penalties_by_hand():
    """The gradient of half the squared norm of an image is that image."""
    critic = lambda x: (x**2).sum((1, 2, 3)) / 2
    reals, fakes, epsilon = normal(2, 4, 2, 2, 3), normal(3, 4, 2, 2, 3), np.array([0, 0.3, 0.5, 1], np.float32)
    norm = lambda x: np.sqrt((x**2).sum((1, 2, 3)))
    between = np.stack([e * real + (1 - e) * fake for e, real, fake in zip(epsilon, reals, fakes, strict=True)])
    np.testing.assert_allclose(gradient_penalty(critic, reals, fakes, epsilon), (norm(between) - 1) ** 2, rtol=1e-5)
    np.testing.assert_allclose(gradient_norm_squared(critic, reals), norm(reals) ** 2, rtol=1e-5)


def test_a_flat_critic_has_a_finite_penalty():
    images = jnp.ones((2, 2, 2, 1))
    value, gradient = jax.value_and_grad(
        lambda w: gradient_penalty(lambda x: w * x.sum((1, 2, 3)), images, images, jnp.zeros(2)).sum()
    )(0.0)
    assert value == pytest.approx(2, rel=1e-4) and np.isfinite(gradient)


def test_the_discriminators_loss_is_the_sum_of_its_parts():
    """One step's metric against the nets called one by one: Algorithm 1 of Gulrajani et al. 2017, with R1 added."""
    experiment = replace(
        TINY,
        generator=nets.DenseGenerator(widths=(8,)),
        discriminator=nets.DenseDiscriminator(widths=(8,)),
        loss="wasserstein",
        gradient_penalty=10.0,
        r1=3.0,
        average=None,
    )
    learner, feed = experiment.build(), experiment.feeds().train
    state, batch = jax.jit(learner.init)(jax.random.key(1)), feed.batch_at(0)
    _, metrics = jax.jit(learner.step)(state, batch)
    # The noise and epsilon of an example are drawn by its position in the batch.
    keys = example_keys(rng(state, "discriminator"), jnp.arange(32))
    z = jax.vmap(lambda k: jax.random.normal(k, (4,)))(fold_name(keys, "noise"))
    epsilon = jax.vmap(jax.random.uniform)(fold_name(keys, "epsilon"))
    made = experiment.samples(state, z, batch.targets)
    reals = batch.inputs / 127.5 - 1
    critic = network(nets.DenseDiscriminator(widths=(8,)))
    score = lambda x: critic.apply(state.params["discriminator"], {}, (x, batch.targets))[0]

    @jax.jit
    def parts(reals, made):
        return (
            score(made),
            score(reals),
            10 * gradient_penalty(score, reals, made, epsilon),
            1.5 * gradient_norm_squared(score, reals),
        )

    of_made, of_reals, penalty, r1 = map(np.asarray, parts(reals, made))
    loss = (of_made - of_reals + penalty + r1).mean()
    assert metrics["discriminator_loss"].value == pytest.approx(float(loss), rel=1e-4)
    assert metrics["real_score"].value == pytest.approx(float(of_reals.mean()), rel=1e-4)


# ---- layers


@pytest.mark.parametrize("kernel", [3, 4])
def test_transposed_convolution_is_torchs(torch, kernel):
    module = torch.nn.ConvTranspose2d(5, 3, kernel, 2, 1, output_padding=4 - kernel, bias=False)
    x, w = normal(0, 2, 5, 4, 6), module.weight.detach().numpy().transpose(2, 3, 0, 1)
    expected = inward(module(torch.tensor(x)).detach())
    for f in (convolve_transposed, _lax_transposed):
        np.testing.assert_allclose(jax.jit(f)(inward(x), w), expected, atol=1e-5)
    # On the CPU, the gradients are those of the lowering elsewhere.
    cotangent = normal(1, *expected.shape)
    mine, other = (
        jax.vjp(f, jnp.array(inward(x)), jnp.array(w))[1](cotangent) for f in (convolve_transposed, _lax_transposed)
    )
    for a, b in zip(mine, other, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    with pytest.raises(ValueError, match="3 or 4"):
        convolve_transposed(inward(x), np.zeros((5, 5, 5, 3)))


@pytest.mark.parametrize("kernel, stride, pad", [(4, 2, 1), (4, 1, 1), (3, 2, 1), (1, 1, 0)])
def test_strided_convolution_is_torchs(torch, kernel, stride, pad):
    module = torch.nn.Conv2d(5, 3, kernel, stride, pad)
    x = normal(0, 2, 5, 8, 6)
    params = {
        "Weight_0": {"kernel": module.weight.detach().numpy().transpose(2, 3, 1, 0)},
        "bias": module.bias.detach().numpy(),
    }
    found = nets.Conv(3, kernel, stride, pad).apply({"params": params}, inward(x), False)
    np.testing.assert_allclose(found, inward(module(torch.tensor(x)).detach()), atol=1e-5)


def test_norms_are_torchs(torch):
    x = normal(0, 2, 5, 4, 6) * 3 + 1
    expected = {
        "instance": torch.nn.InstanceNorm2d(5)(torch.tensor(x)),
        "layer": torch.nn.functional.layer_norm(torch.tensor(x), (5, 4, 6)),
        "none": torch.tensor(x),
    }
    for kind, value in expected.items():
        norm = nets.Norm(kind)
        variables = norm.init(jax.random.key(0), inward(x), True)
        np.testing.assert_allclose(norm.apply(variables, inward(x), True), inward(value), atol=1e-5, err_msg=kind)


def test_spectral_norm_is_that_of_the_singular_values(torch):
    weight = nets.Weight((3, 3, 4, 6), spectral=True)
    variables = weight.init(jax.random.key(0), True)
    kernel = np.asarray(variables["params"]["kernel"])
    matrix = kernel.reshape(-1, 6)
    first, moved = weight.apply(variables, True, mutable=["batch_stats"])
    # One pass: W / (left W right), left = W u, right = W' left, of length 1 each.
    unit = lambda v: v / np.linalg.norm(v)
    left = unit(matrix @ np.asarray(variables["batch_stats"]["u"]))
    right = unit(matrix.T @ left)
    np.testing.assert_allclose(moved["batch_stats"]["u"], right, rtol=1e-4)
    np.testing.assert_allclose(first, kernel / (left @ matrix @ right), rtol=1e-4)
    apply = jax.jit(lambda variables: weight.apply(variables, True, mutable=["batch_stats"]))
    for _ in range(100):
        found, moved = apply({**variables, **moved})
    exact = kernel / np.linalg.svd(matrix, compute_uv=False)[0]
    np.testing.assert_allclose(found, exact, rtol=1e-4)
    # Evaluation moves nothing. The gradient takes the singular vectors for constants, as PyTorch's does.
    still = {**variables, **moved}
    np.testing.assert_allclose(weight.apply(still, False), exact, rtol=1e-4)
    target = normal(1, *kernel.shape)
    product = lambda k: (weight.apply({"params": {"kernel": k}, **moved}, False) * target).sum()
    layer = torch.nn.Linear(36, 6, bias=False)
    layer.weight.data = torch.tensor(matrix.T.copy())
    layer = torch.nn.utils.parametrizations.spectral_norm(layer, n_power_iterations=100)
    (layer.weight * torch.tensor(target.reshape(-1, 6).T.copy())).sum().backward()
    expected = layer.parametrizations.weight.original.grad.numpy().T
    np.testing.assert_allclose(jax.jit(jax.grad(product))(kernel).reshape(-1, 6), expected, rtol=1e-3, atol=1e-3)


def test_residual_resampling():
    x = normal(0, 2, 4, 6, 3)
    np.testing.assert_array_equal(residual.upsample(x), x.repeat(2, 1).repeat(2, 2))
    np.testing.assert_allclose(residual.downsample(residual.upsample(x)), x, rtol=1e-6)


# ---- nets


def shape_of(net, inputs):
    return jax.eval_shape(lambda: net.init_with_output(jax.random.key(0), inputs)[0]).shape


def compiled(net):
    """(init, apply); of NumPy's random kernels, larger than the nets' own."""
    constant = {"scale": np.ones, "var": np.ones, "bias": np.zeros, "mean": np.zeros}

    def init(seed, inputs):
        random = np.random.default_rng(seed)
        draw = lambda path, x: constant.get(path[-1].key, lambda shape: random.normal(0, 0.2, shape))(x.shape)
        shapes = jax.eval_shape(lambda: network(net).init(jax.random.key(0), inputs))
        return jax.tree.map_with_path(lambda path, x: draw(path, x).astype(np.float32), shapes)

    return init, jax.jit(network(net).apply)


@pytest.mark.parametrize("side, channels, halvings, classes", [(28, 1, 2, 0), (32, 3, 3, 10)])
def test_nets_make_and_read_images_of_the_datas_size(side, channels, halvings, classes):
    shape, labels = (side, side, channels), jnp.zeros(2, jnp.int32)
    for generator in (dcgan.DCGANGenerator, residual.ResidualGenerator, nets.DenseGenerator):
        net = generator((4,) * halvings, shape=shape, classes=classes)
        assert shape_of(net, (jnp.zeros((2, 5)), labels)) == (2, *shape)
    for net in (
        dcgan.DCGANDiscriminator((4,) * halvings, classes=classes),
        residual.ResidualDiscriminator((4,) * 4, classes=classes),
        nets.DenseDiscriminator((4,), classes=classes),
    ):
        assert shape_of(net, (jnp.zeros((2, *shape)), labels)) == (2,)


def test_dcgans_dense_layers_by_hand():
    """With 1x1 of an image left, by NumPy: noise -> dense -> image; image -> dense -> score."""
    labels, image = jnp.zeros(3, jnp.int32), normal(0, 3, 2, 2, 1)
    init, apply = compiled(dcgan.DCGANDiscriminator((4,), hidden=5, norm="layer"))
    params, _ = init(1, (image, labels))
    rectified = lambda x: np.maximum(0.2 * x, x)
    kernel = np.asarray(params["stem"]["Weight_0"]["kernel"])[1:3, 1:3]  # the rest meets the padding
    x = rectified(np.einsum("bhwc,hwcd->bd", np.asarray(image), kernel) + params["stem"]["bias"])
    x = x @ params["Dense_0"]["Weight_0"]["kernel"] + params["Dense_0"]["bias"]
    x = rectified((x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5))
    score = x @ params["head"]["Dense_0"]["Weight_0"]["kernel"]
    np.testing.assert_allclose(apply(params, {}, (image, labels))[0], score[:, 0], atol=1e-5)

    z = normal(2, 3, 6)
    init, apply = compiled(dcgan.DCGANGenerator((4,), hidden=5, norm="none", shape=(2, 2, 1)))
    params, _ = init(3, (z, labels))
    dense = lambda x, p: np.maximum(x @ p["Weight_0"]["kernel"] + p["bias"], 0)
    x = dense(dense(np.asarray(z), params["stem"]), params["ProjectAndReshape_0"]["Dense_0"])
    kernel = np.asarray(params["head"]["Weight_0"]["kernel"])[1:3, 1:3]
    images = np.tanh(np.einsum("bc,hwcd->bhwd", x, kernel) + params["head"]["bias"])
    np.testing.assert_allclose(apply(params, {}, (z, labels))[0], images, atol=1e-5)


def test_sizes_are_the_papers():
    image = jnp.zeros((1, 256, 256, 3))

    def of(net):
        """(the number of parameters, the outputs' shape)"""
        outputs, variables = jax.eval_shape(lambda: net.init_with_output(jax.random.key(0), image))
        return sum(p.size for p in jax.tree.leaves(variables["params"])), outputs.shape

    # What PyTorch counts of CycleGAN's nets is 11.378 M and 2.765 M, of which biases before an instance norm, which
    # takes them away again and ours do not have, are 5,312 less 3 of a whole and 896.
    biases = 64 + 128 + 256 + 9 * 2 * 256 + 128 + 64
    assert of(cyclegan.CycleGenerator()) == (11_378_179 - biases, image.shape)
    assert of(cyclegan.PatchDiscriminator()) == (2_764_737 - (128 + 256 + 512), (1, 30, 30))


def test_instance_norms_do_not_see_brightness_and_layer_norms_do():
    image = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 16, 16, 3)).astype(np.float32)
    for norm, least, most in (("instance", 0, 1e-4), ("layer", 1e-3, 2)):
        init, apply = compiled(cyclegan.CycleGenerator(4, 1, 3, norm))
        params, _ = init(1, image)
        before, after = (np.asarray(apply(params, {}, x)[0]) for x in (image, image + np.float32(0.3)))
        change = np.abs(after - before).max()
        assert least <= change <= most, norm


def test_sizes_that_cannot_be_are_mistakes():
    net = dcgan.DCGANGenerator((4, 4, 4), shape=(28, 28, 1))
    inputs = jnp.zeros((1, 5)), jnp.zeros(1, jnp.int32)
    with pytest.raises(UserError, match=r"generator.widths: images of 28x28 can be halved 2 times at most, not 3"):
        shape_of(net, inputs)
    with pytest.raises(UserError, match="27x27 can be halved 0 times at most, not 3"):
        shape_of(net.clone(shape=(27, 27, 1)), inputs)
    with pytest.raises(UserError, match=r"discriminator.widths.*8x8 can be halved 3 times at most, not 4"):
        shape_of(dcgan.DCGANDiscriminator((4,) * 4), (jnp.zeros((1, 8, 8, 1)), inputs[1]))
    with pytest.raises(UserError, match="fewer widths"):
        shape_of(cyclegan.PatchDiscriminator(), jnp.zeros((1, 8, 8, 1)))
    with pytest.raises(UserError, match="generator: images of 30x30 can be halved 1 times at most, not 2"):
        shape_of(cyclegan.CycleGenerator(), jnp.zeros((1, 30, 30, 1)))
    with pytest.raises(UserError, match=r"generator\.kernel_size must be odd, not 4"):
        cyclegan.CycleGenerator(kernel_size=4)
    with pytest.raises(UserError, match="batch normalisation couples them"):
        replace(TINY, gradient_penalty=10.0)


@pytest.mark.parametrize("widths, hidden", [((4, 4), 6), ((4, 4, 4), 0)])
def test_an_instance_norm_of_one_pixel_is_refused(widths, hidden):
    """It makes 0 of a dense layer, and of an image of 8x8 that is halved three times: nothing hangs on the input."""
    labels = jnp.zeros(1, jnp.int32)
    generator = dcgan.DCGANGenerator(widths, hidden, "instance", shape=(8, 8, 1))
    discriminator = dcgan.DCGANDiscriminator(widths, hidden, "instance")
    for net, x in ((generator, jnp.zeros((1, 5))), (discriminator, jnp.zeros((1, 8, 8, 1)))):
        with pytest.raises(UserError, match="norm instance makes 0 of every dense layer"):
            shape_of(net, (x, labels))
        assert shape_of(net.clone(widths=(4, 4), hidden=0), (x, labels))


def test_the_label_matters_where_it_is_read():
    z, images = normal(0, 2, 4), normal(1, 2, 8, 8, 1)
    cases = [
        (dcgan.DCGANGenerator((4, 4), shape=(8, 8, 1)), z),
        (residual.ResidualDiscriminator((4, 4)), images),
        (nets.DenseDiscriminator((4,)), images),
    ]
    for net, x in cases:
        for classes in (0, 3):
            init, apply = compiled(net.clone(classes=classes))
            one, other = (apply(*init(0, (x, labels)), (x, labels))[0] for labels in np.array([[0, 0], [1, 1]]))
            assert np.array_equal(one, other) == (classes == 0)


# ---- learning


@dataclass(frozen=True)
class Ring(Images):
    """Eight Gaussians on a ring, as images of one pixel with two channels."""

    def arrays(self):
        luck = np.random.default_rng(0)
        modes = luck.integers(8, size=10_000, dtype=np.int32)
        angle = modes * np.pi / 4
        points = 0.75 * np.stack([np.cos(angle), np.sin(angle)], 1) + luck.normal(0, 0.02, (len(modes), 2))
        images = np.round((points + 1) * 127.5).astype(np.uint8).reshape(-1, 1, 1, 2)
        return Arrays(images[:9000], modes[:9000], images[9000:], modes[9000:], tuple("01234567"))


def test_a_ring_of_eight_gaussians_is_reached_all_round(optimised):
    adam = Optimizer(learning_rate=2e-3, b1=0.5, b2=0.9, schedule="linear")
    experiment = GAN(
        data=Ring(batch=64),
        generator=nets.DenseGenerator((64, 64)),
        discriminator=nets.DenseDiscriminator((64, 64)),
        latent=8,
        r1=0.05,
        average=0.99,
        generator_optimizer=adam,
        discriminator_optimizer=adam,
        run=Run(steps=4000),
    )
    learner, feed = experiment.build(), experiment.feeds().train
    state = jax.jit(learner.init)(jax.random.key(0))
    state, _ = jax.jit(lambda s, f: scan_steps(with_feed(learner.step, f), 4000)(s, None))(state, feed)
    made = np.asarray(experiment.samples(state, *latent_inputs(0, 2000, 8, 8))).reshape(-1, 2)
    angle = np.arange(8) * np.pi / 4
    distance = np.linalg.norm(made[:, None] - 0.75 * np.stack([np.cos(angle), np.sin(angle)], 1), axis=-1)
    near = distance.min(1) < 0.1  # five standard deviations
    shares = np.bincount(distance.argmin(1)[near], minlength=8) / len(made)
    assert near.mean() > 0.85 and shares.min() > 0.06, (near.mean(), shares)


def test_a_step_reads_a_batch_for_each_critic_update():
    experiment = replace(TINY, num_updates=4)
    batch = experiment.feeds().train.batch_at(3)
    np.testing.assert_array_equal(batch.index, indices(3, 128, 1294, 0, np))
    assert experiment.divisible()["data.batch"] == 32


def test_the_average_is_what_is_evaluated_and_sampled(tiny):
    feeds, init, step, evaluate = tiny
    state = init(jax.random.key(0))
    before = state.collections["average"]["generator"]
    after, _ = step(state, feeds.train.batch_at(0))
    keep = 2 / 11  # of the first update: (1 + 1) / (10 + 1)
    expected = jax.tree.map(lambda a, p: keep * a + (1 - keep) * p, before, after.params["generator"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.collections["average"]["generator"], expected
    )
    elsewhere = after._replace(params={**after.params, "generator": jax.tree.map(jnp.zeros_like, before)})
    score = lambda state: evaluate(state, feeds.validation[0])["fake_score"].value
    assert score(elsewhere) == score(after)
    without = {k: v for k, v in elsewhere.collections.items() if k != "average"}
    assert score(elsewhere._replace(collections=without)) != score(after)


def test_the_averaged_generator_has_batch_statistics_of_its_own(tiny):
    """They are the mean and variance of what each batch norm reads in the averaged net, not in the last one."""
    feeds, init, step, evaluate = tiny
    state = init(jax.random.key(0))
    for at in range(3):
        state, _ = step(state, feeds.train.batch_at(at))
    images = TINY.data.spec()
    module = TINY.generator.clone(shape=images.shape)
    keys = example_keys(jax.random.key(1), jnp.arange(100))
    inputs = jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys), jnp.arange(100) % 10

    average, own = evaluated(state, "generator"), state.collections["generator"]

    @jax.jit
    def read(params, inputs):
        """What each batch norm reads."""
        found = {}

        def record(call, arguments, options, context):
            if isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__":
                found[context.module.path] = arguments[0]
            return call(*arguments, **options)

        with nn.intercept_methods(record):
            module.apply({"params": params, **own}, inputs, train=True, mutable=["batch_stats"])
        return unflatten_dict(found)

    def statistics(params, inputs):
        own = lambda x: {"mean": np.asarray(x).mean((1, 2, 3)), "var": np.asarray(x).var((1, 2, 3))}
        return flatten_dict(jax.tree.map(own, read(params, inputs)))

    recomputed = jax.jit(lambda *given: recomputed_statistics(network(module), *given))
    found = flatten_dict(recomputed(average, own, inputs, keys)["batch_stats"])
    of_average, of_last = (statistics(params, inputs) for params in (average, state.params["generator"]))
    assert found.keys() == of_average.keys() and len(found) == 4
    for name, value in found.items():
        np.testing.assert_allclose(value, of_average[name], rtol=1e-3, atol=1e-6)
        assert not np.allclose(value, of_last[name], rtol=1e-3, atol=1e-6)

    # What is sampled and evaluated reads those, of noise that is always the same, and nothing of the last weights'.
    keys = example_keys(jax.random.key(0), jnp.arange(STATISTICS))
    inputs = jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys), jnp.arange(STATISTICS) % 10
    noise, labels = latent_inputs(5, 6, 4, 10)
    of_fixed_noise = {"batch_stats": unflatten_dict(statistics(average, inputs))}
    expected, _ = compiled(module)[1](average, of_fixed_noise, (noise, labels))
    np.testing.assert_allclose(TINY.samples(state, noise, labels), expected, atol=1e-4)
    ruined = state._replace(
        params=state.params | {"generator": jax.tree.map(jnp.zeros_like, average)},
        collections=state.collections | {"generator": jax.tree.map(lambda x: 9 * x + 1, own)},
    )
    for batch in feeds.validation[:1]:
        assert evaluate(ruined, batch)["fake_score"].value == evaluate(state, batch)["fake_score"].value


class SpectralGenerator(nn.Module):
    """A generator with batch and spectral normalisation, as SAGAN's."""

    @nn.compact
    def __call__(self, noise, train=False):
        return BatchNorm()(nets.Dense(3, spectral=True)(noise, train).T[:, None, None], train)


def test_recomputed_statistics_leave_singular_vectors():
    noise, keys, net = normal(0, 50, 4) + 1, jax.random.split(jax.random.key(0), 50), network(SpectralGenerator())
    params, own = net.init(jax.random.key(1), noise)
    apply = jax.jit(net.apply)
    for _ in range(150):  # until singular vectors and running means stand still
        _, own = apply(params, own, noise, rng=keys)
    found = jax.jit(lambda *given: recomputed_statistics(net, *given))(params, own, noise, keys)["batch_stats"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3), found, own["batch_stats"])


# ---- CycleGAN


def test_the_pool_by_a_loop():
    size, batch = 5, 3
    images = np.arange(1, 31, dtype=np.float32).reshape(10, batch, 1)
    pool, store, swapped = jnp.zeros((size, 1)), [], 0

    @jax.jit
    def draws(step):
        keys = example_keys(jax.random.key(step), jnp.arange(batch))
        place = jax.vmap(lambda key: jax.random.randint(key, (), 0, size))(keys)
        return keys, place, jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, 1)))(keys)

    query = jax.jit(query_pool)
    for step in range(10):
        keys, places, exchanges = draws(step)
        pool, shown = query(pool, images[step], keys, jnp.int32(step))
        of_each = np.asarray(places), np.asarray(exchanges), np.asarray(shown)
        for image, place, exchange, found in zip(images[step], *of_each, strict=True):
            if len(store) < size:
                store.append(image)
                expected = image
            elif exchange:
                expected, store[place] = store[place], image
                swapped += 1
            else:
                expected = image
            np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(pool[: len(store)], store)
    assert 5 < swapped < 20
    # Late in a run the count of images does not overflow.
    late, _ = query(pool, images[0], keys, jnp.int32(2**31 - 1))
    assert np.isin(late, np.concatenate([pool, images[0]])).all()


def test_cyclegans_losses_are_the_papers():
    experiment = EXPERIMENTS["cyclegan"]
    learner, batch = experiment.build(), experiment.feeds().validation[0]
    state = jax.jit(learner.init)(jax.random.key(0))
    of = lambda net: jax.jit(lambda params, x: network(net).apply(params, {}, x)[0])
    generator, discriminator = of(experiment.generator), of(experiment.discriminator)
    generate = lambda name, x: generator(state.params["generators"][name], x)
    score = lambda name, x: discriminator(state.params["discriminators"][name], x)
    x, y = (images[mask > 0] / 127.5 - 1 for images, mask in zip(batch.inputs, batch.targets, strict=True))
    x, y = x.astype(np.float32), y.astype(np.float32)
    assert len(x) == len(y)
    cycle, identity, adversarial, told = [], [], [], []
    for images, there, back, others in ((x, "G", "F", "Y"), (y, "F", "G", "X")):
        fake = generate(there, images)
        cycle.append(np.abs(generate(back, fake) - images).mean())
        identity.append(np.abs(generate(back, images) - images).mean())
        adversarial.append(((score(others, fake) - 1) ** 2).mean())
        told.append((score(others, fake) ** 2).mean() / 2)
        told.append(((score("X" if there == "G" else "Y", images) - 1) ** 2).mean() / 2)
    found = {name: float(value.value) for name, value in jax.jit(learner.evaluate)(state, batch).items()}
    assert found["cycle_error"] == pytest.approx(np.mean(cycle), rel=1e-4)
    assert found["identity_error"] == pytest.approx(np.mean(identity), rel=1e-4)
    assert found["adversarial"] == pytest.approx(np.mean(adversarial), rel=1e-4)
    total = float(sum(adversarial) + 10 * sum(cycle) + 5 * sum(identity))
    assert found["generators_loss"] == pytest.approx(total, rel=1e-4)
    assert found["discriminators_loss"] == pytest.approx(float(sum(told)), rel=1e-4)


def test_unpaired_data():
    data = Unpaired(name="digits", classes=("3", "8"), batch=16, evaluation_batch=20, validation=0.1)
    whole, feeds = Images(name="digits").load(), data.feeds()
    size = lambda label: int((whole.test_labels == label).sum())
    for at, label in enumerate((3, 8)):
        shown = np.concatenate([batch.inputs[at][batch.targets[at] > 0] for batch in feeds.test])
        np.testing.assert_array_equal(shown, whole.test_images[whole.test_labels == label])
    assert size(3) != size(8)
    # The device and the host feed give the same batches, of images of their class, in orders that differ.
    stream = replace(data, feed="host").feeds().train
    with prefetched(stream, 0, 4, 2, lambda make, _: make(None)) as chunks:
        streamed = list(chunks)
    for step in range(4):
        batch = feeds.train.batch_at(step)
        for at, label in enumerate((3, 8)):
            known = {image.tobytes() for image in whole.train_images[whole.train_labels == label]}
            assert {np.asarray(image).tobytes() for image in batch.inputs[at]} <= known
            np.testing.assert_array_equal(streamed[step // 2].inputs[at][step % 2], batch.inputs[at])
    assert not np.array_equal(feeds.train.x.batch_at(0).index, feeds.train.y.batch_at(0).index)
    with pytest.raises(UserError, match=r"digits has no class 33: did you mean 3"):
        replace(data, classes=("33", "8")).feeds()
    with pytest.raises(UserError, match=r"data.limit=2 leaves no training or test images of a class"):
        replace(data, limit=2).feeds()
    with pytest.raises(UserError, match="two"):
        Unpaired(classes=("truck", "truck"))


def test_the_splits_of_cycle_gan(monkeypatch, tmp_path):
    class Builder:
        data_path = "somewhere"

        def as_data_source(self, split):
            return Source({"trainA": 3, "trainB": 4, "testA": 1, "testB": 2}[split])

    class Source:
        def __init__(self, size):
            self.size = size

        def __len__(self):
            return self.size

        def __getitems__(self, places):
            return [{"image": np.full((4, 4, 3), self.size, np.uint8), "label": 0} for _ in places]

    monkeypatch.setattr("research.data.tfds.builder", lambda *_: Builder())
    found = splits("cycle_gan/horse2zebra", str(tmp_path))
    assert [len(part) for part in found] == [3, 4, 1, 2]
    assert [int(part[0, 0, 0, 0]) for part in found] == [3, 4, 1, 2]
    assert splits("cycle_gan/horse2zebra", str(tmp_path)) is found


# ---- what goes wrong


def trained(directory, rate, loss):
    """A small GAN of digits at this learning rate, and the exit status of its run."""
    adam = Optimizer(learning_rate=rate, b1=0.5)
    experiment = replace(
        TINY,
        data=Images(name="digits", batch=32, evaluation_batch=360),
        generator=nets.DenseGenerator((8,)),
        discriminator=nets.DenseDiscriminator((8,)),
        loss=loss,
        generator_optimizer=adam,
        discriminator_optimizer=adam,
        run=Run(
            steps=200, steps_per_dispatch=20, evaluate_every=100, save_every=20, metric="discriminator_loss", mode="min"
        ),
    )

    def train():
        run.train("digits_gan", config.Command(experiment, workdir=directory))

    return experiment, status(train)


@pytest.mark.parametrize(
    "rate, loss, message, left",
    [
        (10.0, "hinge", "discriminator and generator have stopped: from step", "Step {step} is saved in {directory}."),
        (1e20, "wasserstein", "became NaN or infinite at step 1.", "There is no checkpoint yet."),
    ],
)
def test_nets_that_stop_or_diverge_are_a_failure(tmp_path, capsys, without_pictures, rate, loss, message, left):
    experiment, exit_status = trained(tmp_path, rate, loss)
    directory, shapes = tmp_path / "checkpoints", jax.eval_shape(experiment.build().init, jax.random.key(0))
    found = checkpoint.restore(directory, shapes, print)
    said = " ".join(capsys.readouterr().err.split())
    step, state = found or (0, shapes)
    assert exit_status == 1 and message in said and left.format(step=step, directory=directory) in said
    assert not (tmp_path / "summary.json").exists()
    if loss == "hinge":
        assert 0 < step < 200 and all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
    else:
        assert found is None


def test_a_game_that_goes_on_is_none(tmp_path, without_pictures):
    assert trained(tmp_path, 1e-3, "hinge")[1] == 0


@pytest.mark.parametrize(
    "fields, bounded",
    [
        ({}, False),
        ({"gradient_penalty": 10.0}, True),
        ({"r1": 1.0}, True),
        ({"discriminator": nets.DenseDiscriminator(spectral=True)}, True),
        ({"loss": "hinge"}, True),
    ],
)
def test_a_critic_that_nothing_bounds_is_warned_of(fields, bounded):
    critic = GAN(**{"loss": "wasserstein", "discriminator": nets.DenseDiscriminator(), **fields})
    assert bool(critic.warnings()) is not bounded
