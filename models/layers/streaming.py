"""Texts token by token as they are written: the caches stay in variables, which one compiled step reads and writes."""

from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile
from typing import Any

import keras
import numpy as np
from keras import ops

from models.layers.compiled import Compiled
from models.layers.sampling import advance, begin
from models.layers.writing import Prompts, Writer, aligned, begun, stepping


class Session:
    """The memory of one stream, and the two functions that read and write it.

    Args:
        writer: how texts are written.
        batch, width: of the prompts.
    """

    def __init__(self, writer: Writer, batch: int, width: int):
        self.writer, self.new = writer, writer.rules.max_new_tokens
        prompts = aligned(ops.zeros((batch, width), "int32"), ops.ones((batch,), "int32"), writer.most)
        self.width = prompts.width
        empty = {
            "lengths": prompts.lengths,
            "now": begin(prompts.token_ids, prompts.mask(), writer.rules),
            "state": writer.model.empty_state(batch, self.width + self.new - 1),
        }
        self.memory = keras.tree.map_structure(
            lambda value: keras.Variable(value, dtype=keras.backend.standardize_dtype(value.dtype), trainable=False),
            empty,
        )
        variables = keras.tree.flatten(self.memory)
        self.begin = Compiled(writer.model, self._begin, variables)
        self.step = Compiled(writer.model, self._step, variables)

    def _begin(self, inputs):
        prompts = aligned(inputs["prompt"], inputs["lengths"], self.writer.most)
        now = begin(prompts.token_ids, prompts.mask(), self.writer.rules)
        self._remember({"lengths": prompts.lengths, "now": now, "state": begun(self.writer.model, prompts, self.new)})
        return prompts.lengths

    def _step(self, inputs):
        writer = self.writer.at(inputs["temperature"])
        memory = keras.tree.map_structure(ops.convert_to_tensor, self.memory)
        lengths = memory["lengths"]
        prompts = Prompts(ops.zeros((1, self.width), "int32"), lengths)  # read already: their width alone counts
        step = stepping(writer.model, prompts, self.new)
        now, state = advance(step, inputs["count"], memory["now"], memory["state"], inputs["noise"], writer.rules)
        self._remember({"lengths": lengths, "now": now, "state": state})
        return now["last"], now["ended"]

    def _remember(self, new: Any) -> None:
        keras.tree.map_structure(lambda variable, value: variable.assign(value), self.memory, new)


def stream(model, prompt, lengths=None, *, seed: int | None = None, noise=None, **options: Any) -> Iterator[np.ndarray]:
    """`models.gpt.CausalLM.stream`."""
    writer = Writer(model, **options)
    inputs = writer.checked(prompt, lengths)
    batch, width = inputs["prompt"].shape
    numbers = ops.convert_to_numpy(writer.noise(batch, seed, noise))
    return _stream(writer, inputs, numbers, writer.kept((batch, width), list))


def _stream(writer: Writer, inputs: dict, noise: np.ndarray, free: list[Session]) -> Iterator[np.ndarray]:
    """The steps, with a session that no other stream uses now; it is given back at the end, whatever that is."""
    session = free.pop() if free else Session(writer, *inputs["prompt"].shape)
    try:
        session.begin.predict_on_batch(inputs)
        for count, numbers in enumerate(noise):
            given = {"count": np.asarray(count, "int32"), "noise": numbers, **writer.warmth}
            token_ids, ended = session.step.predict_on_batch(given)
            yield token_ids
            if ended.all():
                return
    finally:
        free.append(session)


def text_pieces(token_ids: Iterable[Any], decode: Callable[[list[int]], str]) -> Iterator[str]:
    """The text of token ids piece by piece as they come, no character cut.

    A piece is held back while the text ends in U+FFFD, which stands for the first bytes of a character whose others are
    yet to come. Joined, the pieces are the text of all ids, as far as `decode` only adds to a text when tokens follow.

    Args:
        token_ids: numbers, or arrays (1,), as `stream` of one prompt gives them.
        decode: from token ids to their text, as `PretrainedTokenizer.decode`.

    Returns:
        An iterator of strings, none of them empty.
    """
    ids: list[int] = []
    said = text = ""
    for one in token_ids:
        ids.append(int(np.asarray(one).reshape(())))
        text = decode(ids)
        if not text.endswith("\ufffd") and text.startswith(said) and text != said:
            yield text[len(said) :]
            said = text
    if text != said:
        yield text[sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, said))) :]
