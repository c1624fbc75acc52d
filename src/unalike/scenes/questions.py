"""Questions about a scene and their answers: six kinds in the neutral mixture, five of them the clients' as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .world import COLOURS, PLACES, SHAPES, SIZES, Scene, Thing

NEUTRAL: Mapping[str, Sequence[str]] = {
    "colour": ("what colour is {it} ?", "what color is {it} ?", "{it} has which colour ?", "name the colour of {it} ."),
    "shape": ("what shape is {it} ?", "what is {it} ?", "{it} has which shape ?", "name the shape of {it} ."),
    "count": ("how many {things} are there ?", "count the {things} .", "what is the number of {things} ?"),
    "place": ("where is {it} ?", "in which corner is {it} ?", "name the place of {it} ."),
    "size": ("what size is {it} ?", "{it} has which size ?", "name the size of {it} ."),
    "presence": ("is there a {thing} ?", "does the image contain a {thing} ?", "is a {thing} present ?"),
}
"""Kind of question to the phrasings of the mixture that models are trained on."""
OURS: Mapping[str, Sequence[str]] = {
    "colour": ("which colour does {it} have ?", "tell the colour of {it} .", "{it} : colour ?"),
    "shape": ("which shape does {it} have ?", "tell the shape of {it} .", "{it} : shape ?"),
    "count": ("what is the count of {things} ?", "tell how many {things} you see .", "{things} : how many ?"),
    "size": ("which size does {it} have ?", "tell the size of {it} .", "{it} : size ?"),
    "presence": ("tell whether there is a {thing} .", "is any {thing} there ?", "{thing} : any ?"),
}
"""Kind of question to the phrasings of the clients."""
KINDS = tuple(OURS)
BESIDES = """a an the thing things no not image contain how many of in is are there more than color present shape which
platelet platelets white cell cells ten any number yes black gray brown teal rectangle"""
"""Words of questions about other data, so that they can be told apart."""


def answers() -> list[str]:
    """All there are."""
    return sorted({*COLOURS, *SHAPES, *SIZES, *PLACES, "yes", "no", "0", "1", "2", "3"})


def ask(found: Scene, kind: str, phrasings: Mapping[str, Sequence[str]], rng: np.random.Generator) -> tuple[str, str]:
    """A question of a kind about a scene, and its answer; `LookupError` where the scene has nothing to ask about."""
    words, answer = _KINDS[kind](found, rng)
    return _pick(phrasings[kind], rng).format(**words), answer


def _colour(found: Scene, rng: np.random.Generator) -> tuple[dict[str, str], str]:
    thing = _only(found, "shape", rng)
    return {"it": f"the {thing.shape}"}, thing.colour


def _shape(found: Scene, rng: np.random.Generator) -> tuple[dict[str, str], str]:
    thing = _only(found, "colour", rng)
    return {"it": f"the {thing.colour} thing"}, thing.shape


def _count(found: Scene, rng: np.random.Generator) -> tuple[dict[str, str], str]:
    """Things of a colour, of a shape, or all."""
    which = int(rng.integers(3))
    if which == 0:
        return {"things": "things"}, str(len(found))
    names = [thing.colour if which == 1 else thing.shape for thing in found]
    every = _every("colour" if which == 1 else "shape")
    name = _pick(names if rng.random() < 0.7 else every, rng)
    return {"things": f"{name} things" if which == 1 else plural(name)}, str(names.count(name))


def _place(found: Scene, rng: np.random.Generator) -> tuple[dict[str, str], str]:
    by = ("shape", "colour")[int(rng.integers(2))]
    thing = _only(found, by, rng)
    return {"it": f"the {thing.shape}" if by == "shape" else f"the {thing.colour} thing"}, PLACES[thing.place]


def _size(found: Scene, rng: np.random.Generator) -> tuple[dict[str, str], str]:
    by = ("shape", "colour")[int(rng.integers(2))]
    thing = _only(found, by, rng)
    return {"it": f"the {thing.shape}" if by == "shape" else f"the {thing.colour} thing"}, thing.size


def _presence(found: Scene, rng: np.random.Generator) -> tuple[dict[str, str], str]:
    """A colour or a shape, that something has or not, alike often."""
    name = ("shape", "colour")[int(rng.integers(2))]
    has, is_there = [getattr(thing, name) for thing in found], rng.random() < 0.5
    value = _pick(has if is_there else [other for other in _every(name) if other not in has], rng)
    return {"thing": value if name == "shape" else f"{value} shape"}, "yes" if is_there else "no"


def _every(name: str) -> list[str]:
    return list(COLOURS) if name == "colour" else list(SHAPES)


_KINDS: Mapping[str, Callable[[Scene, np.random.Generator], tuple[dict[str, str], str]]] = {
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "place": _place,
    "size": _size,
    "presence": _presence,
}


def _only(found: Scene, name: str, rng: np.random.Generator) -> Thing:
    """A thing that nothing else shares this property with."""
    values = [getattr(thing, name) for thing in found]
    single = [thing for thing, value in zip(found, values, strict=True) if values.count(value) == 1]
    if not single:
        raise LookupError
    return single[int(rng.integers(len(single)))]


def plural(shape: str) -> str:
    """Several of a shape."""
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def _pick(among: Sequence[str], rng: np.random.Generator) -> str:
    return among[int(rng.integers(len(among)))]


def names() -> list[str]:
    """Words for colours and shapes."""
    return [*_every("colour"), *_every("shape"), *map(plural, _every("shape"))]


def words() -> list[str]:
    """Every word that is asked."""
    forms = [form for listed in (NEUTRAL, OURS) for kind in listed.values() for form in kind]
    texts = [*forms, *names(), BESIDES]
    return sorted({word for text in texts for word in text.split() if not word.startswith("{")})
