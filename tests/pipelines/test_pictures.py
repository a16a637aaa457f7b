"""The pictures of a run show what they were given, in its place."""

from __future__ import annotations

import numpy as np
from PIL import Image

from pipelines import report


def test_a_grid_shows_every_picture_upright_in_the_order_of_reading(tmp_path):
    images = np.full((10, 6, 4, 3), 90, "uint8")  # (n, h, w, c)
    for i in range(10):
        images[i, :3] = (20 * i + 40, 255, 0)  # the upper half has a colour of its own
    path = report.image_grid(images, ["a title"] * 10, tmp_path / "grid.png", wrong={9})
    seen = np.asarray(Image.open(path).convert("RGB")).astype(int)
    centres = []
    for i in range(10):
        y, x = np.nonzero((seen == images[i, 0, 0]).all(-1))
        below = seen[y.max() + 3, int(x.mean())]
        assert (below == 90).all(), "the lower half is below"
        assert 0.6 < (y.max() - y.min()) / (x.max() - x.min()) < 0.9, "3 rows of 4 pixels, undistorted"
        centres.append((round(y.mean(), -1), x.mean()))
    assert centres == sorted(centres) and len({y for y, _ in centres}) == 2
    red = (seen[..., 0] > 150) & (seen[..., 1] < 60) & (seen[..., 2] < 60)
    assert red.any() and abs(np.nonzero(red)[1].mean() - centres[9][1]) < 10, "of a wrong answer the title is red"
