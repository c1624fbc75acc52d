"""Centralized adapter: one adapter, tuned on everybody's rows in one place. Nothing here is federated, by intent.

The adapter is that of N. Houlsby, A. Giurgiu, S. Jastrzebski, B. Morrone, Q. de Laroussilhe, A. Gesmundo, M. Attariyan,
S. Gelly, "Parameter-Efficient Transfer Learning for NLP", ICML 2019, https://arxiv.org/abs/1902.00751, where FedDAT has
its own:

    h + Up(ReLU(Down(h)))  after the feed-forward of every layer
    client    at its first visit send all training rows, and the head it begins with
    server    E epochs of AdamW on all rows it has, shuffled together, each row by its client's head:  A, heads

It shows what one adapter can learn where data may be pooled: **clients give images, questions and answers away**.
`Wire` says so.

Deviations
- One adapter a layer, after the feed-forward only, as FedDAT has it.
- A round is E epochs over all rows, so that after equally many rounds each row was seen as often as by the others.
- Heads are as many as clients, since each has its own answers. In a batch without a client's rows its head gets the
  gradient 0, and moves by what AdamW remembers.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import answering, tree
from ..answering import AnswerTraining
from ..models import multimodal
from ..multimodal import Foundation, reader
from ..protocol import Algorithm, Arrival, Batch, ClientInfo, Job, Spec, Update
from ..rng import Key
from ..tasks import Task
from ..tree import Tree


class Server(TypedDict):
    adapter: Tree
    heads: Tree
    """Client to its head."""
    rows: Tree
    """Client to its training rows."""
    loss: Tensor
    """Of the last round, a scalar."""


class Wire(TypedDict, total=False):
    adapter: Tree
    """To the client."""
    head: Tree
    """From the client, once, as it begins; to it, as it has been trained."""
    rows: Tree
    """From the client, once: every training row that it has."""


class Private(TypedDict, total=False):
    head: Tree
    """As it begins."""
    sent: Tensor
    """There once the rows have been sent."""


@dataclass(frozen=True, kw_only=True)
class CentralizedAdapter(AnswerTraining, Algorithm[Server, Private, Wire]):
    """One adapter tuned on the rows of all clients, which they give away."""

    paper: ClassVar[str] = "Houlsby et al., Parameter-Efficient Transfer Learning, ICML 2019, arXiv:1902.00751"
    needs: ClassVar[str] = "images and questions that may be pooled, and one model of both"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = answering.PRESETS

    def require(self, clients: Sequence[ClientInfo]) -> None:
        answering.require("centralized-adapter", self.models, self.shared_model, clients)

    def init_server(self, key: Key) -> Server:
        adapter = multimodal.initial(self.shared, "adapter", key / "shared")
        return {"adapter": adapter, "heads": {}, "rows": {}, "loss": torch.zeros(())}

    def init_client(self, info: ClientInfo, key: Key) -> Private:
        return {"head": multimodal.initial_head(self.models[info.tier], key / "head")}

    def broadcast(self, server: Server, info: ClientInfo, round: int) -> Wire:
        head = server.get("heads", {}).get(str(info.id))
        return {"adapter": server["adapter"]} if head is None else {"adapter": server["adapter"], "head": head}

    def client_update(self, job: Job[Private, Wire]) -> Update[Private, Wire]:
        if "sent" in job.state:
            return Update({}, job.state, job.info.n)
        rows = {name: column.clone() for name, column in job.data.items()}
        state: Private = {"head": tree.clone(job.state["head"]), "sent": torch.ones(())}
        return Update({"rows": rows, "head": tree.clone(job.state["head"])}, state, job.info.n)

    def aggregate(self, server: Server, arrivals: Sequence[Arrival[Wire]], round: int, key: Key) -> Server:
        new = [a for a in arrivals if "rows" in a.up]
        rows = {**server.get("rows", {}), **{str(a.info.id): a.up["rows"] for a in new}}
        heads = {**server.get("heads", {}), **{str(a.info.id): a.up["head"] for a in new}}
        whose = sorted(rows, key=int)
        pooled = answering.joined([rows[k] for k in whose], reader(Foundation.read(self.shared.name).model).pad)
        loss = functools.partial(pooled_loss, self.shared, self.task, whose)
        tuned, mean = self.visit(loss, {"adapter": server["adapter"], "heads": heads}, pooled, key)
        return {"adapter": tuned["adapter"], "heads": tuned["heads"], "rows": rows, "loss": torch.tensor(mean)}

    def report(self, server: Server, round: int) -> Mapping[str, float]:
        """The mean loss of the round's training, which is the server's here."""
        return {"loss": float(server["loss"])}

    def predict(self, ready: Any, batch: Batch) -> Tensor:
        own, down = self.models[ready["info"].tier], ready["down"]
        head = down["head"] if "head" in down else ready["state"]["head"]
        return multimodal.logits(own, {"adapter": [down["adapter"]]}, head, batch)


def pooled_loss(spec: Spec, task: Task, whose: Sequence[str], params: Tree, given: Tree, batch: Batch) -> Tensor:
    """The mean over rows of the task's loss, each row by the head of the client that it is of.

    Args:
        whose: the clients by the numbers in the column "client".
    """
    features = multimodal.features(spec, {"adapter": [params["adapter"]]}, batch, train=True)
    total = 0.0 * torch.stack([leaf.sum() for leaf in tree.flatten(params["heads"]).values()]).sum()
    for number in sorted(set(batch["client"].tolist())):
        mine = batch["client"] == number
        head, rows = params["heads"][whose[number]], {name: column[mine] for name, column in batch.items()}
        outputs = F.linear(features[mine], head["weight"], head["bias"])
        total = total + task.loss(outputs, rows) * mine.sum() / len(mine)
    return total
