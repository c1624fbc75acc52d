"""FedDAT: a frozen model of images and questions, a shared and a local adapter, and a teacher made of both.

H. Chen, Y. Zhang, D. Krompass, J. Gu, V. Tresp, "FedDAT: An Approach for Foundation Model Finetuning in Multi-Modal
Heterogeneous Federated Learning", AAAI 2024, https://arxiv.org/abs/2308.12305

After the feed-forward of every layer stands  A(h) = h + Up(ReLU(Down(h))).  There are three of them: A_s, which
travels; A_c, which never leaves its client; Â_s, a frozen copy of A_s as it was sent. The Dual-Adapter Teacher (DAT)
has in every layer  ½ A_c(h) + ½ Â_s(h)  on the same hidden state: neither logits nor parameters are averaged. Each
client has a head onto its own answers, which both passes use. Of a batch (x, y):

    server    sample S_t, send A_s
    client    A_c, head as they were left; Â_s = A_s; for every batch
              z_T = f(x; DAT), no gradient;  z_s = f(x; A_s)
              step A_s and head   L_s = ½ [ CE(z_s, y) + α τ² KL(softmax(z_T / τ) ‖ softmax(z_s / τ)) ]
              z_D = f(x; DAT)
              step A_c and head   L_D = ½ [ CE(z_D, y) + α τ² KL(softmax(z_s / τ) ‖ softmax(z_D / τ)) ]
              send A_s and n_k
    server    A_s ← Σ n_k A_s,k / Σ n_k

z_s of L_D is that of L_s, before A_s's step. Three optimisers, fresh in each round, and the head's steps in both halves
with one memory; so what rests in a half is not moved, by momentum or decay either. Prediction is by the DAT whose Â_s
is the aggregated A_s; `views` are each adapter alone, with the same head.

Deviations
- The server's mean is by samples; the authors' is uniform. They are the same where clients have equally many rows.
- A head is one linear layer on what the model pools; the authors' is a small network. It is the client's own here as
  there, so no answer of a client's is known to others.
- Evaluation is of the DAT with the refreshed Â_s; the authors' has the copy from the round's start.
- The step size is constant; the authors' grows over most of every round.
- A_c trains in every round. In the public code it trains in round 0 only, since evaluation leaves it without gradients.
- α, and `warmup` rounds without KL, are ours; at their defaults 1 and 0 they change nothing.
- So is `head_by`. By both halves, as here by default and there, a head takes two steps a batch, twice a rival's; with
  `head_by` "shared" or "dual" it takes one.
- Where `teacher` is one adapter alone, that is z_T; the second half trains the DAT as ever.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypedDict

import torch
from torch import Tensor

from .. import answering
from ..answering import AnswerTraining
from ..averaging import average
from ..distillation import kl_divergence
from ..local import Step, train
from ..models import multimodal
from ..protocol import Algorithm, Arrival, Batch, ClientInfo, Job, NonNegative, Positive, Spec, Update, Whole
from ..rng import Key
from ..tree import Tree


class Server(TypedDict):
    adapter: Tree
    """A_s."""


class Wire(TypedDict):
    adapter: Tree
    """A_s to the client; A_s,k from it."""


class Private(TypedDict):
    adapter: Tree
    """A_c."""
    head: Tree
    """Onto the client's own answers."""


@dataclass(frozen=True, kw_only=True)
class FedDAT(AnswerTraining, Algorithm[Server, Private, Wire]):
    """A shared and a local adapter of a model of images and questions, taught by both together."""

    paper: ClassVar[str] = "Chen et al., FedDAT, AAAI 2024, arXiv:2308.12305"
    needs: ClassVar[str] = "images and questions, and one model of both"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = answering.PRESETS
    views: ClassVar[tuple[str, ...]] = ("local", "shared")

    distillation: Literal["mutual", "none", "shared", "dual"] = "mutual"
    """Ablation: into both, into none, into the shared adapter only, into the dual-adapter teacher only."""
    teacher: Literal["dual", "local", "shared"] = "dual"
    """Ablation: what teaches the shared adapter: both adapters, A_c alone, or Â_s alone."""
    alpha: NonNegative = 1.0
    """α: the weight of KL."""
    tau: Positive = 3.0
    """τ: the temperature."""
    warmup: Whole = 0
    """Rounds at the beginning that have no KL."""
    head_by: Literal["both", "shared", "dual"] = "both"
    """Which half of a batch trains the head: both, that of the shared adapter, or that of the dual-adapter teacher."""

    def require(self, clients: Sequence[ClientInfo]) -> None:
        answering.require("feddat", self.models, self.shared_model, clients)

    def init_server(self, key: Key) -> Server:
        return {"adapter": multimodal.initial(self.shared, "adapter", key / "shared")}

    def init_client(self, info: ClientInfo, key: Key) -> Private:
        """The same adapter for every client, and not the server's."""
        own = self.models[info.tier]
        head = multimodal.initial_head(own, key / "head")
        return {"adapter": multimodal.initial(own, "adapter", key / "local"), "head": head}

    def broadcast(self, server: Server, info: ClientInfo, round: int) -> Wire:
        return {"adapter": server["adapter"]}

    def client_update(self, job: Job[Private, Wire]) -> Update[Private, Wire]:
        sent, alpha = job.down["adapter"], self.alpha if job.round > self.warmup else 0.0
        params = {"shared": sent, "local": job.state["adapter"], "head": job.state["head"]}
        visits = self.visits(job.data, job.key / "batches")
        tuned, mean = train(self.steps(job.info, alpha), params, {"copy": sent}, visits, job.key / "noise")
        state: Private = {"adapter": tuned["local"], "head": tuned["head"]}
        return Update({"adapter": tuned["shared"]}, state, job.info.n, {"loss": mean})

    def steps(self, info: ClientInfo, alpha: float) -> Sequence[Step]:
        """The two halves of a batch; "shared", "local" and "head" train beside "copy", which is constant."""
        optimiser, own = self.optimiser(), self.models[info.tier]

        def half(loss: Callable[..., Any], adapter: str, head: bool) -> Step:
            trains = [adapter, "head"] if head else [adapter]
            return Step(functools.partial(loss, own, alpha), dict.fromkeys(trains, optimiser))

        return [
            half(self._taught, "shared", self.head_by != "dual"),
            half(self._teaching, "local", self.head_by != "shared"),
        ]

    def _taught(
        self, own: Spec, alpha: float, params: Tree, given: Tree, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L_s, and z_s for the second half."""
        z_s = multimodal.logits(own, {"adapter": [params["shared"]]}, params["head"], batch, train=True)
        loss = self.task.loss(z_s, batch)
        if alpha and self.distillation in ("mutual", "shared"):
            both = {"local": params["local"], "shared": given["copy"]}
            taught = list(both.values()) if self.teacher == "dual" else [both[self.teacher]]
            with torch.no_grad():
                z_t = multimodal.logits(own, {"adapter": taught}, params["head"], batch, train=True)
            loss = loss + alpha * kl_divergence(z_t, z_s, self.tau)
        return 0.5 * loss, {"z_s": z_s}

    def _teaching(self, own: Spec, alpha: float, params: Tree, given: Tree, batch: Batch) -> Tensor:
        """L_D."""
        dual = {"adapter": [params["local"], given["copy"]]}
        z_d = multimodal.logits(own, dual, params["head"], batch, train=True)
        loss = self.task.loss(z_d, batch)
        if alpha and self.distillation in ("mutual", "dual"):
            loss = loss + alpha * kl_divergence(batch["z_s"], z_d, self.tau)
        return 0.5 * loss

    def aggregate(self, server: Server, arrivals: Sequence[Arrival[Wire]], round: int, key: Key) -> Server:
        return {"adapter": average(arrivals, "adapter")}

    def predict(self, ready: Any, batch: Batch) -> Tensor:
        return self._outputs(ready, [ready["state"]["adapter"], ready["down"]["adapter"]], batch)

    def view(self, name: str, ready: Any, batch: Batch) -> Tensor:
        """See `answering.Viewed`: "local" is A_c alone, "shared" the aggregated A_s alone."""
        return self._outputs(ready, [ready[{"local": "state", "shared": "down"}[name]]["adapter"]], batch)

    def _outputs(self, ready: Any, adapters: Sequence[Tree], batch: Batch) -> Tensor:
        own = self.models[ready["info"].tier]
        return multimodal.logits(own, {"adapter": adapters}, ready["state"]["head"], batch)
