"""How a decoder writes on: prompts of several lengths side by side, their caches, and what is compiled for a call.

A prompt stands at the right end of its row, so that the next token of every text has the same column.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from models.layers.classification import check_choice
from models.layers.compiled import Compiled, known
from models.layers.sampling import Generated, Rules, Sampling, Step, begin, sample

POLICIES = ("error", "left")
KEPT = 8  # kinds of calls that a model keeps compiled functions for


class Prompts(NamedTuple):
    """Prompts at the right ends of their rows: token ids (b, p), and their lengths (b,)."""

    token_ids: Any
    lengths: Any

    @property
    def width(self):
        return ops.shape(self.token_ids)[1]

    def mask(self, new: int = 0):
        """Which of p columns, and those of so many new tokens, hold no padding: (b, p + new)."""
        return ops.arange(self.width + new, dtype="int32")[None] >= self.width - self.lengths[:, None]


def aligned(prompt, lengths, most: int | None = None) -> Prompts:
    """Prompts (b, p) that begin at the left and have lengths (b,), moved to the right.

    Args:
        prompt: padded with anything.
        lengths: at least 1.
        most: tokens of a prompt that are kept, the last ones; None for all.
    """
    width = ops.shape(prompt)[1]
    columns, gap = ops.arange(width, dtype="int32")[None], (width - lengths)[:, None]  # (1, p) and (b, 1)
    prompt = ops.take_along_axis(prompt, ops.mod(columns - gap, width), axis=1)  # (b, p)
    prompt = ops.where(columns >= gap, prompt, 0)
    if most is not None and not (isinstance(width, int) and width <= most):
        prompt, lengths = prompt[:, -most:], ops.minimum(lengths, most)
    if prompt.shape[1] is None:  # which may be 1, and nothing can be read before the last token then
        prompt = ops.pad(prompt, [[0, 0], [1, 0]])
    return Prompts(prompt, lengths)


def begun(model, prompts: Prompts, new: int) -> Any:
    """The caches of a model after all of the prompts but their last tokens, with room for so many new ones."""
    width = prompts.width
    state = model.empty_state(ops.shape(prompts.token_ids)[0], width + new - 1)  # of the last token nothing is asked
    if isinstance(width, int) and width == 1:
        return state
    gap = width - prompts.lengths[:, None]  # (b, 1)
    places = ops.maximum(ops.arange(width, dtype="int32")[None] - gap, 0)[:, :-1]  # (b, p - 1)
    more = {"position": 0, "places": places, "mask": prompts.mask(new - 1)}
    return model.hidden(prompts.token_ids[:, :-1], state=state, **more)[1]


def stepping(model, prompts: Prompts, new: int) -> Step:
    """The step of `models.layers.sampling.sample`."""
    mask = prompts.mask(new - 1)  # (b, p + m - 1)

    def step(token_ids, count, state):
        places = (prompts.lengths + count - 1)[:, None]  # (b, 1)
        more = {"position": prompts.width + count - 1, "places": places, "mask": mask}
        answer, state = model.decode(token_ids[:, None], state=state, **more)
        return answer[:, 0], state

    return step


class Writer:
    """How texts are written on by a model, with all arguments checked.

    Args:
        model: a `models.gpt.CausalLM`.
        others: of its `generate`.

    Raises:
        ValueError: an argument is not as described there.
    """

    def __init__(
        self,
        model,
        *,
        max_new_tokens: int,
        temperature: Any = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        prompt_policy: str = "error",
        **ends: Any,
    ):
        if model.arguments["head"] != "lm":
            raise ValueError(f'Only a model with the head "lm" generates. Received: {model.arguments["head"]!r}')
        drawing = Sampling(temperature, top_k, top_p, repetition_penalty)
        self.model, self.policy = model, check_choice("prompt_policy", prompt_policy, POLICIES)
        self.rules = Rules(model.arguments["vocab_size"], max_new_tokens, drawing, **ends).check()
        self.room = None  # tokens that a prompt may have
        if model.parts.positions is not None or prompt_policy == "left":
            self.room = model.arguments["max_length"] - max_new_tokens
            self.fits(1)

    @property
    def most(self) -> int | None:
        """Tokens of a prompt that are kept; None for all."""
        return self.room if self.policy == "left" else None

    def fits(self, longest: int) -> None:
        """Refuses a prompt of so many tokens, where it may not be cut."""
        if self.room is not None and longest > self.room and (self.policy == "error" or self.room < 1):
            raise ValueError(
                f'Prompt and answer must fit into {self.model.arguments["max_length"]} positions; prompt_policy="left" '
                f"keeps the end of a prompt. Received: {longest} and max_new_tokens={self.rules.max_new_tokens}"
            )

    def noise(self, batch, seed: int | None, given: Any) -> Any:
        """Uniform numbers (max_new_tokens, b)."""
        shape = (self.rules.max_new_tokens, batch)
        if given is None:
            return keras.random.uniform(shape, seed=seed)
        given = ops.convert_to_tensor(given, dtype="float32")
        sizes = [size if isinstance(size, int) else None for size in shape]  # one that is traced is not known yet
        if len(given.shape) != 2 or any(None not in pair and pair[0] != pair[1] for pair in zip(given.shape, sizes)):
            raise ValueError(f"noise must be (max_new_tokens, b), {shape}. Received: shape {tuple(given.shape)}")
        return given

    def write(self, prompt, lengths, noise) -> Generated:
        """The texts after prompts (b, p), by one loop, which a graph that is being traced takes in."""
        batch, width = ops.shape(prompt)
        lengths = ops.full((batch,), width, "int32") if lengths is None else ops.convert_to_tensor(lengths, "int32")
        prompts, new = aligned(prompt, lengths, self.most), self.rules.max_new_tokens
        now = begin(prompts.token_ids, prompts.mask(), self.rules)
        return sample(stepping(self.model, prompts, new), begun(self.model, prompts, new), now, noise, self.rules)

    def generate(self, prompt, lengths, seed: int | None, noise) -> Generated:
        """`CausalLM.generate`: what has values is written by a compiled function."""
        given = (prompt, lengths, noise, self.rules.drawing.temperature)
        if any(one is not None and known(one) is None for one in given):
            prompt = ops.convert_to_tensor(prompt, dtype="int32")
            batch, width = ops.shape(prompt)
            if isinstance(width, int):
                self.fits(width)
            return self.write(prompt, lengths, self.noise(batch, seed, noise))
        inputs = self.checked(prompt, lengths)
        inputs["noise"] = ops.convert_to_numpy(self.noise(len(inputs["prompt"]), seed, noise))
        function = self.kept((), lambda: Compiled(self.model, self.whole))
        return Generated(*function.predict_on_batch(inputs | self.warmth))

    def whole(self, inputs: dict[str, Any]) -> tuple[Any, ...]:
        """What is compiled for `generate`."""
        return tuple(self.at(inputs["temperature"]).write(inputs["prompt"], inputs["lengths"], inputs["noise"]))

    def checked(self, prompt, lengths) -> dict[str, np.ndarray]:
        """Prompts and lengths that have values as arrays, the prompts padded to one of a few widths."""
        prompt = np.asarray(known(prompt))
        if prompt.ndim != 2 or prompt.size == 0 or prompt.dtype.kind not in "iu":
            raise ValueError(f"prompt must hold whole numbers (b, p). Received: {prompt.dtype} of shape {prompt.shape}")
        batch, width = prompt.shape
        lengths = np.full(batch, width) if lengths is None else np.asarray(known(lengths))
        if lengths.shape != (batch,) or lengths.dtype.kind not in "iu" or lengths.min() < 1 or lengths.max() > width:
            raise ValueError(f"lengths must be {batch} numbers from 1 to {width}. Received: {lengths.tolist()}")
        inside = np.arange(width) < lengths[:, None]  # (b, p)
        wrong = np.argwhere(inside & ((prompt < 0) | (prompt >= self.rules.vocab_size)))
        if len(wrong):
            row, place = wrong[0]
            raise ValueError(
                f"Token ids must be from 0 to {self.rules.vocab_size - 1}. Received: {prompt[row, place]} at place "
                f"{place} of prompt {row}"
            )
        width = int(lengths.max())
        self.fits(width)
        prompt = np.where(inside, prompt, 0)[:, :width].astype("int32")
        if self.model.arguments["block"]["attention"]["kind"] != "block_sparse":
            prompt = np.pad(prompt, [(0, 0), (0, rounded(width) - width)])
        elif lengths.min() < width:  # its blocks begin at the first column
            raise ValueError(f'With attention="block_sparse" prompts have one length. Received: {lengths.tolist()}')
        return {"prompt": prompt, "lengths": lengths.astype("int32")}

    @property
    def warmth(self) -> dict[str, np.ndarray]:
        """The temperature as an array, so that calls that differ in it share a function."""
        return {"temperature": np.asarray(known(self.rules.drawing.temperature), "float32")}

    def at(self, temperature) -> "Writer":
        """The same with a tensor as the temperature; what is greedy stays so."""
        other = object.__new__(Writer)
        vars(other).update(vars(self))
        if not self.rules.drawing.greedy:
            other.rules = self.rules._replace(drawing=self.rules.drawing._replace(temperature=temperature))
        return other

    def kept(self, more: tuple, make: Callable[[], Any]) -> Any:
        """What the model keeps for such calls, or what is made now; of many the oldest is forgotten."""
        store, key = self.model.parts.writers, (self.at(1.0).rules, self.policy, *more)
        store[key] = store.pop(key) if key in store else make()
        while len(store) > KEPT:
            store.pop(next(iter(store)))
        return store[key]


def rounded(width: int) -> int:
    """The next of 8, 16, 32, 64, 128, 192, 256, …: few widths, so that few graphs are made."""
    return max(8, 1 << (width - 1).bit_length()) if width <= 64 else -(-width // 64) * 64
