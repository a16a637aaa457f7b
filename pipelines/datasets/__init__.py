"""Data sets by name or from a folder; importing this registers the built-in `tiny_*` ones with TensorFlow Datasets.

`load("tiny_digits")`, `load("cifar10")` and `load(data_dir="my_photos")` answer the same `Raw`. TensorFlow Datasets
keeps what it prepares in `TFDS_DATA_DIR` (default `~/tensorflow_datasets`).
"""

from __future__ import annotations

from pipelines.datasets.catalogue import read_named
from pipelines.datasets.folders import read_folder
from pipelines.datasets.raw import Raw
from pipelines.datasets.stream import batches, fits_in_memory, in_memory, stream
from pipelines.datasets.tiny_co2 import TinyCo2
from pipelines.datasets.tiny_code import TinyCode
from pipelines.datasets.tiny_code_apart import TinyCodeApart
from pipelines.datasets.tiny_dates import TinyDates
from pipelines.datasets.tiny_digits import TinyDigits
from pipelines.datasets.tiny_entities import TinyEntities
from pipelines.datasets.tiny_messages import TinyMessages
from pipelines.datasets.tiny_photos import TinyPhotos
from pipelines.datasets.tiny_questions import TinyQuestions
from pipelines.datasets.tiny_reports import TinyReports
from pipelines.datasets.tiny_reviews import TinyReviews
from pipelines.datasets.tiny_series import TinySeries
from pipelines.datasets.tiny_snippets import TinySnippets
from pipelines.datasets.tiny_sunspots import TinySunspots

__all__ = [
    "Raw",
    "TinyCo2",
    "TinyCode",
    "TinyCodeApart",
    "TinyDates",
    "TinyDigits",
    "TinyEntities",
    "TinyMessages",
    "TinyPhotos",
    "TinyQuestions",
    "TinyReports",
    "TinyReviews",
    "TinySeries",
    "TinySnippets",
    "TinySunspots",
    "batches",
    "fits_in_memory",
    "in_memory",
    "load",
    "stream",
]


def load(
    dataset: str = "",
    *,
    data_dir: str | None = None,
    seed: int = 0,
    limit: int | None = None,
    skip_bad: bool = False,
    validation_fraction: float = 0.1,
) -> Raw:
    """Raw images with labels, split into train, validation and test.

    Validation is carved from train, by `seed`, unless a folder brings its own; it never comes from test.

    Args:
        dataset: a TFDS name, `name`, `name/config` or `name:version`. Unused where `data_dir` is given.
        data_dir: a folder with a folder of images for each class, or with train, validation and test folders of such.
        seed: decides which examples are held out.
        limit: at most this many training examples; the other splits are cut in proportion.
        skip_bad: leave out images that cannot be decoded, with a warning that names them.
        validation_fraction: share of train that is held out.

    Raises:
        UsageError: an unknown name, a data set without `image` and `label`, a folder that is not there.
        Failure: data that cannot be fetched or read, an empty folder, a single class, damaged images.
    """
    if data_dir is not None:
        raw = read_folder(data_dir, seed=seed, skip_bad=skip_bad, validation_fraction=validation_fraction)
    else:
        raw = read_named(dataset, seed=seed, validation_fraction=validation_fraction)
    return raw.limited(limit)
