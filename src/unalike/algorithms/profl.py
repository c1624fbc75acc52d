"""ProFL: a model that is too large for its clients' memory, trained block by block.

Y. Wu, L. Li, C. Xu, "Breaking the Memory Wall for Heterogeneous Federated Learning via Progressive Training", KDD 2025,
https://arxiv.org/abs/2404.13349

A chain is cut into blocks θ_1 ... θ_T. The sub-model of step t is blocks 1..t, a proxy (one convolution) for each
missing block, and the header; blocks before t are frozen. Client i takes part where its memory m_i holds the step.

    shrinking, t = T .. 2
      1. FedAvg trains θ_t, proxies and header on the task until the freeze rule fires;   θ_t* ← θ_t
      2. mapping, FedAvg as well:  proxy_t ← proxy_t − η_m ∇ mean (student(x) − sub-model_t(x))²
         the student is the sub-model with proxy_t in the place of θ_t, at t = T with a header that trains along
    growing, t = 1 .. T
      θ_t ← θ_t* (θ_1 fresh); FedAvg trains θ_t, proxies and header until the freeze rule fires; θ_t is frozen
    freeze rule   effective movement of θ_t over successive global models (`stopping.EffectiveMovement`)
    server        x ← Σ n_k x_k / Σ n_k of whatever trains, over K of the clients with need(t) ≤ m_k

Deviations
- All ends within `rounds`, shrinking included. A phase lasts `max_rounds` at most; where that is 0, its share of the
  rounds that are left, in which shrinking a block counts 1, mapping it 0.5 and growing one 3 (`phases.share`). What it
  does not use goes to the phases after it. A run whose rounds are spent ends with the sub-model it has.
- Frozen blocks normalise by their own statistics. In the authors' code they normalise by the batch and go on counting:
  `frozen_bn = "train"`, whereupon their statistics travel as well.
- A frozen block of growing is sent to each client once. Those of shrinking are first weights: sent is the key that they
  are drawn by.
- Thresholds of the freeze rule are ours. So is mapping's step size, halved when the loss rises, and its end: when the
  loss has not fallen for `patience` rounds, after `map_rounds`, or after its share.
- Proxies and header go on from step to step of growing. `proxies = "shrinking"` takes those trained beside θ_t*.
- need(t) is predicted (`memory.needs`). Where a client's memory is short, fewer of its rows pass the frozen blocks at
  once (`progressive.AT_ONCE`). `cuts = "auto"` cuts the chain by predicted peaks, which the paper leaves open.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NotRequired, Self, TypedDict

import torch
from torch import Tensor

from .. import models, phases
from ..averaging import average
from ..errors import RunError
from ..local import LocalTraining, Step, is_trainable, train
from ..memory import eligible, needs, partition
from ..memory.course import Course
from ..memory.plan import Stage
from ..models import chain, progressive
from ..phases import Phase
from ..plugins import label
from ..protocol import Algorithm, Arrival, Batch, ClientInfo, Count, Job, Positive, PositiveShare, Update, Whole
from ..rng import Key
from ..stopping import EffectiveMovement, Plateau, Rule
from ..tree import Tree, clone, nbytes


class Server(TypedDict):
    phase: Tensor
    """Place in the order of phases (int64)."""
    limit: Tensor
    """Rounds that the phase may have (int64)."""
    seen: Tree
    """What the rule that ends the phase remembers."""
    blocks: Tree
    """θ_1 ... θ_T by number: frozen, in training, or kept for growing."""
    output: Tree
    """Of the sub-model: "proxies" by number of the missing block, and "header"."""
    key: Tensor
    """What first weights are drawn by (32,) uint8."""
    student: NotRequired[Tree]
    """In mapping: "proxy", and at t = T the "header" that trains along."""
    shrunk: NotRequired[Tree]
    """Step to the output trained beside θ_t*, where growing takes it."""
    holders: NotRequired[Tree]
    """Frozen block to the ascending ids of the clients that have it (int64)."""
    before: NotRequired[Tree]
    """After a round that ends a phase: "round", and what was trained in it, "phase" and "output"."""
    told: NotRequired[Tree]
    """Numbers of the last round."""


class Wire(TypedDict, total=False):
    """Up "student" in mapping; else "active", "output", and "statistics" where frozen blocks go on counting."""

    phase: Tensor
    active: Tree
    """θ_t."""
    output: Tree
    student: Tree
    lr: Tensor
    """η_m, in mapping."""
    frozen: Tree
    """In growing: those of blocks 1 ... t-1 that the client has not got yet."""
    key: Tensor
    """In shrinking and mapping, in place of blocks 1 ... t-1."""
    statistics: Tree
    """Buffers of blocks 1 ... t-1."""


class Private(TypedDict, total=False):
    frozen: Tree
    """Frozen blocks of growing by number, as they came."""


@dataclass(frozen=True, kw_only=True)
class ProFL(LocalTraining, Algorithm[Server, Private, Wire]):
    """Progressive training. Defaults are for short runs on a CPU; `--preset paper` gives the paper's."""

    paper: ClassVar[str] = "Wu et al., ProFL: Breaking the Memory Wall via Progressive Training, KDD 2025"
    needs: ClassVar[str] = "one architecture that is a chain of blocks"
    equal_architectures: ClassVar[bool] = True
    memory_aware: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"rounds": 1000, "fraction": 0.2, "local_epochs": 5, "batch_size": 64, "lr": 0.01}
        | {"momentum": 0.9, "weight_decay": 5e-4, "window": 20, "patience": 15}
    }

    cuts: str = "paper"
    """Where the chain is cut: paper (as auto for a model that brings no cuts), auto, or at units, 0,3,5,7,9."""
    steps: Count = 4
    """T for auto: so many blocks, or at most so many where clients have memory budgets."""
    rho: PositiveShare = 0.8
    """For auto: share of the clients whose memory is to hold each step."""
    shrinking: bool = True
    """Ablation: False grows from first weights."""
    mapping: bool = True
    """Ablation: False shrinks without it, the proxy of a block that is taken away is a fresh one."""
    proxies: Literal["carry", "shrinking", "none"] = "carry"
    """Where growing has its proxies and header from; none: no proxies, each step has a linear header of its own."""
    frozen_bn: Literal["eval", "train"] = "eval"
    """Whether batch normalisation of frozen blocks goes by its statistics, or by the batch and goes on counting."""
    freeze: Literal["movement", "fixed"] = "movement"
    """Ablation: fixed has every phase last as long as it may."""
    window: Count = 5
    """H: rounds that effective movement looks back."""
    patience: Count = 3
    """W: rounds in a row in which movement is level and low, or mapping's loss does not fall."""
    min_rounds: Count = 1
    """Least rounds of shrinking or growing a block."""
    max_rounds: Whole = 0
    """Most rounds of shrinking or growing a block; 0 is its share of the rounds that are left."""
    map_rounds: Count = 10
    """Most rounds of a mapping."""
    map_lr: Positive = 0.01
    """η_m: first step size of mapping."""

    @functools.cached_property
    def course(self) -> Course:
        """All phases with what they need."""
        cuts, proxied = partition.read(self.cuts, self.shared), self.proxies != "none"
        return Course(
            spec=self.shared,
            task=self.task,
            cuts=cuts,
            order=phases.order(len(cuts) - 1, self.shrinking, self.mapping and proxied),
            training=self.optimiser(),
            mapping=self.optimiser(self.map_lr),
            rows=self.batch_size,
            proxied=proxied,
            frozen_train=self.frozen_bn == "train",
        )

    def settle(self, clients: Sequence[ClientInfo]) -> Self:
        if self.cuts != "auto" and (self.cuts != "paper" or chain.brings_cuts(self.shared)):
            return self
        budgets, work = [c.memory for c in clients], (self.shared, self.task, self.optimiser(), self.batch_size)
        found = partition.for_fleet(*work, budgets, self.steps, self.rho)
        return replace(self, cuts=",".join(map(str, found.cuts)))

    def require(self, clients: Sequence[ClientInfo]) -> None:
        for step in range(1, self.course.steps + 1):
            progressive.output_module(self.course.sub(step), Key.root(0))
        self.course.require("profl", clients)

    def select(self, server: Server, clients: Sequence[ClientInfo], round: int, key: Key) -> Sequence[ClientInfo]:
        phase, _ = self.course.at(server["phase"])
        chosen = self.course.able(phase, super().select(server, clients, round, key), clients, key)
        if not chosen:
            raise RunError(f"round {round}: nobody is there whose memory holds what it takes to {phase}")
        return chosen

    def plan(self) -> Sequence[Stage]:
        """The phases, each as long as it may be when those before it were."""
        found, left, server = list[Stage](), self.rounds, self.init_server(Key.root(0))
        for place, phase in enumerate(self.course.order):
            server = self.begun(self.finished(server), place, left) if place else server
            wire = self.broadcast(server, ClientInfo(-1, "", 0), 0)
            once = nbytes(wire.pop("frozen", {}).get(str(phase.step - 1), {}))
            sent = ("student",) if phase.kind == "map" else ("active", "output", "statistics")
            up = nbytes({name: branch for name, branch in wire.items() if name in sent})
            rounds = int(server["limit"])
            found.append(self.course.stage(place, rounds=rounds, down=nbytes(wire), up=up, once=once))
            left = max(1, left - rounds)
        return found

    def init_server(self, key: Key) -> Server:
        first = key / "model" / label(self.shared_model)
        blocks = progressive.blocks(self.course.sub(1), models.initial(self.shared, first)["extractor"])
        drawn = torch.frombuffer(bytearray(first.digest), dtype=torch.uint8)
        zero, nothing = torch.tensor(0), dict[str, Any]()
        empty: Server = {"phase": zero, "limit": zero, "seen": nothing, "blocks": blocks, "output": {}, "key": drawn}
        return self.begun(empty, 0, self.rounds)

    def rule(self, phase: Phase) -> Rule:
        """What may end a phase before its rounds are spent."""
        moves = EffectiveMovement(self.window, self.patience, self.min_rounds)
        return Plateau(self.map_lr, self.patience) if phase.kind == "map" else moves

    def init_client(self, info: ClientInfo, key: Key) -> Private:
        return {}

    def begun(self, server: Server, place: int, rounds: int) -> Server:
        """The server at the beginning of the phase at `place`, with `rounds` for it and those after it."""
        phase, first, shrunk = self.course.order[place], first_key(server), dict(server.get("shrunk", {}))
        sub, t = self.course.sub(phase.step), str(phase.step)
        known = {} if self.proxies == "none" else server["output"]
        output = progressive.output_module(sub, first, shrunk.pop(t, known) if phase.kind == "grow" else known)
        limit = phases.limit(self.course.order[place:], rounds, self.max_rounds, self.map_rounds)
        after: Server = {**server, "phase": torch.tensor(place), "limit": torch.tensor(limit), "output": output}
        if phase.kind == "map":
            after["student"] = progressive.student(sub, first, output["header"])
        return {**after, "shrunk": shrunk, "seen": self.rule(phase).start(server["blocks"][t])}

    def finished(self, server: Server) -> Server:
        """The server at the end of its phase: what mapping has taught is a proxy, what growing takes is kept."""
        phase, sub = self.course.at(server["phase"])
        after = server.copy()
        if phase.kind == "map":
            after["output"] = progressive.mapped(sub, server["output"], after.pop("student"))
        elif phase.kind == "shrink" and self.proxies != "carry":
            after["shrunk"] = {**server.get("shrunk", {}), str(sub.step): clone(server["output"])}
        return after

    def broadcast(self, server: Server, info: ClientInfo, round: int) -> Wire:
        before = server.get("before", {})
        if before and round == int(before["round"]):  # to be scored is what was trained, not what comes next
            server = {**server, "phase": before["phase"], "output": before["output"]}
        phase, sub = self.course.at(server["phase"])
        blocks = {b: block for b, block in server["blocks"].items() if int(b) < sub.step}
        active = server["blocks"][str(sub.step)]
        wire: Wire = {"phase": server["phase"], "active": active, "output": server["output"]}
        if phase.kind == "map" and "student" in server:
            wire |= {"student": server["student"], "lr": server["seen"]["lr"]}
        counting = self.frozen_bn == "train"
        if phase.kind == "grow":
            lacking = {b: block for b, block in blocks.items() if info.id not in holders(server, b)}
            wire["frozen"] = {b: weights(block) if counting else block for b, block in lacking.items()}
        else:
            wire["key"] = server["key"]
        if counting:
            wire["statistics"] = {b: buffers(block) for b, block in blocks.items()}
        return wire

    def prepare(self, info: ClientInfo, down: Wire, state: Private, data: Batch, key: Key) -> Any:
        phase, sub = self.course.at(down["phase"])
        blocks = {**state.get("frozen", {}), **down.get("frozen", {})}
        if phase.kind != "grow":
            blocks = progressive.blocks(sub, models.initial(self.shared, first_key(down))["extractor"])
        counted = down.get("statistics", {})
        leaves = [{**blocks[str(b)], **counted.get(str(b), {})} for b in range(1, sub.step)]
        frozen = {name: leaf for block in leaves for name, leaf in block.items()}
        branches = {"frozen": frozen, "active": down["active"], **down["output"]}
        return {"info": info, "sub": sub, "weights": branches}

    def predict(self, ready: Any, batch: Batch) -> Tensor:
        logits = functools.partial(progressive.forward, ready["sub"], ready["weights"])
        rows = eligible.rows_at_once(ready["info"], functools.partial(needs.evaluated_step, ready["sub"]))
        return eligible.in_parts(logits, batch["x"], rows)

    def client_update(self, job: Job[Private, Wire]) -> Update[Private, Wire]:
        phase, _ = self.course.at(job.down["phase"])
        sub = self.course.fitted(phase, job.info)
        parts = self.prepare(job.info, job.down, job.state, job.data, job.key)["weights"]
        visits, noise = self.visits(job.data, job.key / "batches"), job.key / "noise"
        if phase.kind == "map":
            loss, optimiser = functools.partial(progressive.mapping_loss, sub), self.optimiser(float(job.down["lr"]))
            step, params = Step(loss, {"model": optimiser}), {"model": job.down["student"]}
            tuned, mean = train([step], params, parts, visits, noise)
            return Update({"student": tuned["model"]}, {}, job.info.n, {"loss": mean})
        frozen, counting = parts.pop("frozen"), self.frozen_bn == "train"
        frozen = {**frozen, **clone(buffers(frozen))} if counting else frozen
        loss = functools.partial(progressive.supervised_loss, sub, self.task, frozen_train=counting)
        step = Step(loss, {"model": self.optimiser()})
        tuned, mean = train([step], {"model": parts}, {"frozen": frozen}, visits, noise)
        up: Wire = {"active": tuned["model"].pop("active"), "output": tuned["model"]}
        if "statistics" in job.down:
            up["statistics"] = {b: {n: frozen[n] for n in sent} for b, sent in job.down["statistics"].items()}
        kept = {**job.state.get("frozen", {}), **clone(job.down.get("frozen", {}))}
        return Update(up, {"frozen": kept} if phase.kind == "grow" else {}, job.info.n, {"loss": mean})

    def aggregate(self, server: Server, arrivals: Sequence[Arrival[Wire]], round: int, key: Key) -> Server:
        phase, place = self.course.at(server["phase"])[0], int(server["phase"]) + 1
        after, rule = self.learned(server, arrivals), self.rule(phase)
        rounds, limit = int(after["seen"]["rounds"]), int(server["limit"])
        fires = self.freeze == "movement" and rule.fires(after["seen"])
        ended = phases.ENDS.index("rule" if fires else "limit" if rounds >= limit else "")
        about = {"stage": phases.KINDS.index(phase.kind), "step": phase.step, "rounds": rounds, "limit": limit}
        told = {**about, "ended": ended, **rule.told(after["seen"])}.items()
        after["told"] = {name: torch.tensor(value, dtype=torch.float64) for name, value in told}
        if ended and place == len(self.course.order):
            after["phase"] = torch.tensor(place)
        elif ended and round < self.rounds:
            last = {"round": torch.tensor(round), "phase": server["phase"], "output": clone(after["output"])}
            return {**self.begun(self.finished(after), place, self.rounds - round), "before": last}
        return after

    def learned(self, server: Server, arrivals: Sequence[Arrival[Wire]]) -> Server:
        """The server with what the clients have learned in a round, and with who holds what."""
        phase, sub = self.course.at(server["phase"])
        after, t, observe = server.copy(), str(sub.step), self.rule(phase).observe
        after.pop("before", None)
        if phase.kind == "map":
            after["student"] = average(arrivals, "student")
            loss = sum(a.weight * a.metrics["loss"] for a in arrivals) / sum(a.weight for a in arrivals)
            return {**after, "seen": observe(server["seen"], loss)}
        after["output"] = average(arrivals, "output")
        counted = average(arrivals, "statistics") if "statistics" in arrivals[0].up else {}
        counted = {b: {**server["blocks"][b], **leaves} for b, leaves in counted.items()}
        after["blocks"] = {**server["blocks"], **counted, t: average(arrivals, "active")}
        if phase.kind == "grow":
            after["holders"] = {str(b): holders(server, str(b), arrivals) for b in range(1, sub.step)}
        return {**after, "seen": observe(server["seen"], after["blocks"][t])}

    def done(self, server: Server, round: int) -> bool:
        return int(server["phase"]) == len(self.course.order) or super().done(server, round)

    def report(self, server: Server, round: int) -> Mapping[str, float]:
        """Numbers of the last round: "stage" (place in `phases.KINDS`), "step" t, "rounds" of the phase so far and its
        "limit", whether it has "ended" (place in `phases.ENDS`), and what its rule tells."""
        return {name: float(value) for name, value in server.get("told", {}).items()}


def first_key(holder: Server | Wire) -> Key:
    """What first weights are drawn by."""
    return Key(bytes(holder["key"].tolist()))


def holders(server: Server, block: str, more: Sequence[Arrival[Wire]] = ()) -> Tensor:
    """Ids of the clients that have a frozen block, those of `more` now among them."""
    known = server.get("holders", {}).get(block, torch.empty(0, dtype=torch.int64))
    return torch.tensor(sorted({*known.tolist(), *(a.info.id for a in more)}), dtype=torch.int64) if more else known


def weights(block: Tree) -> dict[str, Tensor]:
    """The leaves of a block that train."""
    return {name: leaf for name, leaf in block.items() if is_trainable(name, leaf)}


def buffers(block: Tree) -> dict[str, Tensor]:
    """The leaves of a block that do not train."""
    return {name: leaf for name, leaf in block.items() if not is_trainable(name, leaf)}
