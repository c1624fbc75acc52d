"""FedDAT over Flower: one adapter each way, and nothing of a local adapter, a head, a question, an answer, an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from messages import Recorder

from unalike import api, tree
from unalike.data import vqa
from unalike.data.federation import Federation
from unalike.engines.flower.in_process import InProcess
from unalike.engines.store import Store
from unalike.models import multimodal


def raw(leaf: torch.Tensor) -> bytes:
    return leaf.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_one_adapter_passes_and_nothing_private(
    pictured: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, states, save = Recorder(), list[Any](), Store.save

    def saving(self: Store, client: int, version: int, state: Any) -> str:
        states.append(tree.clone(state))
        return save(self, client, version, state)

    monkeypatch.setattr(Store, "save", saving)
    prepared = api.prepare("feddat", pictured, rounds=2, batch_size=6, lr=0.01)
    api.start_or_resume(tmp_path / "run", prepared, InProcess(seen), federation=pictured)
    trained = [m for m in seen.up if m.head["kind"] == "update"]
    assert len(trained) == len(states) == 3 * 2
    size, wire = 4 * multimodal.parameters(prepared.algorithm.shared), b"".join(seen.wire)
    for message in [*(m for m in seen.down if m.head["kind"] != "open"), *trained]:
        assert set(message.tree) == {"adapter"}
        assert tree.nbytes(message.tree) == size
    assert {name for m in trained for name in m.head.get("scores", ())} == {"validation", "test", "local", "shared"}
    assert raw(trained[0].tree["adapter"]["encoder.layer.0.down.weight"]) in wire
    private = [leaf for state in states for leaf in tree.flatten(state).values() if len(leaf.unique()) > 4]
    assert len(private) > 20
    assert not any(raw(leaf) in wire for leaf in private)
    assert not any(question.encode() in wire for question in vqa.questions(pictured.source.x))
    assert not any(answer.encode() in wire for answer in ("gold", "green", "blue"))
    assert pictured.source.images is not None
    assert not any(image[0, 0].tobytes() in wire for image in pictured.source.images)
