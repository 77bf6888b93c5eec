"""The net that whitens patches and what it is trained and tested with, against NumPy and PyTorch."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import cifar10_airbench
from research.core.errors import UserError
from research.core.lookahead import Lookahead
from research.core.metrics import Mean
from research.core.modules import input_ranges, network
from research.core.optimizers import Optimizer, schedule
from research.core.state import Batch, State
from research.core.update import Aux, UpdateConfig, updater
from research.data.augment import Augment, augment, views
from research.data.images import Images, second_moments
from research.learners.classify import Classify, averaged
from research.nets.whitened import WhitenedCNN, whitening


def test_whitened_patches_are_uncorrelated(rng):
    """Of images whose neighbouring pixels and channels are alike; the last filters are the first with other signs."""
    noise = rng.normal(size=(30, 9, 11, 2))
    images = np.float32(noise[:, 1:, 1:] + 0.8 * noise[:, :-1, 1:] + 0.5 * noise[:, 1:, :-1] + [0.3, -0.2])
    images[..., 1] += 0.5 * images[..., 0]
    net = WhitenedCNN(widths=(4, 4), moments=tuple(second_moments(images, 2).ravel()), outputs=3)
    kernel = np.asarray(net.init(jax.random.key(0), jnp.asarray(images))["params"]["stem"]["kernel"])
    assert kernel.shape == (2, 2, 2, 16)
    found = np.array(
        [
            [(image[y : y + 2, x : x + 2, :, None] * kernel).sum((0, 1, 2)) for y in range(7) for x in range(9)]
            for image in images
        ]
    ).reshape(-1, 16)
    np.testing.assert_allclose(found[:, :8].T @ found[:, :8] / len(found), np.eye(8), atol=0.02)
    np.testing.assert_allclose(found[:, :8], -found[:, 8:], atol=1e-5)
    with pytest.raises(UserError, match=r"patches of 9x9 do not fit in images of"):
        second_moments(images, 9)
    exact = whitening(second_moments(images, 2), eps=0)[:, :8]
    np.testing.assert_allclose(exact.T @ second_moments(images, 2) @ exact, np.eye(8), atol=1e-5)


def test_the_net_equals_pytorch(rng):
    torch = pytest.importorskip("torch")
    nn, F = torch.nn, torch.nn.functional
    net = network(WhitenedCNN(widths=(4, 6), outputs=3))
    images = rng.normal(size=(5, 9, 9, 2)).astype(np.float32)
    params, collections = jax.jit(net.init)(jax.random.key(0), jnp.asarray(images))
    for n, (channels, features) in enumerate([(16, 4), (4, 4), (4, 6), (6, 6)]):
        kernel = np.asarray(params[f"IdentityConv_{n}"]["kernel"])
        first = torch.empty(min(channels, features), channels, 3, 3)
        nn.init.dirac_(first)
        np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1)[: len(first)], first)
        rest = kernel[..., len(first) :]
        assert rest.size == 0 or 0.8 < abs(rest).max() * np.sqrt(9 * channels) <= 1
    params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), params)
    apply = jax.jit(net.apply)
    outputs, moved = apply(params, collections, images, rng=jax.random.split(jax.random.key(1), 5))

    to = lambda x: torch.tensor(np.asarray(x))
    conv = lambda x, p, pad: F.conv2d(x, to(p["kernel"]).permute(3, 2, 0, 1), padding=pad)
    norms = [nn.BatchNorm2d(width, eps=1e-12, momentum=0.4, affine=False) for width in (4, 4, 6, 6)]

    def forward(x):
        x = F.gelu(conv(x, params["stem"], 0) + to(params["stem"]["bias"])[:, None, None])
        for n, norm in enumerate(norms):
            x = conv(x, params[f"IdentityConv_{n}"], 1)
            x = norm(x if n % 2 else F.max_pool2d(x, 2))
            x = F.gelu(x + to(params[f"BatchNorm_{n}"]["BatchNorm_0"]["bias"])[:, None, None])
        return x.amax((2, 3)) @ to(params["head"]["kernel"]) / 9

    x = torch.tensor(images).permute(0, 3, 1, 2)
    np.testing.assert_allclose(outputs, forward(x), atol=2e-5)
    for n, norm in enumerate(norms):
        stats = moved["batch_stats"][f"BatchNorm_{n}"]["BatchNorm_0"]
        np.testing.assert_allclose(stats["mean"], norm.running_mean, atol=1e-5)
        count = 5 * [16, 16, 4, 4][n]  # PyTorch's variance is that of a sample
        np.testing.assert_allclose(stats["var"] - 0.6, (norm.running_var - 0.6) * (count - 1) / count, atol=1e-5)
        norm.running_var = to(stats["var"])
        norm.eval()
    np.testing.assert_allclose(apply(params, moved, images)[0], forward(x), atol=2e-5)


def test_too_small_images_are_refused():
    with pytest.raises(UserError, match=r"net\.widths: 3 stages need images of at least 9 pixels"):
        jax.eval_shape(Classify(data=Images(), net=WhitenedCNN()).build().init, jax.random.key(0))


def test_updates_equal_pytorch_sgd(rng):
    """The config's optimizer against its paper's: SGD of summed losses, with a group for the norms' biases."""
    torch = pytest.importorskip("torch")
    config = cifar10_airbench.config()
    steps, updates, count, frozen = config.run.steps, 13, 1024, 7
    how = dataclasses.replace(config.update, freeze_after=(("stem/bias", frozen),))
    init, update = updater(how, {"net": (config.optimizer, steps)})
    params = {
        "stem": {"kernel": rng.normal(size=3), "bias": rng.normal(size=2)},
        "BatchNorm_0": {"BatchNorm_0": {"bias": rng.normal(size=4)}},
        "head": {"kernel": rng.normal(size=5)},
    }
    params = jax.tree.map(np.float32, params)
    gradients = [jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params) for _ in range(updates)]

    def loss(params, state, batch, keys):
        each = jax.tree.map(lambda p, g: (p * g[0]).sum(), params, batch)
        return Mean(count * sum(jax.tree.leaves(each)), jnp.float32(count)), Aux()

    state = init(jax.random.key(0), {"net": (jax.tree.map(jnp.asarray, params), {})})
    run = jax.jit(lambda state, g: update(state, "net", loss, g)[0])
    for gradient in gradients:
        state = run(state, jax.tree.map(lambda g: g[None], gradient))

    leaf = lambda x: torch.nn.Parameter(torch.tensor(x))
    stem, norm, head = (leaf(params["stem"]["bias"]), leaf(params["BatchNorm_0"]["BatchNorm_0"]["bias"]),
                        leaf(params["head"]["kernel"]))  # fmt: skip
    scale = 1024 * (1 + 1 / (1 - 0.85))
    lr, decay = 11.5 / scale, 0.0153 * 1024 / scale
    groups = [
        {"params": [norm], "lr": 64 * lr, "weight_decay": decay / (64 * lr)},
        {"params": [stem, head], "lr": lr, "weight_decay": decay / lr},
    ]
    sgd = torch.optim.SGD(groups, momentum=0.85, nesterov=True)
    ratio = lambda at: np.interp(at, [0, 110, 480], [0.2, 1, 0.07])
    slow = [x.detach().clone() for x in (stem, norm, head)]
    for at, gradient in enumerate(gradients):
        for group, rate in zip(sgd.param_groups, (64 * lr, lr), strict=True):
            group["lr"] = rate * ratio(at)
        own = gradient["stem"]["bias"], gradient["BatchNorm_0"]["BatchNorm_0"]["bias"], gradient["head"]["kernel"]
        for x, g in zip((stem, norm, head), own, strict=True):
            x.grad = torch.tensor(count * g)
        if at >= frozen:
            stem.grad = None
        sgd.step()
        if (at + 1) % 5 == 0:
            keep = 0.95**5 * ((at + 1) / steps) ** 3
            with torch.no_grad():
                for average, x in zip(slow, (stem, norm, head), strict=True):
                    average.mul_(keep).add_(x, alpha=1 - keep)
                    x.copy_(average)
    found = state.params["net"]
    np.testing.assert_array_equal(found["stem"]["kernel"], params["stem"]["kernel"])
    np.testing.assert_allclose(found["head"]["kernel"], head.detach(), rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(found["BatchNorm_0"]["BatchNorm_0"]["bias"], norm.detach(), rtol=2e-5, atol=2e-3)
    np.testing.assert_allclose(found["stem"]["bias"], stem.detach(), rtol=2e-5, atol=2e-5)


def test_every_convolution_can_be_of_int8(rng):
    """With products of int8 each of them has a range, and the logits are near those of float32."""
    images = rng.normal(size=(4, 13, 13, 3)).astype(np.float32)
    net = WhitenedCNN(widths=(6, 8), outputs=3)
    params, own = jax.jit(network(net).init)(jax.random.key(0), images)
    seen = input_ranges(net, "float32", params, own, images)["ranges"]
    convolutions = [f"IdentityConv_{n}" for n in range(4)]
    assert set(seen) == {"stem", "head", *convolutions} and all(x > 0 for x in jax.tree.leaves(seen))
    exact, _ = jax.jit(network(net).apply)(params, own, images)
    whole, _ = jax.jit(network(net, quantization="int8").apply)(params, {**own, "ranges": seen}, images)
    assert 0 < np.abs(whole - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize("power", [0.0, 2.0])
def test_lookahead_by_hand(rng, power):
    how = Optimizer(name="sgd", learning_rate=0.5, momentum=0.0, lookahead=Lookahead(every=3, decay=0.8, power=power))
    init, update = updater(UpdateConfig(), {"net": (how, 10)})
    fast = slow = np.float32(rng.normal(size=4))
    state = init(jax.random.key(0), {"net": ({"kernel": jnp.asarray(fast)}, {})})
    loss = lambda params, state, batch, keys: (Mean((params["kernel"] * batch[0]).sum(), jnp.float32(1)), Aux())
    step = jax.jit(lambda state, batch: update(state, "net", loss, batch)[0])
    for t in range(1, 11):
        gradient = rng.normal(size=4).astype(np.float32)
        state = step(state, gradient[None])
        fast = fast - 0.5 * gradient
        if t % 3 == 0:
            keep = 0.8**3 * (t / 10) ** power
            slow = keep * slow + (1 - keep) * fast
            fast = slow
        if t == 10:  # the last update, after which training ends at the average
            fast = slow
        np.testing.assert_allclose(state.params["net"]["kernel"], fast, atol=1e-5)


def test_lookahead_begins_at_the_parameters_that_training_begins_with(rng):
    """The State gets other parameters after `init`, as by --init-from; one of them is frozen."""
    how = Optimizer(name="sgd", learning_rate=0.0, lookahead=Lookahead(every=2, power=0))
    init, update = updater(UpdateConfig(freeze=("bias",)), {"net": (how, 10)})
    params = {name: np.float32(rng.normal(size=4)) for name in ("kernel", "bias")}
    state = init(jax.random.key(0), {"net": (jax.tree.map(jnp.zeros_like, params), {})})
    state = state._replace(params={"net": jax.tree.map(jnp.asarray, params)})
    loss = lambda params, state, batch, keys: (Mean(batch.sum() * params["kernel"].sum(), jnp.float32(1)), Aux())
    step = jax.jit(lambda state: update(state, "net", loss, np.ones(1, np.float32))[0])
    for _ in range(4):
        state = step(state)
    jax.tree.map(np.testing.assert_array_equal, state.params["net"], params)


def test_the_learning_rate_is_a_triangle():
    config = cifar10_airbench.config()
    rate = schedule(config.optimizer, 480)
    found = jax.vmap(rate)(jnp.arange(0, 481, 10))
    expected = np.interp(range(0, 481, 10), [0, 110, 480], [0.3, 1.5, 0.105])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_each_image_is_flipped_on_every_other_pass():
    """With batches that straddle two passes; not all images at once."""
    config = Classify(data=Images(batch=100, limit=300), augment=Augment(flip=True, alternate=True))
    feed, sides, mirrored = config.feeds().train, {}, jax.jit(config.mirrored)
    state = State(jnp.int32(0), jax.random.key(3), {}, {}, {}, ())
    for step in range(11):
        batch = feed.batch_at(step)
        flipped = mirrored(state._replace(step=jnp.int32(step)), batch)
        for n, side in zip(batch.index.tolist(), flipped.tolist(), strict=True):
            sides.setdefault(n, []).append(side)
    assert len(sides) == feed.size and min(map(len, sides.values())) >= 4
    assert all(a != b for side in sides.values() for a, b in itertools.pairwise(side))
    assert 0.4 < np.mean([side[0] for side in sides.values()]) < 0.6, "a half of them in the first pass"
    assert Classify().mirrored(state, batch) is None


def test_to_alternate_there_is_something_to_flip():
    with pytest.raises(UserError, match=r"augment\.alternate is how images are flipped"):
        Augment(alternate=True)


def test_what_moves_in_is_reflected(rng):
    images = rng.random((40, 6, 5, 2)).astype(np.float32)
    keys, mirrored = jax.random.split(jax.random.key(0), 40), jnp.arange(40) % 2 == 1
    config = Augment(flip=True, alternate=True, shift=2, edge="reflect")
    moved = jax.jit(augment, static_argnums=0)
    found = np.asarray(moved(config, keys, images, mirrored))
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), "reflect")
    places = set()
    for n in range(40):
        one = padded[n][:, ::-1] if n % 2 else padded[n]
        crops = {(y, x): one[y : y + 6, x : x + 5] for y in range(5) for x in range(5)}
        places |= {place for place, crop in crops.items() if np.array_equal(crop, found[n])}
    assert len(places) > 15, "each is one of 25 crops"
    with pytest.raises(UserError, match=r"augment\.alternate"):
        augment(config, keys, jnp.asarray(images))
    smooth = moved(Augment(rotation=0.0, shift=2, edge="reflect"), keys, images)
    plain = moved(Augment(shift=2, edge="reflect"), keys, images)
    np.testing.assert_allclose(smooth, plain, atol=1e-5)
    # By more than the image's size, what moves in is reflected again and again, and nothing is black.
    far = moved(Augment(shift=20, edge="reflect"), keys, images + 1)
    assert far.min() >= 1


def test_views_are_averaged_in_evaluation(rng):
    images = rng.normal(size=(3, 9, 9, 1)).astype(np.float32)
    net = network(WhitenedCNN(widths=(4,), outputs=3))
    params, collections = jax.jit(net.init)(jax.random.key(0), images)
    apply = jax.jit(net.apply)
    logits = lambda x: np.asarray(apply(params, collections, x)[0])
    both = lambda x: (logits(x) + logits(x[:, :, ::-1])) / 2
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
    expected = {
        "one": logits(images),
        "mirror": both(images),
        "mirror_shift": both(images) / 2 + both(padded[:, :9, :9]) / 4 + both(padded[:, 2:, 2:]) / 4,
    }
    for kind, values in expected.items():
        seen = jax.jit(averaged(net, kind).apply)
        np.testing.assert_allclose(seen(params, collections, images)[0], values, atol=1e-5)
        keys = jax.random.split(jax.random.key(1), 3)
        training = [one(params, collections, images, rng=keys)[0] for one in (seen, apply)]
        np.testing.assert_array_equal(*training, "in training the images as they are")
        assert sum(weight for weight, _ in views(kind, images)) == 1
    config = Classify(data=Images(), net=WhitenedCNN(widths=(4,)), views="mirror")
    learner = config.build()
    state, logits = jax.jit(learner.init)(jax.random.key(0)), jax.jit(config.logits)
    pixels, labels = rng.integers(0, 256, (6, 8, 8, 1)).astype(np.uint8), np.arange(6, dtype=np.int32)
    np.testing.assert_allclose(logits(state, pixels), logits(state, pixels[:, :, ::-1]), atol=1e-5)
    metrics = jax.jit(learner.evaluate)(state, Batch(np.arange(6), np.ones(6, np.float32), pixels, labels))
    expected = -np.asarray(jax.nn.log_softmax(logits(state, pixels)))[np.arange(6), labels].mean()
    np.testing.assert_allclose(metrics["loss"].value, expected, atol=1e-5)


def test_a_decay_of_its_own_takes_the_place_of_the_others():
    how = Optimizer(name="sgd", learning_rate=1.0, momentum=0.0, weight_decay=0.5, decays=(("own/*", 0.25),))
    init, update = updater(UpdateConfig(), {"net": (how, 3)})
    params = {name: {"kernel": jnp.ones(2), "bias": jnp.ones(2)} for name in ("own", "other")}
    state = init(jax.random.key(0), {"net": (params, {})})
    loss = lambda params, state, batch, keys: (Mean(0 * params["own"]["bias"].sum(), jnp.float32(1)), Aux())
    found = update(state, "net", loss, np.zeros(1))[0].params["net"]
    assert found["own"]["kernel"][0] == found["own"]["bias"][0] == 0.75
    assert found["other"]["kernel"][0] == 0.5 and found["other"]["bias"][0] == 1


def test_decays_are_for_sgd():
    with pytest.raises(UserError, match=r"optimizer\.decays"):
        Optimizer(name="adamw", decays=(("*/bias", 0.1),))
    init, _ = updater(UpdateConfig(), {"net": (Optimizer(name="sgd", decays=(("stem/bais", 0.1),)), 3)})
    with pytest.raises(UserError, match=r"optimizer\.decays.*stem/bais.*stem/bias"):
        init(jax.random.key(0), {"net": ({"stem": {"bias": jnp.zeros(2)}}, {})})
    init, _ = updater(UpdateConfig(freeze_after=(("stem/bais", 3),)), {"net": (Optimizer(name="sgd"), 3)})
    with pytest.raises(UserError, match=r"update\.freeze_after.*stem/bais"):
        init(jax.random.key(0), {"net": ({"stem": {"bias": jnp.zeros(2)}}, {})})
