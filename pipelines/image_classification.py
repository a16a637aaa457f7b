"""Which one of a set of classes does a picture show?

    python -m pipelines.image_classification
    python -m pipelines.image_classification --model resnet --size 20 --dataset cifar10 --augment flip crop
    python -m pipelines.image_classification --data_dir photos --augment flip randaugment mixup

Without a flag it trains a small convolutional network on `tiny_digits`, 1,797 real handwritten digits: at least 98.5 %
on the test split (mean of three seeds) in under 90 seconds on two cores, beside a logistic regression on the same
pixels. `--data_dir` takes your own folder with a folder of JPEG, PNG, BMP or GIF files per class; `--dataset` any
image set of the TFDS catalogue with the features `image` and `label`. Digits and letters must not be flipped; most
photographs may be.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from etils import epy

import pipelines
from pipelines import Data, builder, runs
from pipelines.config import ClassificationConfig, UsageError, one_of, option, run_cli

with epy.lazy_imports():
    import keras
    import numpy as np
    import tensorflow as tf

    from pipelines import datasets, evaluation, report, supervised, training
    from pipelines.datasets import statistics
    from pipelines.transforms import augment, images

TASK = "image_classification"
MODELS = {
    "mlp": builder("models.mlp"),
    "lenet": builder("models.lenet"),
    "convnet": builder("models.convnet"),
    "vgg": builder("models.vgg"),
    "resnet": builder("models.resnet"),
    "inception": builder("models.inception"),
    "efficientnet": builder("models.efficientnet"),
    "vit": builder("models.vit"),
}
OBJECTIVE = ("accuracy", "max")
PORTABLE = "from_pixels"  # the signature of arrays alone, which ONNX is made from
DATA = "tiny_digits, tiny_photos, TFDS image sets (mnist, cifar10, imagenet2012, …), class folders"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ClassificationConfig):
    dataset: str = option("tiny_digits", "a TFDS name (mnist, cifar10, …), or built in: tiny_digits, tiny_photos")
    data_dir: str | None = option(None, "your own pictures, a folder per class, instead of --dataset", metavar="DIR")
    model: str = option("convnet", "the architecture")
    epochs: int = option(40, "passes over the training data")
    batch_size: int = option(32, "pictures per training step")
    learning_rate: float = option(3e-3, "peak learning rate")
    image_size: int | None = option(
        None, "side of the pictures the model sees; default: theirs if all are equal, else 64 or that of --size"
    )
    resize: str = option("stretch", "how other pictures are brought to that size", choices=("stretch", "crop", "pad"))
    skip_bad: bool = option(False, "leave out files that cannot be read, naming them, instead of stopping")
    augment: tuple[str, ...] = option(
        ("translate", "rotate"), "what happens to training pictures, in order, name or name:amount; none: nothing"
    )
    pretrained: str | None = option(None, "start from imagenet, or from a file of weights", metavar="WEIGHTS")

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.model, MODELS, "--model")
        self.at_least(1, "image_size")


def preprocess(image: Any, spec: dict[str, Any]) -> Any:
    """Pictures as the model takes them, in training and in serving.

    Args:
        image: encoded pictures, strings () or (b,); or uint8 pixels (h, w, c) or (b, h, w, c) of any size.
        spec: of the data: `image_shape`, `resize` and `normalization`.

    Returns:
        float32 of `image_shape`, with the leading `b` where there was one, standardized.
    """
    return images.standardize(images.pixels(image, spec["image_shape"], spec["resize"]), spec["normalization"])


def decoded(spec: dict[str, Any]) -> Any:
    """The first half of `preprocess`, for one raw example: what is kept in memory, before augmentation."""
    return lambda item: item | {"image": images.pixels(item["image"], spec["image_shape"], spec["resize"])}


def load_data(config: Config) -> Data:
    """The three splits, decoded into memory where they fit, and their spec."""
    raw = datasets.load(
        config.dataset, data_dir=config.data_dir, seed=config.seed, limit=config.limit, skip_bad=config.skip_bad
    )
    height, width, channels = raw.image_shape
    if config.image_size or published(config) or not (height and width):
        height = width = config.image_size or MODELS[config.model].resolutions.get(str(config.size), 64)
    spec: dict[str, Any] = {
        "dataset": raw.source.partition(": ")[0],
        "about": raw.source.partition(": ")[2],
        "image_shape": [height, width, 3 if published(config) else channels],
        "resize": config.resize,
        "classes": list(raw.classes),
        "counts": dict(raw.counts),
    }

    def source(part, count):
        fits = datasets.fits_in_memory(count, spec["image_shape"])
        return datasets.in_memory(part, count, decoded(spec)) if fits else part

    parts = [source(getattr(raw, name), count) for name, count in raw.counts.items()]
    spec["class_counts"] = statistics.class_counts(parts[0], len(raw.classes))
    spec["normalization"] = normalization(config) or statistics.moments(parts[0], decoded(spec))
    return Data(parts[0], parts[1], parts[2], spec)


def published(config: Config) -> bool:
    """Whether the run starts from weights published for colour pictures, and not from those of a run of one's own."""
    return config.pretrained == "imagenet" or (
        config.pretrained is not None and config.size in MODELS[config.model].resolutions
    )


def arguments(config: Config) -> dict[str, Any]:
    """The keyword arguments of the builder: a published size, then `--model_args` over it."""
    return MODELS[config.model].arguments(config.size, config.model_args)


def normalization(config: Config) -> dict[str, Any] | None:
    """What published weights, or a model that scales pixels itself, expect; None: what the training data say."""
    from models import checkpoints

    given = arguments(config)
    if given.get("rescaling") or (published(config) and config.model in checkpoints.ARCHITECTURES):
        return checkpoints.normalization(config.model, preactivation=given.get("preactivation", False))
    return None


def build_model(config: Config, spec: dict[str, Any]) -> Any:
    """The compiled model, the same for the same seed."""
    given = arguments(config)
    keras.utils.set_random_seed(config.seed)  # here, since preparing data may draw random numbers too
    with training.dtypes(config), training.replicas(config):
        try:
            model = MODELS[config.model](tuple(spec["image_shape"]), len(spec["classes"]), **given)
            if config.pretrained:
                from models import checkpoints

                print(checkpoints.load_weights(model, config.pretrained))
        except (ValueError, TypeError) as error:
            raise UsageError(str(error)) from error
        compile_model(model, config, spec)
    return model


def compile_model(model: Any, config: Config, spec: dict[str, Any]) -> None:
    examples = spec["counts"]["train"]
    model.compile(
        optimizer=training.optimizer(config, training.total_steps(config, examples)),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=config.label_smoothing),
        metrics=[keras.metrics.CategoricalAccuracy(name="accuracy")],
        jit_compile=config.jit,
        steps_per_execution=training.steps_per_execution(config, examples),
    )


def augmentation(config: Config, num_classes: int) -> Any:
    """What `--augment` names, as a function of (step, pixels, labels)."""
    return augment.augmentation([name for name in config.augment if name != "none"], config.seed, num_classes)


def training_batches(data: Data, config: Config, start_step: int = 0) -> Any:
    """Endless training batches from a global step on: standardized pictures, one-hot labels and, perhaps, weights."""
    spec, classes = data.spec, len(data.spec["classes"])
    change = augmentation(config, classes)
    weights = statistics.balanced_weights(spec["class_counts"])

    def finish(step, batch):
        pixels, labels = change(step, tf.cast(batch["image"], tf.float32), tf.one_hot(batch["label"], classes))
        x = images.standardize(pixels, spec["normalization"])  # (b, h, w, c)
        return (x, labels, tf.linalg.matvec(labels, weights)) if config.class_weights == "balanced" else (x, labels)

    return datasets.stream(
        data.train,
        count=spec["counts"]["train"],
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        prepare=decoded(spec),
        map_fn=finish,
    )


def evaluation_batches(part: Any, spec: dict[str, Any], batch_size: int = 128) -> Any:
    """Batches of a split in its own order: standardized pictures, one-hot labels."""

    def finish(batch):
        labels = tf.one_hot(batch["label"], len(spec["classes"]))
        return images.standardize(batch["image"], spec["normalization"]), labels

    return datasets.batches(part, batch_size=batch_size, prepare=decoded(spec), map_fn=finish)


def answers(logits: Any, classes: list[str]) -> dict[str, Any]:
    """Named answers from logits (b, k): the label and the probability of every class."""
    probabilities = tf.nn.softmax(tf.cast(logits, tf.float32))  # (b, k)
    return {"label": tf.gather(tf.constant(classes), tf.argmax(logits, -1)), "probabilities": probabilities}


def serving_fn(model: Any, config: Config, spec: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The served function: encoded JPEG, PNG, BMP or GIF in; `label` and `probabilities` out."""

    def serve(image):
        return answers(model(preprocess(image, spec), training=False), spec["classes"])

    return serve, {"image": tf.TensorSpec([None], tf.string, name="image")}


def more_signatures(model: Any, config: Config, spec: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Other doors to the served model.

    `from_pixels`: uint8 pixels (b, h, w, c) of any size. `features`: encoded pictures to the vectors before the head.
    `classify`: `tf.Example`s with a bytes feature `image`, as TF Serving's Classify call sends them.
    """
    shape, classes = spec["image_shape"], spec["classes"]
    trunk = keras.Model(model.inputs, model.get_layer("features").output)

    def from_pixels(image):
        return answers(model(preprocess(image, spec), training=False), classes)

    def features(image):
        return {"features": tf.cast(trunk(preprocess(image, spec), training=False), tf.float32)}

    def classify(inputs):
        example = tf.io.parse_example(inputs, {"image": tf.io.FixedLenFeature([], tf.string)})
        scores = answers(model(preprocess(example["image"], spec), training=False), classes)["probabilities"]
        names = tf.broadcast_to(tf.constant(classes)[None], tf.shape(scores))  # (b, k)
        return {"classes": names, "scores": scores}

    encoded = tf.TensorSpec([None], tf.string, name="image")
    pixels = tf.TensorSpec([None, None, None, shape[-1]], tf.uint8, name="image")
    return {
        "from_pixels": (from_pixels, {"image": pixels}),
        "features": (features, {"image": encoded}),
        "classify": (classify, {"inputs": tf.TensorSpec([None], tf.string, name="inputs")}),
    }


def predict(model: Any, part: Any, spec: dict[str, Any]) -> tuple[Any, Any]:
    """True labels (n,) and probabilities (n, k) of a split."""
    logits = model.predict(evaluation_batches(part, spec), verbose=0)
    return statistics.labels(part), tf.nn.softmax(tf.cast(logits, tf.float32)).numpy()


def baseline(data: Data, *, most: int = 5000, side: int = 32) -> dict[str, Any]:
    """Logistic regression on the same pixels, of at most 32 × 32 and of 5,000 training pictures."""
    spec = data.spec
    small = [*(min(side, length) for length in spec["image_shape"][:2]), spec["image_shape"][-1]]

    def flat(part):
        pixels, labels = zip(*((images.fit(batch["image"], small), batch["label"]) for batch in part))
        return np.concatenate(pixels).reshape(-1, np.prod(small)), np.concatenate(labels)

    count = min(most, spec["counts"]["train"])
    shuffled = datasets.stream(
        data.train, count=spec["counts"]["train"], batch_size=count, seed=0, prepare=decoded(spec)
    )
    train = flat(shuffled.take(1))
    what = f"{' × '.join(map(str, small))} pixels of {count} pictures"
    test = flat(datasets.batches(data.test, batch_size=256, prepare=decoded(spec)))
    return evaluation.linear_baseline(train, test, len(spec["classes"]), what)


def first_batch(data: Data, config: Config, folder: Path) -> None:
    """`plots/first_batch.png`: what the model is about to see, after augmentation."""
    x, y, *_ = next(iter(training_batches(data, config).take(1)))
    pixels = images.restore(x[:32], data.spec["normalization"]).numpy()
    classes = data.spec["classes"]
    names = [" + ".join(classes[k] for k in np.argsort(-p)[: (p > 0.05).sum()]) for p in np.asarray(y[:32])]
    report.image_grid(pixels, names, folder / "plots/first_batch.png", heading="first training batch, augmented")


def most_wrong(data: Data, labels: Any, probabilities: Any, folder: Path, count: int = 32) -> None:
    """`plots/most_wrong.png`: the test pictures whose true class got the least probability."""
    order = np.argsort(probabilities[np.arange(len(labels)), labels], kind="stable")[:count]
    rank = {int(i): n for n, i in enumerate(order)}
    shown = np.zeros([len(order), *data.spec["image_shape"]], "uint8")
    test = datasets.batches(data.test, batch_size=1, prepare=decoded(data.spec))
    for i, item in enumerate(test.as_numpy_iterator()):
        if i in rank:
            shown[rank[i]] = item["image"][0]
    path = folder / "plots/most_wrong.png"
    evaluation.most_wrong(shown, labels[order], probabilities[order], data.spec["classes"], path)


def main(config: Config) -> Path:
    """Train, evaluate and report; returns the run folder."""
    config = runs.resumed(TASK, config)
    if config.resume and runs.is_finished(Path(config.resume)):
        return runs.already_finished(config)
    arguments(config), augmentation(config, 2)  # wrong names end here, before anything is read or written
    data = load_data(config)
    spec = data.spec
    model = build_model(config, spec)
    size = " × ".join(map(str, spec["image_shape"]))
    counts = ", ".join(f"{count:,} {part}" for part, count in spec["counts"].items())
    print(f"data: {spec['dataset']}: {counts}; {len(spec['classes'])} classes, {size} pixels")
    print(f"model: {config.model}, {model.count_params():,} parameters")
    with runs.start(TASK, config, spec) as folder:
        print(f"run folder: {folder}")
        batches = functools.partial(training_batches, data, config)
        config = supervised.with_found_rate(model, batches, compile_model, config, spec, folder)
        first_batch(data, config, folder)
        print(f"first batch: {folder / 'plots/first_batch.png'}")
        validation, monitor = evaluation_batches(data.validation, spec), f"val_{OBJECTIVE[0]}"
        fitted = supervised.train(model, batches, validation, config, spec, folder, monitor, OBJECTIVE[1])
        labels, probabilities = predict(model, data.test, spec)
        found = {
            "validation": evaluation.measures(*predict(model, data.validation, spec)),
            "test": evaluation.measures(labels, probabilities),
            "baseline": baseline(data),
        }
        report.confusion(labels, probabilities.argmax(-1), spec["classes"], folder / "plots/confusion_matrix.png")
        most_wrong(data, labels, probabilities, folder)
        metrics = supervised.finish(
            TASK,
            OBJECTIVE,
            model,
            config,
            spec,
            folder,
            found | fitted,
            inputs=f"{size} pixels (height × width × channels)",
            limits="The figures hold for pictures like those of the test split. The model answers with one of its "
            "classes for any picture, also for one that shows none of them; its probabilities are not calibrated.",
            pictures=("curves", "confusion_matrix", "most_wrong"),
        )
    test, linear = metrics["test"]["accuracy"], metrics["baseline"]["accuracy"]
    print(f"test accuracy {test:.2%} (logistic regression {linear:.2%}, {fitted['train_seconds']} s): {folder}")
    print(f"pictures: {folder / 'plots'}")
    if config.export:
        runs.export(folder)
    return folder


def served_checks(model: Any, config: Config, spec: dict[str, Any], *, limit: int | None = None) -> Any:
    """What clients would send of the test split, and what Keras answers by the road of training.

    Yields, batch by batch: {signature: ({input: array}, {output: array})}; at most `limit` examples in all.
    """
    raw = datasets.load(
        config.dataset, data_dir=config.data_dir, seed=config.seed, limit=config.limit, skip_bad=config.skip_bad
    )
    test, start, names = raw.test.take(limit or -1), 0, np.array(spec["classes"], object)
    _, probabilities = predict(model, test, spec)
    trunk = keras.Model(model.inputs, model.get_layer("features").output)
    vectors = np.asarray(trunk.predict(evaluation_batches(test, spec), verbose=0), "float32")
    for batch in test.batch(128).as_numpy_iterator():
        encoded = batch["image"]
        pixels = images.pixels(encoded, spec["image_shape"], spec["resize"]).numpy()
        feature = [tf.train.Feature(bytes_list=tf.train.BytesList(value=[one])) for one in encoded]
        records = [tf.train.Example(features=tf.train.Features(feature={"image": one})) for one in feature]
        part, start = slice(start, start + len(encoded)), start + len(encoded)
        expected = {"probabilities": probabilities[part], "label": names[probabilities[part].argmax(-1)]}
        yield {
            "serving_default": ({"image": encoded}, expected),
            "from_pixels": ({"image": pixels}, expected),
            "features": ({"image": encoded}, {"features": vectors[part]}),
            "classify": (
                {"inputs": np.array([one.SerializeToString() for one in records], object)},
                {"scores": probabilities[part], "classes": np.broadcast_to(names, probabilities[part].shape)},
            ),
        }


if __name__ == "__main__":
    run_cli(pipelines.get(TASK))
