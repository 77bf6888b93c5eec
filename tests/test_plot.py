import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from research.core.errors import RunError
from research.evaluation import curves
from research.evaluation import plots as plot
from research.evaluation.curves import learning_curves


def lines(n=30, seeds=None, **more):
    rng = np.random.default_rng(0)

    def value(base):
        each = (base * (1 + 0.1 * rng.normal(size=seeds or 1))).tolist()
        return each if seeds else each[0]

    for step in range(10, 10 * n + 1, 10):
        values = {"loss": value(3 * np.exp(-step / 40)), "accuracy": value(0.5), "learning_rate": 0.1}
        yield {"step": step, "split": "train", **values, **more, "time": {"seconds": 1.0}}
    yield {"step": 10 * n, "split": "validation", "loss": value(0.1), "accuracy": None, "time": {}}


def drawn(path):
    """The picture, which must have something in it."""
    picture = imread(path)
    assert picture.std() > 0.01
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    return picture


@pytest.mark.parametrize("seeds", [None, 3])
def test_curves_of_one_run(tmp_path, seeds):
    each = list(lines(seeds=seeds))
    if seeds:
        for line in each[15:]:
            line["loss"][1] = None  # it diverged
    learning_curves({"run": each}, tmp_path / "curves.png")
    assert drawn(tmp_path / "curves.png").shape[1] > 800


def test_curves_side_by_side_and_long(tmp_path):
    runs = {"a": list(lines(1000)), "b": list(lines(20, seeds=4)), "c": list(lines(1, other=1.0)), "empty": []}
    learning_curves(runs, tmp_path / "curves.png")
    drawn(tmp_path / "curves.png")


def test_no_lines_no_picture(tmp_path):
    learning_curves({"run": []}, tmp_path / "curves.png")
    assert not list(tmp_path.iterdir())


def test_panels_are_by_metric_and_long_lines_are_averaged():
    panels = curves._panels({"run": list(lines(1000))})
    assert list(panels) == ["loss", "accuracy", "learning_rate"]
    curve = panels["loss"]["run", "train"]
    assert curve.values.shape == (curves.POINTS, 1) and (np.diff(curve.steps) > 0).all()
    assert np.isnan(panels["accuracy"]["run", "validation"].values).all()


def test_a_long_line_of_which_most_values_are_missing_is_there():
    each = [{"step": n, "split": "train", "return": 2.0 if n % 4 == 0 else None} for n in range(2000)]
    values = curves._panels({"run": each})["return"]["run", "train"].values
    assert values.shape == (curves.POINTS, 1) and (values == 2).all()
    few = [{**line, "return": None} if line["step"] > 1000 else line for line in each]
    missing = np.isnan(curves._panels({"run": few})["return"]["run", "train"].values[:, 0])
    assert missing[-1] and 0.4 < missing.mean() < 0.6


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_image_grid(tmp_path, channels, dtype):
    images = np.zeros((7, 12, 8, channels), dtype)
    images[:, 3:6] = 255 if dtype == np.uint8 else 1
    plot.image_grid(images, [f"picture {i}" for i in range(7)], tmp_path / "grid.png")
    drawn(tmp_path / "grid.png")
    plot.image_grid(images - 1.0, None, tmp_path / "grid.png", columns=7)
    picture = drawn(tmp_path / "grid.png")
    assert picture.shape[1] > 3 * picture.shape[0]


@pytest.mark.parametrize("captions", [None, [f"a\nb {i}" for i in range(7)]])
def test_images_of_a_grid_are_where_they_belong(tmp_path, captions):
    """Each is grey above and black below; where its corners must be follows from the sizes in inches."""
    greys, across, above = 60 + 25 * np.arange(7), 1.0, 0.32 if captions else 0.0
    images = np.zeros((7, 20, 10, 1), np.uint8)
    images[:, :10] = greys[:, None, None, None]
    plot.image_grid(images, captions, tmp_path / "grid.png", columns=3)
    picture = 255 * drawn(tmp_path / "grid.png")[..., 0]
    for i, grey in enumerate(greys):
        left = plot.GAP + i % 3 * (across + plot.GAP)
        top = plot.GAP + above + i // 3 * (above + 2 * across + plot.GAP)
        at = lambda down, right, left=left, top=top: picture[
            int((top + down) * plot.DPI), int((left + right) * plot.DPI)
        ]
        for right in (0.02, 0.5, 0.98):
            assert [at(down, right) for down in (0.02, 0.98)] == pytest.approx([grey, grey], abs=0.6)
            assert [at(down, right) for down in (1.02, 1.98)] == [0, 0]
    empty = picture[int((2.5 * plot.GAP + 3 * above + 4 * across) * plot.DPI) :, int(1.5 * plot.DPI) :]
    assert (empty == 255).all(), "of three rows the last has one image"


def test_no_images_no_picture(tmp_path):
    plot.image_grid(np.zeros((0, 4, 4, 1)), None, tmp_path / "grid.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("n", [2, 10, 40])
def test_confusion(tmp_path, n):
    matrix = np.eye(n, dtype=int) * 50
    matrix[0] = 0  # a class that never comes
    plot.confusion(matrix, [f"class {i}" for i in range(n)], tmp_path / "confusion.png")
    drawn(tmp_path / "confusion.png")


def test_no_global_state(tmp_path):
    before = dict(matplotlib.rcParams)
    learning_curves({"run": list(lines())}, tmp_path / "curves.png")
    assert dict(matplotlib.rcParams) == before


def test_a_directory_that_is_none_is_a_failure(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"could not write .*curves\.png"):
        learning_curves({"run": list(lines())}, tmp_path / "file" / "curves.png")


def test_growth(tmp_path):
    plot.growth((1, 2, 4), (100.0, 150.0, 160.0), "seeds", "frames/s", tmp_path / "growth.png")
    drawn(tmp_path / "growth.png")


def test_grey_images_beside_masks_keep_their_brightness(tmp_path, monkeypatch, rng):
    """As pixels of 0 to 255, in place of the darkest and the brightest of each image."""
    figures = []
    monkeypatch.setattr(plot, "write", lambda figure, path: figures.append(figure))
    images, classes = rng.integers(100, 120, (2, 4, 5, 1), dtype=np.uint8), np.zeros((2, 4, 5), np.uint8)
    plot.masks(images, classes, classes, ("one",), tmp_path / "masks.png")
    for ax in figures[0].axes[::3]:
        assert ax.images[0].get_clim() == (0, 255)
