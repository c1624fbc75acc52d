"""FedDPA: two adapters on one frozen language model, a shared one and a client's own, blended by input.

Y. Yang, G. Long, T. Shen, J. Jiang, M. Blumenstein, "Dual-Personalizing Adapter for Federated Foundation Models",
NeurIPS 2024, https://arxiv.org/abs/2403.19211

A client has one task, and at test time meets the others' as well. With W frozen and s = alpha / r, in each layer

    h = W x + (1 − a) s B_g A_g x + a s B_l A_l x             a is the weight of the client's own ("local") adapter

    FedDPA-T   server    sample S_t, send the global A_g, B_g
               client    1. E epochs of AdamW at a = 0, global:                     A_g,k, B_g,k;   send them and n_k
                         2. E epochs at a = ½, local, with A_g,k, B_g,k frozen:     A_l,k, B_l,k;   keep them
               server    A_g ← Σ n_k A_g,k / Σ n_k,   B_g ← Σ n_k B_g,k / Σ n_k
    FedDPA-F   rounds 1 .. R: step 1 and the server's only;   round R + 1, all clients, nothing is sent:
               local ← global, E' epochs alone at a = 1
    inference  a(x) = λ · mean over S training rows x_s of sim(e(x), e(x_s)), within 0..λ
               e(x) is the last hidden layer at the last token of the prompt; a(x) holds for the whole answer

Step 1 is FedIT's, bit for bit, so that what is gained beside it is the blend's.

Where paper and released code are read differently there is a switch: `order`, `weighs`, `embedding`.

Deviations
- The server's mean is by samples; the authors' is uniform. They are the same where clients have equally many rows.
- `weighs = "global"` is the released script, which gives a(x) to the global adapter; `embedding = "local"` is its
  embedding; `order = "local_first"` its order: step 2 before step 1, beside the global adapter as it was received, and
  no step 2 in round 1.
- E' is E in the paper; `last_epochs` is for runs of many short rounds, where E epochs would tune nothing.
- A local adapter begins (A random, B = 0) at the client's first step 2; before it the client predicts at a = 0.
- sim is the cosine; of the paper's other two, "l2" is 1 / (1 + ‖e(x) − e(x_s)‖ / √d) here. Negative means count as 0.
- `contrast = "centred"` is ours: the mean embedding of neutral instructions, which are nobody's, is subtracted from
  every embedding first. What all prompts have in common then no longer makes them alike.
- `encoder` is ours: a sentence encoder, without any adapter, embeds the instructions.
- The anchors x_s are drawn once an evaluation; `anchors_drawn = "fresh"` draws S for each instance, by its content.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self, TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import adapters, tree
from ..adapters import LoraTraining
from ..averaging import average
from ..models import language
from ..plugins import absolute
from ..pretrained import Adapted, neutral
from ..protocol import Algorithm, Arrival, Batch, ClientInfo, Count, Job, Ready, Share, Update, Whole
from ..rng import Key
from ..tree import Tree


class Server(TypedDict):
    adapter: Tree
    """A_g, B_g of every layer."""


class Wire(TypedDict, total=False):
    adapter: Tree
    """A_g, B_g to the client; A_g,k, B_g,k from it, absent in FedDPA-F's last round."""


class Private(TypedDict, total=False):
    adapter: Tree
    """A_l,k, B_l,k, absent before they are first trained."""


@dataclass(frozen=True, kw_only=True)
class FedDPA(LoraTraining, Algorithm[Server, Private, Wire]):
    """A shared and a personal adapter of a language model, blended by input."""

    paper: ClassVar[str] = "Yang et al., Dual-Personalizing Adapter, NeurIPS 2024, arXiv:2403.19211"
    needs: ClassVar[str] = "texts, and one language model"
    equal_architectures: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": adapters.PAPER}

    variant: Literal["T", "F"] = "T"
    """T trains the local adapter in every round, F once, after the last round."""
    order: Literal["global_first", "local_first"] = "global_first"
    """Which adapter FedDPA-T trains first in a visit."""
    last_epochs: Whole = 0
    """E': epochs of FedDPA-F's last round; 0: as many as in the others."""
    lam: Share = 0.5
    """λ: the largest weight of the local adapter."""
    weighting: Literal["auto", "fixed", "global", "local"] = "auto"
    """Ablation: a(x) is computed, `fixed_weight` for all, 0 or 1."""
    fixed_weight: Share = 0.5
    """a for all inputs where `weighting` is "fixed"."""
    weighs: Literal["local", "global"] = "local"
    """Which adapter a(x) is the weight of."""
    embedding: Literal["global", "local"] = "global"
    """With which adapter inputs are embedded."""
    encoder: str = ""
    """A model that only reads, lm:FOLDER_OR_HUB_ID, to embed inputs in the place of the language model; empty: none."""
    similarity: Literal["cosine", "l2", "pearson"] = "cosine"
    """How alike two embeddings are."""
    anchors: Count = 5
    """S: training rows that an input is held against."""
    anchors_drawn: Literal["cached", "fresh"] = "cached"
    """Whether all inputs are held against the same rows, or each against its own draw."""
    contrast: Literal["none", "centred"] = "none"
    """Whether the mean embedding of neutral instructions is subtracted first."""

    def settle(self, clients: Sequence[ClientInfo]) -> Self:
        return replace(self, encoder=absolute(self.encoder)) if self.encoder else self

    def require(self, clients: Sequence[ClientInfo]) -> None:
        adapters.require("feddpa", self.models, self.shared_model, clients)
        if self.encoder:
            Adapted.read(self.encoder)

    def init_server(self, key: Key) -> Server:
        return {"adapter": language.initial(self.shared, key / "adapter")}

    def init_client(self, info: ClientInfo, key: Key) -> Private:
        return {}

    def select(self, server: Server, clients: Sequence[ClientInfo], round: int, key: Key) -> Sequence[ClientInfo]:
        return clients if round > self.rounds else super().select(server, clients, round, key)

    def broadcast(self, server: Server, info: ClientInfo, round: int) -> Wire:
        return {"adapter": server["adapter"]}

    def client_update(self, job: Job[Private, Wire]) -> Update[Private, Wire]:
        common = job.down["adapter"]
        alone = functools.partial(language.answer_loss, self.shared, self.task)
        if job.round > self.rounds:
            tuned, mean = self.visit(alone, {"local": common}, {}, job.data, job.key / "local", self.last_epochs)
            return Update({}, {"adapter": tuned["local"]}, job.info.n, {"loss": mean})
        own, late = job.state, self.variant == "T" and self.order == "local_first"
        if late and job.round > 1:
            own = self._personal(job, common)
        tuned, mean = self.visit(alone, {"global": common}, {}, job.data, job.key)
        if self.variant == "T" and not late:
            own = self._personal(job, tuned["global"])
        return Update({"adapter": tuned["global"]}, own, job.info.n, {"loss": mean})

    def _personal(self, job: Job[Private, Wire], common: Tree) -> Private:
        """Step 2: the local adapter, at a = ½ beside the global one."""
        key = job.key / "local"
        begun = job.state.get("adapter") or language.initial(self.shared, key / "adapter")
        loss = functools.partial(language.blended_loss, self.shared, self.task, 0.5)
        tuned, _ = self.visit(loss, {"local": begun}, {"global": common}, job.data, key)
        return {"adapter": tuned["local"]}

    def aggregate(self, server: Server, arrivals: Sequence[Arrival[Wire]], round: int, key: Key) -> Server:
        return server if round > self.rounds else {"adapter": average(arrivals, "adapter")}

    def done(self, server: Server, round: int) -> bool:
        return round >= self.rounds + (self.variant == "F")

    def prepare(self, info: ClientInfo, down: Wire, state: Private, data: Batch, key: Key) -> Ready:
        """Embeds the training rows that inputs are held against. What an exported model needs of them is in "down"."""
        ready: dict[str, Any] = {"info": info, "down": dict(down), "state": state}
        if self.weighting != "auto" or "adapter" not in state or "anchors" in down:
            return ready
        n = len(data["x"])
        fresh = self.anchors_drawn == "fresh"
        rows = torch.arange(n) if fresh else _drawn(n, self.anchors, key)
        x = data["x"][rows.to(data["x"].device)]
        told = {"anchors": self._embedded(ready, x), "rows": rows, "draw": torch.tensor(list(key.digest))}
        if self.contrast == "centred":
            adapted = Adapted.read(self.shared.name)
            texts = language.tokens_of(self.shared).prompts(neutral(adapted.model), adapted.length)
            told["centre"] = self._embedded(ready, texts.to(x.device)).mean(0)
        ready["down"] |= told
        return ready

    def predict(self, ready: Any, batch: Batch) -> Tensor:
        both = _adapters(ready)
        a = self.weights(ready, batch["x"])[0]
        return self.answers(self.shared, both, batch["x"], a if len(both) == 2 else None)

    def weights(self, ready: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """a (B,), what the local adapter counts, and the numbers of each row's anchors and their similarities (B, S).

        S is 0 where inputs are held against nothing: a client without a local adapter has a = 0, and a may be fixed.
        """
        rows, alike = x.new_zeros(len(x), 0), torch.zeros(len(x), 0, device=x.device)
        fixed = {"global": 0.0, "local": 1.0, "fixed": self.fixed_weight}.get(self.weighting, 0.0)
        a = torch.full((len(x),), fixed, device=x.device)
        if "adapter" not in ready["state"]:
            return torch.zeros_like(a), rows, alike
        if self.weighting == "auto":
            a, rows, alike = self._by_anchors(ready, x)
        if self.weighs == "global" and self.weighting in ("auto", "fixed"):
            a = 1 - a
        return a, rows, alike

    def _by_anchors(self, ready: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """a(x), and what it comes from."""
        told: Mapping[str, Tensor] = ready["down"]
        places, centre = self._places(told, x), told.get("centre", torch.zeros((), device=x.device))
        alike = similarity(self.similarity, self._embedded(ready, x) - centre, told["anchors"][places] - centre)
        return (self.lam * alike.mean(1)).clamp(0.0, self.lam), told["rows"][places], alike

    def _places(self, told: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """(B, S): which of the embedded training rows each input is held against."""
        n = len(told["anchors"])
        if self.anchors_drawn == "cached":
            return torch.arange(n, device=x.device).expand(len(x), n)
        key, mask = Key(bytes(told["draw"].tolist())), language.tokens_of(self.shared).prompt_mask(x).bool()
        kinds = [tree.sha256({"x": row[kept]}) for row, kept in zip(x, mask, strict=True)]
        return torch.stack([_drawn(n, self.anchors, key / kind) for kind in kinds]).to(x.device)

    def _embedded(self, ready: Any, x: Tensor) -> Tensor:
        """e(x) (B, d)."""
        if self.encoder:
            return language.embed_texts(self.encoder, language.tokens_of(self.shared).instructions(x), x.device)
        one: dict[str, Tree] = {self.embedding: _adapters(ready)[self.embedding]}
        return torch.cat([language.embed(self.shared, one, rows) for rows in torch.split(x, self.batch_size)])

    def explain(self, ready: Any, batch: Batch) -> Mapping[str, Any]:
        """See `adapters.Explains`."""
        both, x = _adapters(ready), batch["x"]
        a, rows, alike = self.weights(ready, x)
        written = {name: self.answers(self.shared, {name: adapter}, x) for name, adapter in both.items()}
        answers = {**written, "blend": self.predict(ready, batch)}
        return {"weight": a, "anchors": rows, "similarities": alike, "answers": answers}


def similarity(kind: str, e: Tensor, others: Tensor) -> Tensor:
    """(B, S): how alike e (B, d) and others (B, S, d) are, 1 where they are the same."""
    if kind == "l2":
        distances = torch.linalg.vector_norm(e[:, None] - others, dim=2)
        return torch.reciprocal(1 + distances / math.sqrt(e.shape[1]))
    if kind == "pearson":
        e, others = e - e.mean(1, keepdim=True), others - others.mean(2, keepdim=True)
    alike: Tensor = F.cosine_similarity(e[:, None], others, dim=2)
    return alike


def _adapters(ready: Any) -> dict[str, Tree]:
    own = {"local": ready["state"]["adapter"]} if "adapter" in ready["state"] else {}
    return {"global": ready["down"]["adapter"], **own}


def _drawn(n: int, count: int, key: Key) -> Tensor:
    """`count` of n rows, or all of them where there are fewer, ascending."""
    return torch.randperm(n, generator=key.torch())[:count].sort().values
