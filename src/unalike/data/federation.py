"""A federation: who the clients are, which model each holds, and which rows are whose."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from .. import models, tasks
from ..errors import InputError
from ..files import with_tuples, write_atomically
from ..multimodal import MODALITIES, Foundation, is_multimodal, reader
from ..plugins import absolute
from ..pretrained import Adapted
from ..protocol import Batch, ClientInfo, Spec
from ..rng import Key
from ..tasks import Answering, Classification, Instruction, Task
from . import Impute, Source, text, vqa
from .fleet import Budgets, budgets
from .partition import PARTS, Partition, draw
from .preprocess import Preprocess
from .shift import draw as draw_shift
from .shift import parse as parse_shift
from .shift import require_images, shifted
from .sources import load as load_source
from .tiers import asked, models_of, own_classes, require_models

Scope: TypeAlias = Literal["own", "others", "all", "unseen", "no-image", "no-text"]
"""Whose test rows a client's model is scored on; or its own, with a modality taken away."""
WITHOUT: Mapping[Scope, str] = {"no-image": "image", "no-text": "text"}
"""Scope to the modality that is taken away."""
IMAGES = "images.npy"
"""File of a saved federation that questions are about."""


@dataclass(frozen=True, eq=False)
class Federation:
    """Everything a method is run on. Immutable; `save` and `load` carry it to other processes without copying rows."""

    source: Source
    partition: Partition
    clients: tuple[ClientInfo, ...]
    models: Mapping[str, Spec]
    task: Task
    keys: Mapping[str, Any] = field(default_factory=dict)
    """The keys of an experiment that lead to these data; empty for a `Source` made by hand."""
    _fitted: dict[int, Preprocess] = field(default_factory=dict, init=False, repr=False)
    _answers: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def rows(self, client: int, part: str) -> np.ndarray:
        """Indices into the source of a client's "train", "validation" or "test" rows."""
        found: np.ndarray = getattr(self.partition, part)[client]
        return found

    def preprocess(self, client: int) -> Preprocess:
        """Fitted, once, on the client's own training rows."""
        if client not in self._fitted:
            found = Preprocess.fit(self.source, self.rows(client, "train"), self._model(client))
            own = self.answers(client) if self.source.kind == "vqa" else None
            self._fitted[client] = found if own is None else replace(found, classes=own)
        return self._fitted[client]

    def answers(self, client: int) -> tuple[str, ...]:
        """What a client's model can answer: the answers of all its own rows, in alphabetical order."""
        return tuple(self.source.classes[i] for i in self._own(client))

    def _own(self, client: int) -> np.ndarray:
        if client not in self._answers:
            self._answers[client] = own_classes(self.source, self.partition, client)
        return self._answers[client]

    def _modalities(self, client: int) -> tuple[str, ...]:
        """What of a client's rows is there."""
        return (self.clients[client].modalities if client < len(self.clients) else ()) or MODALITIES

    def _model(self, client: int) -> str:
        """The name of a client's model; one that takes no part has the first one's."""
        return self.models[self.clients[client if client < len(self.clients) else 0].tier].name

    @property
    def unseen(self) -> range:
        """Clients whose rows are there and who take no part: the last ones of the partition."""
        return range(len(self.clients), len(self.partition))

    def within(self, scope: Scope, client: int) -> Sequence[int]:
        """The clients whose test rows a client's model meets: all others, all, the unseen; else itself."""
        everyone = range(len(self.clients))
        others = [other for other in everyone if other != client]
        return {"others": others, "all": everyone, "unseen": self.unseen}.get(scope, [client])

    def data(self, client: int, part: str, by: int | None = None, without: str = "") -> Batch:
        """A client's rows of one part, ready for its model: "x" float32 (n, ...), "y" int64 (n,); of texts both are
        tokens, see `text.tokens`; questions about images are in `vqa.batch`.

        Args:
            by: the client whose model meets them, where it is another one's: scaled as that one scales its own.
            without: a modality that is masked as if the rows had none of it: "image" or "text" of questions.
        """
        rows = self.rows(client, part)
        whose = client if by is None else by
        if self.source.kind == "text":
            return text.tokens(self._model(whose), self.source, rows)
        if self.source.kind == "vqa":
            read_by = reader(Foundation.read(self._model(whose)).model)
            has = [name for name in self._modalities(client) if name != without]
            return vqa.batch(read_by, self.source, rows, self._own(whose), has)
        x = self.preprocess(whose)(self.source.x[rows])
        return {"x": torch.from_numpy(x), "y": torch.from_numpy(np.array(self.source.y[rows]))}

    def describe(self) -> dict[str, Any]:
        """The picture of who has what, as it stands in partition.json."""
        y, classes = self.source.strata
        counts = self.partition.label_counts(y, len(classes))
        shift = self.partition.shift
        return {
            "scheme": self.partition.scheme,
            **self.simulated,
            **({} if self.source.groups is None else {"groups": len(np.unique(self.source.groups))}),
            "hash": self.partition.hash,
            "classes": list(classes),
            "clients": [
                {
                    "id": info.id,
                    "name": self.partition.names[info.id] if self.partition.names else str(info.id),
                    "tier": info.tier,
                    **{part: len(self.rows(info.id, part)) for part in PARTS},
                    **({} if info.memory is None else {"memory": info.memory}),
                    **({"modalities": list(info.modalities)} if info.modalities else {}),
                    **({"simulated_shift": shift.clients[info.id].describe()} if shift else {}),
                    "labels": counts[info.id].tolist(),
                }
                for info in self.clients
            ],
            **({"unseen": [{"id": k, "test": len(self.rows(k, "test"))} for k in self.unseen]} if self.unseen else {}),
        }

    @property
    def simulated(self) -> dict[str, str]:
        """The text of the simulated shift, where there is one, under the name it has in files."""
        return {"simulated_shift": self.partition.shift.simulated} if self.partition.shift else {}

    @property
    def budgets(self) -> Budgets:
        """Training memory of each client in bytes."""
        return tuple(info.memory for info in self.clients)

    def with_budgets(self, budgets: Budgets) -> Federation:
        """The same federation whose clients have these budgets."""
        infos = (replace(info, memory=memory) for info, memory in zip(self.clients, budgets, strict=True))
        return replace(self, clients=tuple(infos))

    def only(self, clients: Sequence[int]) -> Federation:
        """The same federation with a copy of these clients' rows and nobody else's, as it is handed to their site.

        Their `data` keep their bits; all other clients are left without rows. Numbers, infos and models stay.

        Raises:
            InputError: a client that there is not.
        """
        n = len(self.clients)
        for client in clients:
            if not 0 <= client < n:
                raise InputError(f"there is no client {client}: the clients are 0 to {n - 1}")
        mine = [self.rows(client, part) for part in PARTS for client in clients]
        kept = np.unique(np.concatenate([np.zeros(0, np.int64), *mine]))
        train, validation, test = (
            tuple(np.searchsorted(kept, self.rows(k, part) if k in clients else kept[:0]) for k in range(n))
            for part in PARTS
        )
        source = replace(self.source.take(kept), test=None, sites=None, groups=None, places=None)
        narrowed = {"text": text.only_own_answers, "vqa": vqa.only_used}.get(source.kind)
        source = narrowed(source) if narrowed else source
        partition = replace(self.partition, train=train, validation=validation, test=test)
        return replace(self, source=source, partition=partition, keys={})

    def save(self, folder: Path) -> None:
        """Write what `load` needs; the rows as .npy files that processes of one machine map and share."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "x.npy", self.source.x, allow_pickle=False)
        np.save(folder / "y.npy", self.source.y, allow_pickle=False)
        if self.source.images is not None:
            np.save(folder / IMAGES, self.source.images, allow_pickle=False)
        self.partition.save(folder / "partition.npz")
        about = {
            "source": {
                "name": self.source.name,
                "kind": self.source.kind,
                "classes": self.source.classes,
                "features": self.source.features,
                "pixel_max": self.source.pixel_max,
                "impute": self.source.impute,
                "simulated_shift": self.source.simulated_shift,
            },
            "clients": [asdict(info) for info in self.clients],
            "models": {tier: asdict(spec) for tier, spec in self.models.items()},
            "task": tasks.describe(self.task),
        }
        write_atomically(folder / "federation.json", json.dumps(about).encode())

    @classmethod
    def load(cls, folder: Path) -> Federation:
        """The federation that was saved in `folder`, its rows memory-mapped."""
        about = json.loads((folder / "federation.json").read_text())
        x, y = (np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in "xy")
        images = folder / IMAGES
        source = Source(
            x=x,
            y=y,
            images=np.load(images, mmap_mode="r", allow_pickle=False) if images.is_file() else None,
            **with_tuples(about["source"]),
        )
        return cls(
            source,
            Partition.load(folder / "partition.npz"),
            tuple(ClientInfo(**with_tuples(info)) for info in about["clients"]),
            {tier: Spec(**with_tuples(spec)) for tier, spec in about["models"].items()},
            tasks.restore(about["task"]),
        )


def federation(
    data: str | Source = "digits",
    *,
    data_path: str | Path | None = None,
    label: str | None = None,
    site_column: str | None = None,
    group_column: str | None = None,
    impute: Impute | None = None,
    image_size: int | None = None,
    rows: int | None = None,
    clients: int | None = None,
    partition: str | Partition = "dirichlet:0.5",
    split: Sequence[float] = (0.6, 0.2, 0.2),
    min_per_client: int = 10,
    unseen: int = 0,
    shift: str | None = None,
    models: Sequence[str] = (),
    model_map: Mapping[int, str] | None = None,
    feature_width: int | None = None,
    fleet: str | None = None,
    modalities: str | None = None,
    seed: int = 0,
) -> Federation:
    """Load data, divide it among clients and give each a model.

    Args:
        data: a built-in name, a file, a folder (see `unalike data`), several of them joined by +, or a `Source`.
        data_path, label, site_column, group_column, impute, image_size: how to read it, see docs/data.md.
        rows: draw so many rows of the data at random and leave out the others; an official test set stays whole.
        clients: number of clients (10); for `partition="site"` the data tells.
        partition: a scheme such as "dirichlet:0.5", or a `Partition`.
        split: shares of train, validation and test rows of each client.
        min_per_client: least number of rows a client must get.
        unseen: so many of the clients, the last ones, take no part: the others' models can be scored on their rows.
        shift: simulated domain shift such as "stain:0.8,blur:0.5" or "mixed:0.7", see `data.shift`: each client's
            images, of all parts, go through a transform of its own. The partition keeps it.
        models: names that clients take in turn (client k the model k mod len); empty: the five sizes for the data.
        model_map: client to model, overriding its turn.
        feature_width: pool every extractor's output to this width.
        fleet: memory budgets, "2GiB", "uniform:LOW:HIGH" or a file, see `data.fleet`; None: nobody has one.
        modalities: what clients have of images and questions, "3:text,4:image"; all others have both.
        seed: seeds the choice of rows, the partition, the shift and the budgets.

    Raises:
        InputError: in one line what is wrong, where, and what would be right.
    """
    if shift is not None:
        parse_shift(shift)
    keys: dict[str, Any] = {}
    if isinstance(data, Source):
        source = data
        source.require_classes()
    else:
        keys = {"data": data, "data_path": data_path and str(data_path), "label": label, "site_column": site_column}
        keys |= {
            "group_column": group_column,
            "impute": impute,
            "image_size": image_size,
            "split": tuple(split),
            "min_per_client": min_per_client,
        }
        source = load_source(
            data,
            path=Path(data_path) if data_path else None,
            label=label,
            site_column=site_column,
            group_column=group_column,
            impute=impute,
            image_size=image_size,
            seen=vqa.side_of(filter(is_multimodal, [*models, *(model_map or {}).values()])) or None,
        )
    if rows is not None and not (isinstance(partition, str) and not partition.startswith("file:")):
        raise InputError("the partition says already which rows are used: leave --rows out")
    if shift is not None:
        require_images(source, shift)
    require_models(source, [*models, *(model_map or {}).values()])
    if isinstance(partition, str):
        drawn = np.arange(len(source.y)) if rows is None else source.sample(rows, (Key.root(seed) / "rows").numpy())
        part, key = source if rows is None else source.take(drawn), Key.root(seed) / "partition"
        clients = 10 if clients is None and partition != "site" and not partition.startswith("file:") else clients
        divided = draw(part, partition, clients=clients, key=key, split=tuple(split), min_per_client=min_per_client)
        partition = divided.within(drawn)
    if shift is not None and partition.shift:
        raise InputError(f"--shift {shift}: the partition has one already ({partition.shift.simulated}): leave it out")
    if shift is not None:
        key = Key.root(seed) / "shift"
        partition = replace(partition, shift=draw_shift(shift, len(partition), source.x.shape[1:], key))
    if partition.shift:
        source = shifted(source, list(map(partition.of, range(len(partition)))), partition.shift)
    found = assemble(source, partition, models, model_map or {}, feature_width, keys, unseen, modalities)
    return found if fleet is None else found.with_budgets(budgets(fleet, len(found.clients), Key.root(seed) / "fleet"))


def assemble(
    source: Source,
    partition: Partition,
    names: Sequence[str],
    model_map: Mapping[int, str],
    feature_width: int | None = None,
    keys: Mapping[str, Any] | None = None,
    unseen: int = 0,
    modalities: str | None = None,
) -> Federation:
    """A federation of rows already divided. Every model is built once and checked against the data."""
    n, like = len(partition) - unseen, Spec("", tuple(source.x.shape[1:]), len(source.classes), feature_width)
    if modalities is not None and source.kind != "vqa":
        raise InputError(f"--modalities {modalities}: {source.name} is of kind {source.kind}: leave it out")
    if not 0 <= unseen < len(partition):
        raise InputError(f"--unseen {unseen}: of {len(partition)} clients at least one must take part")
    if source.kind == "vqa":
        side = vqa.side_of({*names, *model_map.values()})
        source, like = vqa.sized(source, side), replace(like, input=(3, side, side))
    tiers, specs = models_of(n, names or models.DEFAULTS[source.kind], model_map, like)
    infos = tuple(ClientInfo(k, tier, len(partition.train[k])) for k, tier in enumerate(tiers))
    for info in infos:
        if not info.n:
            raise InputError(f"client {info.id} has no training data: ask for fewer clients or --min-per-client 1")
    if source.kind == "vqa":
        infos, specs = asked(source, partition, infos, specs, vqa.modalities(modalities or "", n))
        return Federation(source, partition, infos, specs, Answering(), keys or {})
    spoken = Adapted.read(specs[tiers[0]].name).model if source.kind == "text" else ""
    task: Task = Instruction(spoken) if spoken else Classification(like.classes)
    return Federation(source, partition, infos, specs, task, keys or {})


def with_shared(federation: Federation, shared_model: str) -> tuple[Federation, str]:
    """The same federation that also knows the model `shared_model`, and the tier by which it knows it."""
    name = absolute(shared_model)
    for tier, spec in federation.models.items():
        if shared_model == tier or spec.name == name:
            return federation, tier
    spec = replace(next(iter(federation.models.values())), name=name)
    models.check(spec)
    return replace(federation, models={**federation.models, name: spec}), name
