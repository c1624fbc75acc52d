"""What sites must agree on before they train together, and a site's own rows brought to that agreement.

No row and no statistic is in it: the names of classes and columns, the shape of a row, the value that is white, and
how missing values are filled. A server that has no data builds its models from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import InputError
from ..files import write_atomically
from ..protocol import ClientInfo, Spec
from ..tasks import Classification
from . import Array, Impute, Kind, Source
from .federation import Federation
from .partition import Ints, Partition

FILE = "schema.json"


class Schema(BaseModel):
    """The agreement. Classes and features are in the order in which outputs and inputs of every model stand."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    shape: tuple[int, ...] = Field(min_length=1, description="of a row, as in `Source.x`, without the rows")
    classes: tuple[str, ...] = Field(min_length=2)
    features: tuple[str, ...] = Field((), description="names of a table's columns; empty where they have none")
    pixel_max: float = Field(1.0, gt=0, allow_inf_nan=False, description="the value of an image that is white")
    impute: Impute | None = Field(None, description="how a client fills missing values; None: there are none")

    @classmethod
    def of(cls, source: Source) -> Schema:
        """The agreement that a source keeps; `InputError` for texts and questions: their classes are all answers."""
        if source.kind in ("text", "vqa"):
            what = "texts" if source.kind == "text" else "questions"
            raise InputError(f"{source.name} holds {what}: a deployment cannot agree on them yet")
        return cls(
            kind=source.kind,
            shape=tuple(source.x.shape[1:]),
            classes=source.classes,
            features=source.features,
            pixel_max=source.pixel_max,
            impute=source.impute,
        )

    def to_json(self, path: Path) -> None:
        """Write what `from_json` reads."""
        write_atomically(path, (self.model_dump_json(indent=2) + "\n").encode())

    @classmethod
    def from_json(cls, path: Path) -> Schema:
        """The agreement in a file; `InputError` when there is none, or when it is not whole."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise InputError(
                f"{path} cannot be read ({error.strerror}): copy it from the deployment's folder"
            ) from None
        except ValidationError as error:
            found = error.errors()[0]
            key = ".".join(map(str, found["loc"])) or "the file"
            raise InputError(f"{path}: {key}: {found['msg']}; copy it again from the deployment's folder") from None

    def require(self, source: Source) -> None:
        """Raise `InputError` naming the first point in which a source departs from the agreement."""
        own = Schema.of(source)
        for name in Schema.model_fields:
            has, agreed = getattr(own, name), getattr(self, name)
            if has != agreed:
                raise InputError(
                    f"{source.name}: {name} is {has}, agreed is {agreed}: take the data of this deployment"
                )

    def conform(self, source: Source) -> Source:
        """A site's own rows with the classes, columns and white of the agreement, in its order.

        A text of a column that the site never met, `colour=red`, becomes a column of zeros.

        Raises:
            InputError: an unknown class, a column too many or missing, another kind or size, or values missing where
                nothing fills them.
        """
        if source.kind != self.kind:
            raise InputError(f"{source.name} is of kind {source.kind}; agreed is {self.kind} of shape {self.shape}")
        x, y = self._columns(source), self._labels(source)
        if x.shape[1:] != self.shape:
            raise InputError(f"{source.name}: {self._misfit(x.shape[1:])}")
        self._require_filled(source.name, x, source.impute)
        return replace(
            source,
            x=self._scaled(source, x),
            y=y,
            classes=self.classes,
            features=self.features,
            pixel_max=self.pixel_max,
            impute=self.impute,
        )

    def _labels(self, source: Source) -> Ints:
        present = np.unique(source.y)
        for label in present:
            if source.classes[label] not in self.classes:
                row = int(np.flatnonzero(source.y == label)[0]) + 1
                raise InputError(
                    f"{source.name}: row {row} has the class {source.classes[label]!r}, which is none of the agreed "
                    f"{', '.join(self.classes)}: rename it, or drop its rows"
                )
        place = np.zeros(len(source.classes), np.int64)
        place[present] = [self.classes.index(source.classes[label]) for label in present]
        return place[source.y]

    def _columns(self, source: Source) -> Array:
        if not self.features:
            return source.x
        if not source.features:
            raise InputError(
                f"{source.name} has no column names; agreed are {', '.join(self.features)}: give a .csv that has them"
            )
        own = {name: source.x[:, i] for i, name in enumerate(source.features)}
        for name in own:
            if name not in self.features:
                raise InputError(f"{source.name} has a column {name!r} that was not agreed on{self._hint(name)}")
        return np.stack([own[n] if n in own else self._unseen(source.name, n, own) for n in self.features], axis=1)

    def _hint(self, name: str) -> str:
        known = [f for f in self.features if "=" in name and f.startswith(f"{name.partition('=')[0]}=")]
        return f"; agreed are {', '.join(known)}" if known else f": drop it; agreed are {', '.join(self.features)}"

    def _unseen(self, where: str, name: str, own: Mapping[str, Array]) -> Array:
        """The indicator of a text that none of the site's rows has: 0, or missing where the column is."""
        column, equals, _ = name.partition("=")
        siblings = [values for other, values in own.items() if equals and other.startswith(f"{column}=")]
        if not siblings:
            missing = [n for n in self.features if n not in own]
            raise InputError(f"{where} has no column {name!r}; of the agreed ones it lacks {', '.join(missing)}")
        return np.where(np.isnan(siblings[0]), np.nan, 0).astype(np.float32)

    def _misfit(self, shape: tuple[int, ...]) -> str:
        if self.kind != "image":
            return f"rows have the shape {shape}, agreed is {self.shape}"
        (channels, *size), (agreed, *side) = shape, self.shape
        if channels != agreed:
            return f"images have {channels} channel{'s'[: channels - 1]}, agreed are {agreed} (1 is grey, 3 is colour)"
        square = f": give image_size = {side[0]}" if side[0] == side[1] else ""
        return f"images are {size[0]}x{size[1]} pixels, agreed are {side[0]}x{side[1]} (height x width){square}"

    def _require_filled(self, where: str, x: Array, impute: Impute | None) -> None:
        if impute and self.impute and impute != self.impute:
            raise InputError(f"{where}: impute is {impute}, agreed is {self.impute}: leave it out")
        if self.impute is None and np.isnan(x).any():
            row, *rest = (int(i) for i in np.argwhere(np.isnan(x))[0])
            place = f"column {self.features[rest[0]]!r}" if self.features else f"position {tuple(i + 1 for i in rest)}"
            raise InputError(f"{where}: row {row + 1}, {place} is missing, and to fill gaps was not agreed on (impute)")

    def _scaled(self, source: Source, x: Array) -> Array:
        """Images whose white is another value, as float32 with the agreed one."""
        if self.kind != "image" or source.pixel_max == self.pixel_max:
            return x
        if x.size and x.max() > source.pixel_max:
            raise InputError(
                f"{source.name}: a pixel is {x.max():g}, but white is {source.pixel_max:g}: give pixel_max in the .npz"
            )
        return (x * np.float32(self.pixel_max / source.pixel_max)).astype(np.float32)


def empty_federation(schema: Schema, clients: Sequence[ClientInfo], models: Mapping[str, Spec]) -> Federation:
    """What a server without data holds: clients and models, and of rows only what they look like.

    Args:
        clients: in the order of their numbers, which start at 0.
        models: the specification of each tier that a client names.
    """
    for place, info in enumerate(clients):
        if info.id != place:
            raise InputError(
                f"client {info.id} stands at place {place}: give the clients in the order of their numbers"
            )
        if info.tier not in models:
            raise InputError(f"client {info.id} has the model {info.tier!r}; known are {', '.join(models) or 'none'}")
    none: Ints = np.zeros(0, np.int64)
    nobody = (none,) * len(clients)
    return Federation(
        Source(
            "sites",
            schema.kind,
            np.zeros((0, *schema.shape), np.float32),
            none,
            schema.classes,
            features=schema.features,
            pixel_max=schema.pixel_max,
            impute=schema.impute,
        ),
        Partition(nobody, nobody, nobody, "site"),
        tuple(clients),
        dict(models),
        Classification(len(schema.classes)),
    )
