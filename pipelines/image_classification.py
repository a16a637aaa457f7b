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
import inspect
from pathlib import Path
from typing import Any

from etils import epy

import pipelines
from pipelines import Data, builder, runs
from pipelines.config import TrainingConfig, UsageError, command_line, nearest, one_of, option, run_cli

with epy.lazy_imports():
    import keras
    import numpy as np
    import tensorflow as tf

    from pipelines import datasets, report, training
    from pipelines.datasets import stream
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
DATA = "tiny_digits, tiny_photos, TFDS image sets (mnist, cifar10, imagenet2012, …), class folders"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    dataset: str = option("tiny_digits", "a TFDS name (mnist, cifar10, …), or built in: tiny_digits, tiny_photos")
    data_dir: str | None = option(None, "your own pictures, a folder per class, instead of --dataset", metavar="DIR")
    model: str = option("convnet", "the architecture")
    epochs: int = option(40, "passes over the training data")
    batch_size: int = option(32, "pictures per training step")
    learning_rate: float = option(3e-3, "peak learning rate")
    image_size: int | None = option(None, "side of the pictures the model sees; default: theirs, 224 with a --size")
    resize: str = option("stretch", "how other pictures are brought to that size", choices=("stretch", "crop", "pad"))
    skip_bad: bool = option(False, "leave out files that cannot be read, naming them, instead of stopping")
    augment: tuple[str, ...] = option(
        ("translate", "rotate"), "what happens to training pictures, in order, name or name:amount; none: nothing"
    )
    pretrained: str | None = option(None, "imagenet, or a file of weights, to start from", metavar="WEIGHTS")

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.model, MODELS, "--model")
        self.at_least(1, "image_size")


def preprocess(pixels: Any, spec: dict[str, Any]) -> Any:
    """Pixels as the model takes them, in training and in serving.

    Args:
        pixels: (h, w, c) or (b, h, w, c), 0..255, any size, 1, 3 or 4 channels.
        spec: of the data: `image_shape`, `resize` and `normalization`.

    Returns:
        float32 of `image_shape`, standardized.
    """
    return images.standardize(images.fit(pixels, spec["image_shape"], spec["resize"]), spec["normalization"])


def load_data(config: Config) -> Data:
    """The three splits, decoded and brought to one size, as ((h, w, c) uint8, label), and their spec."""
    raw = datasets.load(
        config.dataset, data_dir=config.data_dir, seed=config.seed, limit=config.limit, skip_bad=config.skip_bad
    )
    published = config.size is not None or config.pretrained is not None
    height, width, channels = raw.image_shape or (None, None, raw.channels)
    if config.image_size or published or not (height and width):
        height = width = config.image_size or (224 if published else 64)
    shape = [height, width, 3 if published else channels]

    def example(item):
        return tf.cast(tf.round(images.fit(item["image"], shape, config.resize)), tf.uint8), item["label"]  # (h, w, c)

    train, validation, test = (
        part.map(example, tf.data.AUTOTUNE, deterministic=True) for part in (raw.train, raw.validation, raw.test)
    )
    mean, std, counts = moments(train, len(raw.classes))
    spec = {
        "dataset": str(raw.name),
        "image_shape": shape,
        "resize": config.resize,
        "classes": list(raw.classes),
        "normalization": normalization(config) or {"mean": mean, "std": std, "order": "rgb"},
        "counts": dict(raw.counts),
        "class_counts": counts,
    }
    return Data(train, validation, test, spec)


def moments(train: Any, num_classes: int, sample: int = 2000) -> tuple[list[float], list[float], list[int]]:
    """Mean and deviation of the pixels by channel (of the first pictures), and the pictures of each class."""
    counts = np.zeros(num_classes, int)
    total, square, pixels = 0.0, 0.0, 0
    for batch, labels in train.batch(256).as_numpy_iterator():
        counts += np.bincount(labels, minlength=num_classes)
        if pixels < sample * batch[0, ..., 0].size:
            flat = batch.reshape(-1, batch.shape[-1]).astype(np.float64)
            total, square, pixels = total + flat.sum(0), square + (flat**2).sum(0), pixels + len(flat)
    mean = total / pixels
    std = np.sqrt(np.maximum(square / pixels - mean**2, 1.0))
    return np.round(mean, 3).tolist(), np.round(std, 3).tolist(), counts.tolist()


def arguments(config: Config) -> dict[str, Any]:
    """The keyword arguments of the builder: a published size, then `--model_args` over it.

    Raises:
        UsageError: no such size, or no such argument.
    """
    chosen = MODELS[config.model]
    sizes = chosen.sizes if config.size is not None else {}
    if config.size is not None:
        one_of(config.size, sizes, f"--size of {config.model}")
    known = [
        name
        for name, parameter in inspect.signature(chosen.function).parameters.items()
        if parameter.kind == parameter.KEYWORD_ONLY and name != "name"
    ]
    for key in config.model_args:
        if key not in known:
            raise UsageError(
                f"Expected arguments of {config.model}, of {', '.join(known)}.{nearest(key, known)} Received: {key!r}"
            )
    return {**(sizes[config.size] if config.size is not None else {}), **config.model_args}


def normalization(config: Config) -> dict[str, Any] | None:
    """What a model with published weights, or one that scales pixels itself, expects; None: what the data say."""
    from models import checkpoints

    given = arguments(config)
    if config.pretrained or given.get("rescaling"):
        return checkpoints.normalization(config.model, given)
    return None


def build_model(config: Config, spec: dict[str, Any]) -> Any:
    """The compiled model."""
    given = arguments(config)
    with training.dtypes(config), training.replicas(config):
        try:
            model = MODELS[config.model](tuple(spec["image_shape"]), len(spec["classes"]), **given)
        except (ValueError, TypeError) as error:
            raise UsageError(str(error)) from error
        if config.pretrained:
            from models import checkpoints

            checkpoints.load_weights(model, config.pretrained)
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


def training_batches(data: Data, config: Config, start_step: int = 0) -> Any:
    """Endless training batches from a global step on: standardized images, one-hot labels, weights."""
    spec = data.spec
    classes = len(spec["classes"])
    change = augment.augmentation([name for name in config.augment if name != "none"], config.seed, classes)
    counts = np.maximum(spec["class_counts"], 1)
    weights = (sum(spec["class_counts"]) / (classes * counts)).astype("float32")

    def finish(step, batch):
        pixels, labels = batch
        pixels, labels = change(step, tf.cast(pixels, tf.float32), tf.one_hot(labels, classes))
        x = images.standardize(pixels, spec["normalization"])  # (b, h, w, c)
        if config.class_weights == "balanced":
            return x, labels, tf.linalg.matvec(labels, weights)
        return x, labels

    return stream.stream(
        data.train,
        count=spec["counts"]["train"],
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        map_fn=finish,
        cache=stream.cacheable(spec["counts"]["train"], spec["image_shape"]),
    )


def evaluation_batches(part: Any, config: Config, spec: dict[str, Any]) -> Any:
    """Batches of a split in its own order: standardized images, one-hot labels."""

    def finish(pixels, labels):
        return images.standardize(tf.cast(pixels, tf.float32), spec["normalization"]), tf.one_hot(
            labels, len(spec["classes"])
        )

    return stream.batches(part, batch_size=max(64, config.batch_size), map_fn=finish)


def answers(logits: Any, classes: list[str]) -> dict[str, Any]:
    """Named answers from logits (b, k): the label and the probability of every class."""
    probabilities = tf.nn.softmax(tf.cast(logits, tf.float32))  # (b, k)
    return {"label": tf.gather(tf.constant(classes), tf.argmax(logits, -1)), "probabilities": probabilities}


def decoder(spec: dict[str, Any]) -> Any:
    """A function from encoded pictures (b,) to what the model takes (b, h, w, c)."""
    shape = spec["image_shape"]

    def decode(encoded):
        return tf.map_fn(
            lambda one: preprocess(images.decode(one, shape[-1]), spec),
            encoded,
            fn_output_signature=tf.TensorSpec(shape, tf.float32),
        )

    return decode


def serving_fn(model: Any, config: Config, spec: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The served function: encoded JPEG, PNG, BMP or GIF in; `label` and `probabilities` out."""
    decode = decoder(spec)

    def serve(image):
        return answers(model(decode(image), training=False), spec["classes"])

    return serve, {"image": tf.TensorSpec([None], tf.string, name="image")}


def more_signatures(model: Any, config: Config, spec: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Other doors to the served model.

    `from_pixels`: uint8 pixels (b, h, w, c) of any size. `features`: encoded pictures to the vectors before the head.
    `classify`: `tf.Example`s with a bytes feature `image`, as TF Serving's Classify call sends them.
    """
    decode, shape, classes = decoder(spec), spec["image_shape"], spec["classes"]
    trunk = keras.Model(model.inputs, model.get_layer("features").output)

    def from_pixels(image):
        return answers(model(preprocess(image, spec), training=False), classes)

    def features(image):
        return {"features": tf.cast(trunk(decode(image), training=False), tf.float32)}

    def classify(inputs):
        example = tf.io.parse_example(inputs, {"image": tf.io.FixedLenFeature([], tf.string)})
        scores = answers(model(decode(example["image"]), training=False), classes)["probabilities"]
        names = tf.broadcast_to(tf.constant(classes)[None], tf.shape(scores))  # (b, k)
        return {"classes": names, "scores": scores}

    encoded = tf.TensorSpec([None], tf.string, name="image")
    pixels = tf.TensorSpec([None, None, None, shape[-1]], tf.uint8, name="image")
    return {
        "from_pixels": (from_pixels, {"image": pixels}),
        "features": (features, {"image": encoded}),
        "classify": (classify, {"inputs": tf.TensorSpec([None], tf.string, name="inputs")}),
    }


def measures(labels: Any, probabilities: Any) -> dict[str, float]:
    """Accuracy, balanced accuracy, macro F1, log loss and, with more than five classes, top-5 accuracy."""
    from sklearn import metrics

    found = probabilities.argmax(-1)
    known = np.arange(probabilities.shape[1])
    result = {
        "accuracy": metrics.accuracy_score(labels, found),
        "balanced_accuracy": metrics.balanced_accuracy_score(labels, found),
        "macro_f1": metrics.f1_score(labels, found, average="macro", zero_division=0),
        "log_loss": metrics.log_loss(labels, np.float64(probabilities), labels=known),
    }
    if len(known) > 5:
        result["top_5_accuracy"] = metrics.top_k_accuracy_score(labels, probabilities, k=5, labels=known)
    return {name: round(float(item), 6) for name, item in result.items()}


def predict(model: Any, part: Any, config: Config, spec: dict[str, Any]) -> tuple[Any, Any]:
    """True labels (n,) and probabilities (n, k) of a split."""
    batches = evaluation_batches(part, config, spec)
    logits = model.predict(batches, verbose=0)
    labels = np.concatenate([y.argmax(-1) for _, y in batches.as_numpy_iterator()])
    return labels, tf.nn.softmax(tf.cast(logits, tf.float32)).numpy()


def baseline(data: Data, *, most: int = 5000, side: int = 32) -> dict[str, Any]:
    """Logistic regression on the same pixels (at most 32 × 32, 5,000 pictures), and always the commonest class."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    height, width, channels = data.spec["image_shape"]
    small = [min(height, side), min(width, side), channels]

    def flat(part, count):
        items = part.take(count).map(lambda x, y: (images.fit(x, small, "stretch"), y)).batch(256)
        pixels, labels = zip(*items.as_numpy_iterator())
        return np.concatenate(pixels).reshape(-1, np.prod(small)), np.concatenate(labels)

    shuffled = data.train.shuffle(min(data.spec["counts"]["train"], 2 * most), seed=0, reshuffle_each_iteration=False)
    (x, y), (test_x, test_y) = flat(shuffled, most), flat(data.test, -1)
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200, C=0.1)).fit(x, y)
    probabilities = np.zeros((len(test_y), len(data.spec["classes"])))
    probabilities[:, regression.classes_] = regression.predict_proba(test_x)
    commonest = np.bincount(data.spec["class_counts"]).size and int(np.argmax(data.spec["class_counts"]))
    return {
        "model": f"logistic regression on {' × '.join(map(str, small))} pixels of {len(y)} pictures",
        **measures(test_y, probabilities),
        "majority_accuracy": round(float(np.mean(test_y == commonest)), 6),
    }


def first_batch(data: Data, config: Config, folder: Path) -> None:
    """`plots/first_batch.png`: what the model is about to see, after augmentation."""
    x, y, *_ = next(iter(training_batches(data, config).take(1)))
    scale = data.spec["normalization"]
    pixels = np.asarray(x)[:32] * np.asarray(scale["std"]) + np.asarray(scale["mean"])
    if scale["order"] == "bgr":
        pixels = pixels[..., ::-1]
    shown = np.clip(np.round(pixels), 0, 255).astype("uint8")
    names = [" + ".join(data.spec["classes"][k] for k in np.argsort(-p)[: (p > 0.05).sum()]) for p in np.asarray(y)]
    report.image_grid(shown, names, folder / "plots/first_batch.png", heading="first training batch, augmented")


def most_wrong(data: Data, labels: Any, probabilities: Any, folder: Path, count: int = 32) -> None:
    """`plots/most_wrong.png`: the test pictures whose true class got the least probability."""
    of_truth = probabilities[np.arange(len(labels)), labels]
    order = np.argsort(of_truth, kind="stable")[:count]
    wanted, found = set(order.tolist()), {}
    for i, (pixels, _) in enumerate(data.test.as_numpy_iterator()):
        if i in wanted:
            found[i] = pixels
    classes, answer = data.spec["classes"], probabilities.argmax(-1)
    report.image_grid(
        np.stack([found[i] for i in order]),
        [f"{classes[labels[i]]} {of_truth[i]:.0%}\n→ {classes[answer[i]]} {probabilities[i].max():.0%}" for i in order],
        folder / "plots/most_wrong.png",
        heading="test pictures with the least probability for their true class (red: wrong answers)",
        wrong={n for n, i in enumerate(order) if answer[i] != labels[i]},
    )


def with_found_rate(model: Any, data: Data, config: Config, folder: Path) -> Config:
    """`--lr_find`: sweep, draw, recompile with the suggested rate, and keep it in `config.json`."""
    chosen, rates, losses = training.find_learning_rate(model, training_batches(data, config), config)
    report.rate_sweep(rates, losses, chosen, folder / "plots/lr_find.png")
    print(f"learning rate {chosen:g} (from the sweep in {folder / 'plots/lr_find.png'})")
    config = dataclasses.replace(config, learning_rate=chosen, lr_find=False)
    with training.replicas(config):
        compile_model(model, config, data.spec)
    runs.write_json(folder / "config.json", runs.to_json(dataclasses.replace(config, resume=None)))
    return config


def main(config: Config) -> Path:
    """Train, evaluate and report; returns the run folder."""
    config = runs.resumed(TASK, config)
    if config.resume and runs.is_finished(Path(config.resume)):
        print(f"already finished: {config.resume}")
        return Path(config.resume)
    keras.utils.set_random_seed(config.seed)
    arguments(config)
    data = load_data(config)
    spec = data.spec
    model = build_model(config, spec)
    size = " × ".join(map(str, spec["image_shape"]))
    print(f"{config.model}: {model.count_params():,} parameters; {spec['dataset']}: {spec['counts']}, {size} pixels")
    with runs.start(TASK, config, spec) as folder:
        print(f"run folder: {folder}")
        if config.lr_find:
            config = with_found_rate(model, data, config, folder)
        first_batch(data, config, folder)
        print(f"first batch: {folder / 'plots/first_batch.png'}")
        fitted = training.fit(
            model,
            lambda step: training_batches(data, config, step),
            evaluation_batches(data.validation, config, spec).cache(),
            config,
            folder,
            examples=spec["counts"]["train"],
            monitor=f"val_{OBJECTIVE[0]}",
            mode=OBJECTIVE[1],
        )
        runs.save_model(model, folder / "model.keras")
        validation = measures(*predict(model, data.validation, config, spec))
        labels, probabilities = predict(model, data.test, config, spec)
        metrics = {
            "task": TASK,
            "objective": OBJECTIVE,
            "validation": validation,
            "test": measures(labels, probabilities),
            "baseline": baseline(data),
            "parameters": model.count_params(),
            **fitted,
            "peak_memory_mb": runs.peak_memory_mb(),
            "versions": training.environment(),
        }
        report.curves(runs.history(folder), folder / "plots/curves.png", f"val_{OBJECTIVE[0]}", fitted["best_epoch"])
        report.confusion(labels, probabilities.argmax(-1), spec["classes"], folder / "plots/confusion_matrix.png")
        most_wrong(data, labels, probabilities, folder)
        runs.write_json(folder / "metrics.json", metrics)
        command = f"python -m pipelines.{TASK} {command_line(dataclasses.replace(config, resume=None))}"
        report.model_card(folder, f"{config.model} on {spec['dataset']}", spec["dataset"], command.strip())
    test, linear = metrics["test"]["accuracy"], metrics["baseline"]["accuracy"]
    print(f"test accuracy {test:.2%} (logistic regression {linear:.2%}, {fitted['train_seconds']} s): {folder}")
    print(f"pictures: {folder / 'plots'}")
    if config.export:
        runs.export(folder)
    return folder


if __name__ == "__main__":
    run_cli(pipelines.get(TASK))
