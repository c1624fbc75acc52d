"""Impressions around methods that have no line about them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unalike import api, check_algorithm, personal, tree
from unalike.algorithms.ditto import Ditto
from unalike.algorithms.fedavg import FedAvg
from unalike.data.federation import Federation
from unalike.engines.checkpoint import Checkpoints
from unalike.errors import InputError
from unalike.impressions.wrapper import WithImpressions

SETTINGS = {"images": 20, "image_batch": 10, "admm": 2, "image_steps": 4, "lam": 2.0, "mix": 0.5, "warm_up": 1}
TEXT = f"noise({', '.join(f'{name}={value}' for name, value in SETTINGS.items())})"
QUICK: dict[str, Any] = {"rounds": 3, "local_epochs": 1, "engine": "serial", "report": False}


def run(name: str, small: Federation, folder: Path, **keys: Any) -> Any:
    return api.run(name, small, out=folder, **{**QUICK, **keys})


def test_fedavg_with_impressions_is_fedimpres_to_the_bit(small: Federation, tmp_path: Path) -> None:
    around = run("fedavg", small, tmp_path / "around", impressions=TEXT).summary
    paper = run("fedimpres", small, tmp_path / "paper", **SETTINGS).summary
    plain = run("fedavg", small, tmp_path / "plain").summary
    assert around["state_sha256"] == paper["state_sha256"] != plain["state_sha256"]
    assert around["bytes"] == paper["bytes"]
    assert around["algorithm"] == "fedavg"
    assert around["parameters"]["impressions"] == TEXT


@pytest.mark.parametrize("name", ["fedprox", "ditto", "scaffold", "fedavg-ft"])
def test_methods_take_part_without_a_line_of_their_own(name: str, small: Federation, tmp_path: Path) -> None:
    """The first round is the method's own; from then on impressions come down, and change what is trained."""
    found, plain = (
        run(name, small, tmp_path / which, impressions=text) for which, text in (("with", TEXT), ("own", ""))
    )
    rounds, alone = ([e for e in r.events() if e["event"] == "round"] for r in (found, plain))
    assert rounds[0]["metrics"]["train"] == alone[0]["metrics"]["train"]
    assert rounds[1]["metrics"]["train"] != alone[1]["metrics"]["train"]
    image_bytes = len(small.clients) * (20 * 64 + 20 * 8)
    assert [a["bytes_down"] - b["bytes_down"] for a, b in zip(rounds, alone, strict=True)] == [0] + [image_bytes] * 2
    assert [a["bytes_up"] - b["bytes_up"] for a, b in zip(rounds, alone, strict=True)] == [0] + [len(small.clients)] * 2
    assert all(e["metrics"]["server"]["synthetic_loss"] > 0 for e in rounds)
    assert 1.45 < rounds[1]["flops"] / alone[1]["flops"] < 1.75, "half a synthetic row beside each, and the gate"
    assert rounds[0]["flops"] == alone[0]["flops"]
    server = Checkpoints(tmp_path / "with/checkpoint").server(Checkpoints(tmp_path / "with/checkpoint").read())
    assert server["impressions"]["images"].shape == (20, 1, 8, 8)


@pytest.mark.parametrize(
    "algorithm", [FedAvg(impressions=TEXT), Ditto(impressions=TEXT.replace("warm_up=1", "transport='regenerate'"))]
)
def test_a_method_with_impressions_keeps_the_contract(algorithm: Any, small: Federation) -> None:
    check_algorithm(algorithm, small)


def test_it_is_written_down_and_repeated(small: Federation, tmp_path: Path) -> None:
    keys = {"data": "digits", "rows": 100, "clients": 2, "models": "cnn-5(width=0.25, norm=True)", **QUICK}
    first = api.run("fedavg", out=tmp_path / "a", impressions="noise(images=20,admm=1,lam=1)", **keys)
    text = (tmp_path / "a/experiment.toml").read_text()
    assert 'impressions = "noise(images=20, admm=1, lam=1.0)"' in text
    again = api.run(api.config.from_toml(tmp_path / "a/experiment.toml"), out=tmp_path / "b", report=False)
    assert again.summary["state_sha256"] == first.summary["state_sha256"]


def test_an_exported_model_has_no_impressions_and_predicts_the_same(small: Federation, tmp_path: Path) -> None:
    run("ditto", small, tmp_path / "run", impressions=TEXT)
    model = personal.extract(tmp_path / "run", 0, given=small)
    assert isinstance(model.algorithm, WithImpressions)
    assert model.down.keys() == {"model"}
    loaded = personal.load(model.save(tmp_path / "client.safetensors"))
    x = small.source.x[:5]
    assert loaded.logits(x).equal(model.logits(x))
    assert tree.equal(loaded.state, model.state)


@pytest.mark.parametrize(
    ("method", "text", "message"),
    [
        ("pfedafm", "noise", "pfedafm takes no impressions: it has no global model to make them of, as fedavg has"),
        ("fedrep", "noise", "fedrep takes no impressions: it has no global model"),
        ("heterofl", "noise", "heterofl takes no impressions: what its clients train depends on their memory"),
        ("fedimpres", "noise", "fedimpres makes impressions already: give its own parameters"),
        ("fedavg", "snow", "impressions cannot start from 'snow': give noise, or public:DATA"),
        ("fedavg", "noise(lamda=1)", "impressions have no setting 'lamda': did you mean lam?"),
        ("fedavg", "noise(lam=-1)", "lam = -1 is refused: it should be greater than or equal to 0"),
        ("fedavg", "noise(lam)", "cannot read the arguments of 'noise(lam)': write noise(key=value, ...)"),
        ("fedavg --data wine --models mlp-5", "noise", "impressions are images, and the data are rows of a table"),
    ],
)
def test_bad_input_is_one_line(method: str, text: str, message: str, call: Callable[..., tuple[Any, str, str]]) -> None:
    code, out, err = call("run", *method.split(), "--impressions", text)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_the_method_itself_refuses_clients_too(unlike: Federation) -> None:
    with pytest.raises(InputError, match="fedprox: this method needs equal architectures"):
        api.prepare("fedprox", unlike, impressions="noise")
