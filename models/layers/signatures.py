"""The signature of a function that hands its keyword arguments on to another one."""

import inspect
from collections.abc import Callable


def with_arguments_of(base: Callable, *without: str) -> Callable[[Callable], Callable]:
    """A decorator: in place of `**arguments` the signature shows the keyword-only arguments of `base`.

    Args:
        base: the function that gets them.
        without: names that the decorated function decides itself.
    """

    def decorate(function: Callable) -> Callable:
        own = [one for one in inspect.signature(function).parameters.values() if one.kind != one.VAR_KEYWORD]
        names = {*without, *(one.name for one in own)}
        more = [one for one in inspect.signature(base).parameters.values() if one.kind == one.KEYWORD_ONLY]
        function.__signature__ = inspect.Signature([*own, *(one for one in more if one.name not in names)])  # type: ignore[attr-defined]
        return function

    return decorate
