"""Data sets of TensorFlow Datasets by name: the built-in `tiny_*` ones and the whole catalogue, on one road."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from typing import Any, NoReturn
from urllib.parse import urlsplit

import requests
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import py_utils, tqdm_utils

from pipelines.config import Failure, UsageError, nearest
from pipelines.datasets.raw import Raw

STAND_IN = "tiny_digits"


def find(name: str) -> tfds.core.DatasetBuilder:
    """The builder of `name`, `name/config` or `name:version`; nothing is fetched or written.

    Raises:
        UsageError: no such data set, configuration or version; the nearest name is suggested.
    """
    short = re.split("[/:]", name)[0]
    try:
        return tfds.builder(name)
    except tfds.core.DatasetNotFoundError:
        names = tfds.list_builders(with_community_datasets=False)
        raise UsageError(
            f"Expected a data set of TensorFlow Datasets or a built-in one (tiny_*).{nearest(short, names)} "
            f"Received: {name!r}"
        ) from None
    except (ValueError, AssertionError) as error:
        if not short.isidentifier():
            raise UsageError(f"Expected the name of a data set of TensorFlow Datasets. Received: {name!r}") from error
        kind = tfds.builder_cls(short)
        configs = ", ".join(list(kind.builder_configs)[:10]) or "none"
        version = f"version {kind.VERSION}" if kind.VERSION else "versions by configuration"
        expected = f"a configuration and version of {short} (configurations: {configs}; {version})"
        raise UsageError(f"Expected {expected}. Received: {name!r}") from error


def prepare(
    name: str, check: Callable[[tfds.core.DatasetBuilder], Any] | None = None, stand_in: str = STAND_IN
) -> tfds.core.DatasetBuilder:
    """The builder of a TFDS name, with its files written.

    Args:
        name: `name`, `name/config` or `name:version`.
        check: raises where the builder's features are not those of the task; default: images with a label.
        stand_in: a built-in set of the task, for the message where there is no network.

    Two processes may prepare one data set at the same time: each writes to a folder of its own, the first to finish
    puts it in place, and the other one uses that.

    Raises:
        UsageError: no such data set, or not one for the task: said before anything is fetched.
        Failure: it could not be fetched or written; the message names a stand-in that needs no network.
    """
    builder = find(name)
    (check or labelled_images)(builder)
    try:
        if not prepared(builder):
            write(builder)
    except Exception as error:
        if prepared(builder):
            return find(name)
        raise Failure(
            f"The data set {name!r} could not be prepared in {builder.data_dir} ({type(error).__name__}: "
            f"{first_line(error)}). {stand_in!r} is built in and needs no network."
        ) from error
    return builder


def prepared(builder: tfds.core.DatasetBuilder) -> bool:
    """Whether the files are there; asked of a folder that is not, TFDS would warn."""
    return builder.data_path.exists() and builder.is_prepared()


def write(builder: tfds.core.DatasetBuilder) -> None:
    """Download and prepare; only a real download shows TFDS's progress bars."""
    with contextlib.ExitStack() as stack:
        host = urlsplit(next(iter(builder.url_infos or ()), ""))
        online = not host.netloc or answers(f"{host.scheme}://{host.netloc}")
        if not online:
            refuse_requests(builder, host.netloc)
        if builder.name.startswith("tiny_") or not online:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(py_utils.temporary_assignment(tqdm_utils, "_active", False))
        builder.download_and_prepare()


def answers(address: str) -> bool:
    """Whether a web server answers within ten seconds, whatever it says; proxies of the environment are used."""
    try:
        requests.head(address, timeout=10)
    except requests.RequestException:
        return False
    return True


def refuse_requests(builder: tfds.core.DatasetBuilder, host: str) -> None:
    """Requests of this builder fail at once; TFDS asks eleven times, for minutes, before it says what is wrong.

    What is fetched already, or put into TFDS's folder by hand, needs no request and is prepared all the same.
    """
    make = builder._make_download_manager

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise requests.ConnectionError(f"no network? {host} does not answer")

    def refusing(**options: Any) -> tfds.download.DownloadManager:
        manager = make(**options)
        manager._download = refuse  # its downloader is shared by all managers
        return manager

    builder._make_download_manager = refusing


def first_line(error: BaseException) -> str:
    """The first line of an error's text, shortened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else "no message"


def labelled_images(builder: tfds.core.DatasetBuilder) -> tuple[tuple[int | None, int | None, int], tuple[str, ...]]:
    """Image shape and class names of a data set of labelled images.

    Raises:
        UsageError: it has no feature `image` that is an image, or no feature `label` that is a class.
        Failure: it has one class only.
    """
    kinds = builder.info.features
    features = dict(kinds.items()) if isinstance(kinds, tfds.features.FeaturesDict) else {"": kinds}
    image, label = features.get("image"), features.get("label")
    if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
        found = ", ".join(f"{key} ({type(kind).__name__})" for key, kind in features.items())
        raise UsageError(
            f"Expected a data set with an image `image` and a class `label`. Received: {builder.name} with {found}"
        )
    if label.num_classes is not None and label.num_classes < 2:
        raise Failure(f"Expected at least two classes. Received: {builder.name} with {label.num_classes}")
    height, width, channels = image.shape
    return (height, width, 1 if channels == 1 else 3), tuple(label.names)


def read_named(name: str, *, seed: int, validation_fraction: float) -> Raw:
    """A data set of TensorFlow Datasets as `Raw`, in the splits of `carved`."""
    builder = prepare(name)
    image_shape, classes = labelled_images(builder)
    parts = carved(builder, name, seed, validation_fraction, lambda split: labelled(builder, split))
    sets = {split: read(builder, part) for split, part in parts.items()}
    counts = {split: int(data.cardinality()) for split, data in sets.items()}
    description = " ".join(builder.info.description.split())
    return Raw(
        **sets,
        classes=classes,
        counts=counts,
        image_shape=image_shape,
        source=f"{builder.info.full_name} (TensorFlow Datasets): {description[:400]}",
    )


def carved(
    builder: tfds.core.DatasetBuilder, name: str, seed: int, fraction: float, usable: Callable[[str], bool]
) -> dict[str, str]:
    """What of the files is train, validation and test, in TFDS's notation.

    Its `test` split is the test set; without one, or where its labels are kept secret (ImageNet), a `validation` split
    is; without either, a tenth of `train` is. Validation is a stretch of `train` that starts where `seed` says: TFDS
    writes examples in shuffled order, and the built-in sets in rounds through the classes, so a stretch is a fair
    sample.

    Raises:
        UsageError: there is no `train` split.
    """
    splits = list(builder.info.splits) or ["train", "test"]
    if "train" not in splits:
        raise UsageError(f"Expected a data set with a `train` split. Received: {name!r} with {', '.join(splits)}")
    last = 100
    if "test" in splits and usable("test"):
        test = "test"
    elif "validation" in splits:
        test = "validation"
    else:
        last, test = 90, "train[90%:]"
    held = min(max(1, round(last * fraction)), last - 1)
    start = seed * 37 % (last - held + 1)
    return {
        "train": f"train[:{start}%]+train[{start + held}%:{last}%]",
        "validation": f"train[{start}%:{start + held}%]",
        "test": test,
    }


def labelled(builder: tfds.core.DatasetBuilder, split: str) -> bool:
    """Whether a split has its labels; TFDS writes -1 where they are secret."""
    return all(int(example["label"]) >= 0 for example in read(builder, split).take(1))


def read(builder: tfds.core.DatasetBuilder, part: str) -> tf.data.Dataset:
    """One part of a data set in the order of its files, images still encoded."""
    data = builder.as_dataset(
        split=part,
        decoders={"image": tfds.decode.SkipDecoding()},
        read_config=tfds.ReadConfig(try_autocache=False),
        shuffle_files=False,
    )
    return data.map(lambda example: {"image": example["image"], "label": tf.cast(example["label"], "int64")})
