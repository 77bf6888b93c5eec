"""Image repair: PSNR and SSIM against scikit-image, how images are damaged, and the losses against sums written out."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from research.core.errors import UserError
from research.core.experiment import Run
from research.core.metrics import computed
from research.core.optimizers import Optimizer
from research.core.state import example_keys, rng
from research.data.augment import Augment
from research.data.images import Images
from research.data.pixels import scaled
from research.evaluation.quality import psnr, ssim
from research.learners.restore import Restore, halved, tiny
from research.nets.dcgan import DCGANDiscriminator
from research.nets.unet import UNet
from research.training import config, run

random = np.random.default_rng(0)
KEYS = jax.random.split(jax.random.key(0), 6)


def pairs(*shape):
    """Smooth images and noisy ones, f32 in 0 ... 1."""
    waves = np.sin(np.arange(np.prod(shape)).reshape(shape) / 7) / 2 + 0.5
    noisy = waves + 0.2 * random.normal(size=shape)
    return waves.astype(np.float32), noisy.clip(0, 1).astype(np.float32)


@pytest.mark.parametrize("shape", [(2, 32, 32, 3), (3, 17, 12, 1)])
def test_measures_are_scikit_images(shape):
    skimage = pytest.importorskip("skimage.metrics", reason='scikit-image is missing: pip install -e ".[bench]"')
    images, originals = pairs(*shape)
    how = {"data_range": 1.0, "channel_axis": -1, "gaussian_weights": True, "use_sample_covariance": False}
    both = list(zip(images, originals, strict=True))
    expected = [skimage.structural_similarity(x, y, **how) for x, y in both]
    np.testing.assert_allclose(jax.jit(ssim)(images, originals), expected, rtol=1e-4)
    expected = [skimage.peak_signal_noise_ratio(x, y, data_range=1.0) for x, y in both]
    np.testing.assert_allclose(jax.jit(psnr)(images, originals), expected, rtol=1e-5)


def test_measures_of_equal_and_of_small_images():
    images, others = pairs(2, 8, 6, 1)
    np.testing.assert_allclose(psnr(images, images), 100)
    np.testing.assert_allclose(ssim(images, images), 1, rtol=1e-5)
    assert (ssim(images, others) < 0.99).all()


def damaged(images, **fields):
    return jax.tree.map(np.asarray, Restore(**fields).damaged(KEYS[: len(images)], jnp.asarray(images)))


def test_noise():
    images, _ = pairs(4, 40, 40, 3)
    found = damaged(images, noise=0.2)
    assert (found.images - images).std() == pytest.approx(0.2, rel=0.02) and found.missing.all()
    np.testing.assert_array_equal(found.others["identity"], found.images)
    assert len({(x - y).tobytes() for x, y in zip(found.images, images, strict=True)}) == 4


def test_half_the_resolution():
    images, _ = pairs(2, 8, 12, 3)
    small = np.array(
        [[[x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((0, 1)) for j in range(6)] for i in range(4)] for x in images]
    )
    np.testing.assert_allclose(halved(images), small, rtol=1e-5)
    found = damaged(images, task="super_resolution")
    np.testing.assert_allclose(found.others["identity"][:, 1::2, ::2], small, rtol=1e-5)
    # Cubic convolution (Keys 1981) with a = -0.5, a quarter of a pixel from the nearest pixel, far from the edges.
    taps = np.array([-0.0703125, 0.8671875, 0.2265625, -0.0234375])
    columns = np.einsum("k,nhkc->nhc", taps[::-1], small[:, :, 1:5])
    expected = np.einsum("k,nkc->nc", taps[::-1], columns[:, 0:4])
    np.testing.assert_allclose(found.images[:, 4, 6], expected, atol=2e-3)


def test_a_hole():
    images, _ = pairs(6, 9, 7, 2)
    found = damaged(images, task="inpainting", hole=3)
    places = set()
    for image, original, missing in zip(found.images, images, found.missing[..., 0], strict=True):
        rows, columns = (np.flatnonzero(missing.any(axis)) for axis in (1, 0))
        assert (len(rows), len(columns), missing.sum()) == (3, 3, 9)
        assert (image[missing > 0] == 0.5).all() and (image[missing == 0] == original[missing == 0]).all()
        places.add((rows[0], columns[0]))
    assert len(places) > 2


def test_the_net_adds_to_what_is_missing():
    """Fresh, it adds nothing; later, to the hole alone."""
    experiment = Restore(task="inpainting", hole=3, net=UNet(widths=(4, 4), blocks=1))
    images, _ = pairs(2, 8, 8, 1)
    state = jax.jit(experiment.build().init)(jax.random.key(0))
    found = experiment.damaged(KEYS[:2], jnp.asarray(images))
    restore = jax.jit(experiment.restored)
    np.testing.assert_array_equal(restore(state.params["net"], found), found.images)
    moved = jax.tree.map(lambda x: x + 0.1, state.params["net"])
    changed = np.asarray(restore(moved, found) != found.images)[..., 0]
    np.testing.assert_array_equal(changed, np.asarray(found.missing[..., 0]) > 0)


def test_a_fresh_net_is_as_good_as_nothing():
    """Its measures are those of the damaged images, and the loss is the error of these."""
    experiment = Restore(data=Images(limit=60, evaluation_batch=16), noise=0.1, net=UNet(widths=(4,), blocks=1))
    learner, batch = experiment.build(), experiment.feeds().test[0]
    state = jax.jit(learner.init)(jax.random.key(0))
    values = computed(jax.device_get(jax.jit(learner.evaluate)(state, batch)))
    originals, found, _ = experiment.evaluation(state, batch)
    real = batch.mask > 0
    errors = np.asarray(abs(found.images - originals).mean((1, 2, 3)))[real]
    assert values["l1"] == pytest.approx(errors.mean(), rel=1e-5)
    clipped = np.asarray(found.images).clip(0, 1)
    each = -10 * np.log10(((clipped - np.asarray(originals)) ** 2).mean((1, 2, 3)))[real]
    assert values["psnr"] == values["identity_psnr"] == pytest.approx(each.mean(), rel=1e-5)
    assert values["ssim"] == values["identity_ssim"]


def test_the_adversarial_losses_by_hand():
    """Of a fresh net, which adds nothing, and a discriminator that does not move."""
    judge = DCGANDiscriminator(widths=(4,), norm="none", spectral=False)
    frozen = Optimizer(name="sgd", learning_rate=0.0)
    experiment = tiny()["restore_adversarial"]
    experiment = dataclasses.replace(experiment, discriminator=judge, discriminator_optimizer=frozen)
    experiment = dataclasses.replace(experiment, augment=Augment(), loss="l2")
    learner, batch = experiment.build(), experiment.feeds().train.batch_at(0)
    state = jax.jit(learner.init)(jax.random.key(0))
    metrics = jax.jit(learner.step)(state, batch)[1]
    real = scaled(batch.inputs)
    fake = experiment.damaged(example_keys(rng(state, "damage"), batch.index), real).images
    score = lambda images: np.asarray(
        judge.apply({"params": state.params["discriminator"]}, (2 * images - 1, jnp.zeros(32, jnp.int32)))
    )
    error = float(((fake - real) ** 2).mean())
    expected = {
        "discriminator_loss": (np.log1p(np.exp(-score(real))) + np.log1p(np.exp(score(fake)))).mean(),
        "l2": error,
        "net_loss": error + np.log1p(np.exp(-score(fake))).mean(),
    }
    for name, value in expected.items():
        assert float(metrics[name].value) == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"task": "inpainting", "hole": 9}, "hole=9 is larger than the images, 8x8"),
        ({"task": "inpainting", "hole": 0}, "hole must be at least 1"),
    ],
)
def test_what_cannot_be_repaired(fields, message):
    with pytest.raises(UserError, match=message):
        Restore(**fields).build()


def test_a_run_restores(tmp_path):
    experiment = Restore(
        data=Images(limit=400, batch=32, evaluation_batch=40),
        net=UNet(widths=(8, 16), blocks=1),
        noise=0.25,
        optimizer=Optimizer(learning_rate=1e-2),
        run=Run(steps=60, steps_per_dispatch=20, evaluate_every=20, save_every=60, metric="psnr"),
    )
    result = run.train("digits_repair", config.Command(experiment, workdir=tmp_path))
    test = {name: value["mean"] for name, value in result["test"].items()}
    assert test["psnr"] > test["identity_psnr"] + 2 and test["ssim"] > test["identity_ssim"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert "identity_psnr" in lines[-1]
    with Image.open(tmp_path / "repaired.png") as picture:
        assert picture.width > 800
