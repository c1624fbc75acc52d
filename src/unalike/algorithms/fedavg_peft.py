"""Federated averaging of one thing that is tuned in a frozen model: an adapter, LoRA, a prompt, biases, or norms.

Each is trained by every client and averaged, as in H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas,
"Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017:

    server    sample S_t, send θ
    client    E epochs of AdamW on θ and the client's own head:  θ_k;   send it and n_k
    server    θ ← Σ n_k θ_k / Σ n_k

    fedavg-adapter  h + Up(ReLU(Down(h))) after every feed-forward. N. Houlsby et al., "Parameter-Efficient Transfer
                    Learning for NLP", ICML 2019, https://arxiv.org/abs/1902.00751
    fedavg-lora     W x + (alpha / r) B A x on queries and values. E. J. Hu et al., "LoRA: Low-Rank Adaptation of Large
                    Language Models", ICLR 2022, https://arxiv.org/abs/2106.09685
    fedavg-prompt   soft tokens before the sequence. B. Lester, R. Al-Rfou, N. Constant, "The Power of Scale for
                    Parameter-Efficient Prompt Tuning", EMNLP 2021, https://arxiv.org/abs/2104.08691
    fedavg-bias     every bias. E. Ben Zaken, S. Ravfogel, Y. Goldberg, "BitFit: Simple Parameter-efficient Fine-tuning
                    for Transformer-based Masked Language-models", ACL 2022, https://arxiv.org/abs/2106.10199
    fedavg-norm     weights and biases of LayerNorm, as FedDAT's authors compare with

They are FedDAT's rivals: backbone, head, optimiser, epochs and aggregation are its own, and only what is tuned differs.

Deviations
- Heads are the clients' own and never averaged, since each client has its own answers.
- Soft tokens stand after the first one, which the model pools.
- Rank and alpha are 16 and 16, and there are 16 soft tokens; of these FedDAT's authors say the rank only.
- The mean of products is not the product of means: of LoRA A and B are averaged, each by itself.
"""

from __future__ import annotations

import functools
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

from torch import Tensor

from .. import answering
from ..answering import AnswerTraining, tuned_loss
from ..averaging import average
from ..models import multimodal
from ..models.tuned import Kind, Tuned
from ..protocol import Algorithm, Arrival, Batch, ClientInfo, Count, Job, Positive, Update
from ..rng import Key
from ..tree import Tree


class Server(TypedDict):
    tuned: Tree
    """θ."""


class Wire(TypedDict):
    tuned: Tree
    """θ to the client, θ_k from it."""


class Private(TypedDict):
    head: Tree
    """Onto the client's own answers."""


@dataclass(frozen=True, kw_only=True)
class _FedAvgPeft(AnswerTraining, Algorithm[Server, Private, Wire], ABC):
    """What the five have in common: all but what is tuned."""

    needs: ClassVar[str] = "images and questions, and one model of both"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = answering.PRESETS
    kind: ClassVar[Kind]
    """What is tuned."""

    def require(self, clients: Sequence[ClientInfo]) -> None:
        answering.require(f"fedavg-{self.kind}", self.models, self.shared_model, clients)

    @property
    def scale(self) -> float:
        """s of LoRA."""
        return 1.0

    def _fresh(self, key: Key) -> Tree:
        return multimodal.initial(self.shared, self.kind, key)

    def init_server(self, key: Key) -> Server:
        return {"tuned": self._fresh(key / "shared")}

    def init_client(self, info: ClientInfo, key: Key) -> Private:
        return {"head": multimodal.initial_head(self.models[info.tier], key / "head")}

    def broadcast(self, server: Server, info: ClientInfo, round: int) -> Wire:
        return {"tuned": server["tuned"]}

    def client_update(self, job: Job[Private, Wire]) -> Update[Private, Wire]:
        loss = functools.partial(tuned_loss, self.models[job.info.tier], self.task, self.kind, self.scale)
        params = {self.kind: job.down["tuned"], "head": job.state["head"]}
        tuned, mean = self.visit(loss, params, job.data, job.key)
        return Update({"tuned": tuned[self.kind]}, {"head": tuned["head"]}, job.info.n, {"loss": mean})

    def aggregate(self, server: Server, arrivals: Sequence[Arrival[Wire]], round: int, key: Key) -> Server:
        return {"tuned": average(arrivals, "tuned")}

    def predict(self, ready: Any, batch: Batch) -> Tensor:
        own = self.models[ready["info"].tier]
        tuned: Tuned = {self.kind: [ready["down"]["tuned"]]}
        return multimodal.logits(own, tuned, ready["state"]["head"], batch, scale=self.scale)


@dataclass(frozen=True, kw_only=True)
class FedAvgAdapter(_FedAvgPeft):
    """Federated averaging of one bottleneck adapter."""

    paper: ClassVar[str] = "Houlsby et al., Parameter-Efficient Transfer Learning, ICML 2019, arXiv:1902.00751"
    kind: ClassVar[Kind] = "adapter"


@dataclass(frozen=True, kw_only=True)
class FedAvgLora(_FedAvgPeft):
    """Federated averaging of LoRA."""

    paper: ClassVar[str] = "Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, arXiv:2106.09685"
    kind: ClassVar[Kind] = "lora"

    rank: Count = 16
    """r."""
    lora_alpha: Positive = 16
    """alpha: LoRA's outputs are multiplied by alpha / r."""

    @property
    def scale(self) -> float:
        return self.lora_alpha / self.rank

    def _fresh(self, key: Key) -> Tree:
        return multimodal.initial(self.shared, self.kind, key, r=self.rank)


@dataclass(frozen=True, kw_only=True)
class FedAvgPrompt(_FedAvgPeft):
    """Federated averaging of soft tokens before the sequence."""

    paper: ClassVar[str] = "Lester et al., Parameter-Efficient Prompt Tuning, EMNLP 2021, arXiv:2104.08691"
    kind: ClassVar[Kind] = "prompt"

    tokens: Count = 16
    """How many soft tokens there are."""

    def _fresh(self, key: Key) -> Tree:
        return multimodal.initial(self.shared, self.kind, key, tokens=self.tokens)


@dataclass(frozen=True, kw_only=True)
class FedAvgBias(_FedAvgPeft):
    """Federated averaging of all biases of the model."""

    paper: ClassVar[str] = "Ben Zaken et al., BitFit, ACL 2022, arXiv:2106.10199"
    kind: ClassVar[Kind] = "bias"


@dataclass(frozen=True, kw_only=True)
class FedAvgNorm(_FedAvgPeft):
    """Federated averaging of the model's LayerNorms."""

    paper: ClassVar[str] = "Chen et al., FedDAT (its rival), AAAI 2024, arXiv:2308.12305"
    kind: ClassVar[Kind] = "norm"
