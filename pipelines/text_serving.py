"""How a classifier of texts is served: signatures beside the default one, and what the gate of an export compares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

Encode = Callable[[Any], Any]  # raw strings (b,) to padded ids (b, t)


def answers(logits: Any, classes: list[str]) -> dict[str, Any]:
    """Named answers from logits (b, k): the label and the probability of every class."""
    probabilities = tf.nn.softmax(tf.cast(logits, tf.float32))  # (b, k)
    return {"label": tf.gather(tf.constant(classes), tf.argmax(logits, -1)), "probabilities": probabilities}


def trunk(model: Any) -> Any:
    """The model up to the vectors before its head."""
    return keras.Model(model.inputs, model.get_layer("features").output)


def signatures(model: Any, classes: list[str], encode: Encode, tokenizer: Any) -> dict[str, tuple[Any, dict[str, Any]]]:
    """`from_token_ids`, `tokenize`, `features` and `classify`, as `text_classification.more_signatures` tells.

    Args:
        model: the trained model.
        classes: names of its k classes.
        encode: raw strings to what the model takes.
        tokenizer: that of `encode`, for the export to track.
    """
    before_head = trunk(model)

    def from_token_ids(token_ids):
        return answers(model(token_ids, training=False), classes)

    def tokenize(text):
        return {"token_ids": encode(text)}

    def features(text):
        return {"features": tf.cast(before_head(encode(text), training=False), tf.float32)}

    def classify(inputs):
        example = tf.io.parse_example(inputs, {"text": tf.io.FixedLenFeature([], tf.string)})
        scores = answers(model(encode(example["text"]), training=False), classes)["probabilities"]
        names = tf.broadcast_to(tf.constant(classes)[None], tf.shape(scores))  # (b, k)
        return {"classes": names, "scores": scores}

    for function in (tokenize, features, classify):
        function.resources = [tokenizer]  # type: ignore[attr-defined]
    raw = tf.TensorSpec([None], tf.string, name="text")
    ids = tf.TensorSpec([None, None], tf.int32, name="token_ids")
    return {
        "from_token_ids": (from_token_ids, {"token_ids": ids}),
        "tokenize": (tokenize, {"text": raw}),
        "features": (features, {"text": raw}),
        "classify": (classify, {"inputs": tf.TensorSpec([None], tf.string, name="inputs")}),
    }


def checks(
    texts: np.ndarray, ids: np.ndarray, probabilities: np.ndarray, vectors: np.ndarray, classes: list[str], pad_id: int
) -> Iterator[dict[str, Any]]:
    """Inputs of a client and Keras's answers, in batches of 128.

    Args:
        texts: n raw texts.
        ids: their ids (n, t), as the model takes them, of one length, which ONNX takes from here.
        probabilities: (n, k) of Keras.
        vectors: (n, d) before the head, of Keras.
        classes: names of the k classes.
        pad_id: id of padding.

    Yields:
        {signature: ({input: array}, {output: array})}
    """
    names = np.array(classes, object)
    for start in range(0, len(texts), 128):
        part = slice(start, start + 128)
        feature = [tf.train.Feature(bytes_list=tf.train.BytesList(value=[one])) for one in texts[part]]
        records = [tf.train.Example(features=tf.train.Features(feature={"text": one})) for one in feature]
        serialized = np.array([one.SerializeToString() for one in records], object)
        expected = {"probabilities": probabilities[part], "label": names[probabilities[part].argmax(-1)]}
        scores = {"scores": probabilities[part], "classes": np.broadcast_to(names, probabilities[part].shape)}
        longest = int((ids[part] != pad_id).sum(-1).max())
        yield {
            "serving_default": ({"text": texts[part]}, expected),
            "from_token_ids": ({"token_ids": ids[part]}, expected),
            "tokenize": ({"text": texts[part]}, {"token_ids": ids[part, :longest]}),
            "features": ({"text": texts[part]}, {"features": vectors[part]}),
            "classify": ({"inputs": serialized}, scores),
        }
