"""What the server keeps and sends, and what a client does with it: transports, warm-up, labels, refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from unalike import api, tree
from unalike.data.federation import Federation
from unalike.errors import InputError
from unalike.impressions import exchange, synthesis
from unalike.impressions.settings import Impressions
from unalike.impressions.transport import decode, encode
from unalike.local import Mixture
from unalike.protocol import Arrival, Job, Spec
from unalike.rng import Key

KEY = Key.root(3)
LITTLE = Impressions(images=20, image_batch=20, admm=1, image_steps=2, lr_img=10.0)
LABELS = torch.arange(20) % 10


def spec_of(federation: Federation) -> Spec:
    return federation.models[federation.clients[0].tier]


def renewed(
    small: Federation, trained: Any, settings: Impressions, server: Any = None, ups: Any = ()
) -> dict[str, Any]:
    arrivals = [Arrival(small.clients[0], up, 1.0, {}) for up in ups]
    return exchange.renewed(settings, spec_of(small), trained, server or {}, arrivals, KEY, is_due=True)


def job(small: Federation, trained: Any, settings: Impressions, server: Any) -> Job[Any, Any]:
    down = {"model": trained, **exchange.sent(settings, server)}
    rows = small.data(0, "train")
    return Job(small.clients[0], 2, down, {}, rows, KEY, small.data(0, "validation"))


def taken(small: Federation, trained: Any, settings: Impressions, server: Any) -> tuple[Mixture, dict[str, Any]]:
    rows, said = exchange.received(settings, spec_of(small), job(small, trained, settings, server), "model")
    assert isinstance(rows, Mixture)
    return rows, said


def test_a_byte_a_number_is_the_nearest_of_256_steps() -> None:
    """−1, 0 and 1 are 0, 127.5 to even, and 255; what is read back is off by half a step at most."""
    assert encode(torch.tensor([-1.0, 0.0, 1.0])).tolist() == [0, 128, 255]
    x = torch.linspace(-1, 1, 1001)
    assert float((decode(encode(x)) - x).abs().max()) == pytest.approx(1 / 255, rel=1e-2)
    assert encode(decode(torch.arange(256, dtype=torch.uint8))).equal(torch.arange(256, dtype=torch.uint8))
    assert decode(x) is x


@pytest.mark.parametrize(
    ("transport", "kind", "bytes"),
    [("uint8", torch.uint8, 20 * 64 + 20 * 8), ("float", torch.float32, 20 * 64 * 4 + 20 * 8)],
)
def test_images_travel_as_they_are_kept(
    transport: Any, kind: Any, bytes: int, small: Federation, trained: dict[str, Any]
) -> None:
    server = renewed(small, trained, replace(LITTLE, transport=transport))
    assert server["impressions"].keys() == {"images", "labels"}
    assert server["impressions"]["images"].dtype == kind
    assert server["impressions"]["images"].shape == (20, 1, 8, 8)
    assert server["impressions"]["labels"].equal(LABELS)
    sent = exchange.sent(LITTLE, server)
    assert sent == {"impressions": server["impressions"]}
    assert tree.nbytes(sent) == bytes


@pytest.mark.parametrize("start", ["noise", "public:digits"])
def test_made_anew_from_a_key_they_are_the_servers_to_the_bit(
    start: str, small: Federation, trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(LITTLE, transport="regenerate", start=start, lr_img=0.0, gate=False)
    server = renewed(small, trained, settings)
    sent = exchange.sent(settings, server)
    assert tree.nbytes(sent) == 32 + 8 + 8 + 20 * 8, "a key, two numbers and the labels"
    monkeypatch.setattr(exchange, "_LAST", {})
    rows, _ = taken(small, trained, settings, server)
    assert rows.beside["x"].equal(server["impressions"]["images"])
    other = tree.map_leaves(lambda leaf: leaf * 1.01, trained)
    assert not taken(small, other, settings, server)[0].beside["x"].equal(server["impressions"]["images"])


def test_a_process_makes_them_once_for_clients_that_are_sent_the_same(
    small: Federation, trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, made = replace(LITTLE, transport="regenerate"), list[int]()
    server = renewed(small, trained, settings)
    monkeypatch.setattr(exchange, "_LAST", {})
    monkeypatch.setattr(exchange, "synthesise", lambda *a: made.append(1) or synthesis.synthesise(*a))
    first, again = (taken(small, trained, settings, server)[0].beside["x"] for _ in range(2))
    assert (made, first.equal(again)) == ([1], True)


def test_a_client_trains_on_its_rows_with_the_images_beside(small: Federation, trained: dict[str, Any]) -> None:
    settings = replace(LITTLE, mix=2.0, lam=3.0, syn_bn="frozen")
    server = renewed(small, trained, settings)
    rows, said = taken(small, trained, settings, server)
    assert (rows.ratio, rows.lam, rows.frozen) == (2.0, 3.0, True)
    assert rows.beside["x"].equal(decode(server["impressions"]["images"]))
    assert rows.beside["y"].equal(LABELS)
    assert said == {"refused": torch.tensor(0, dtype=torch.uint8)}
    assert taken(small, trained, replace(settings, gate=False), server)[1] == {}


def test_without_impressions_the_rows_are_alone(small: Federation, trained: dict[str, Any]) -> None:
    it = job(small, trained, LITTLE, {})
    rows, said = exchange.received(LITTLE, spec_of(small), it, "model")
    assert rows is it.data
    assert said == {}


@pytest.mark.parametrize(("refused", "left"), [([3, 7], 18), (range(20), 0)])
def test_near_copies_are_left_out_and_one_bit_says_so(
    refused: Any, left: int, small: Federation, trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    marked = torch.zeros(20, dtype=torch.bool)
    marked[list(refused)] = True
    monkeypatch.setattr(exchange, "_near_copies", lambda images, job: marked)
    server = renewed(small, trained, LITTLE)
    it = job(small, trained, LITTLE, server)
    rows, said = exchange.received(LITTLE, spec_of(small), it, "model")
    assert said == {"refused": torch.tensor(1, dtype=torch.uint8)}
    assert tree.nbytes(said) == 1
    if left:
        assert isinstance(rows, Mixture)
        assert rows.beside["x"].equal(decode(server["impressions"]["images"])[~marked])
        assert rows.beside["y"].equal(LABELS[~marked])
    else:
        assert rows is it.data


def test_each_round_with_refusals_makes_the_next_images_smoother(small: Federation, trained: dict[str, Any]) -> None:
    """0, then 0.01, 0.02, and so it stays, and 0.08 at most; the total variation of the images falls with it."""
    settings = replace(LITTLE, image_steps=10)
    yes, no = ({"refused": torch.tensor(bit, dtype=torch.uint8)} for bit in (1, 0))
    servers = [renewed(small, trained, settings)]
    for ups in ([yes, no], [yes], [no, no]):
        servers.append(renewed(small, trained, settings, servers[-1], ups))
    assert [float(s["synthesis"]["strength"]) for s in servers] == [0.0, 0.01, 0.02, 0.02]
    assert [exchange.report(s)["refused"] for s in servers] == [0.0, 1.0, 1.0, 0.0]
    assert (
        float(renewed(small, trained, settings, _with_strength(servers[-1], 0.07), [yes])["synthesis"]["strength"])
        == 0.08
    )
    variations = [float(synthesis.total_variation(decode(s["impressions"]["images"]))) for s in servers]
    assert variations[2] < variations[1] < variations[0]


def test_labels_by_prior_are_as_all_clients_have_told_so_far(small: Federation, trained: dict[str, Any]) -> None:
    """300 rows of label 0 and 100 of label 1, then 200 of label 2: 10, 3.3 and 6.7 of 20."""
    settings = replace(LITTLE, labels="prior")
    counts = torch.zeros(3, 10, dtype=torch.long)
    counts[0, 0], counts[1, 1], counts[2, 2] = 300, 100, 200
    first = renewed(small, trained, settings, {}, [{"counts": counts[0]}, {"counts": counts[1]}])
    assert torch.bincount(first["impressions"]["labels"]).tolist() == [15, 5]
    then = renewed(small, trained, settings, first, [{"counts": counts[2]}])
    assert torch.bincount(then["impressions"]["labels"]).tolist() == [10, 3, 7]
    _, said = taken(small, trained, settings, first)
    assert said["counts"].tolist() == torch.bincount(small.data(0, "train")["y"], minlength=10).tolist()


def test_a_step_size_that_has_succeeded_is_kept_and_another_is_searched_for_again(
    small: Federation, trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[int] = []
    search = synthesis.search
    monkeypatch.setattr(synthesis, "search", lambda *a: searched.append(1) or search(*a))
    settings = Impressions(images=20, image_batch=20)
    server = renewed(small, trained, settings)
    found = exchange.report(server)
    assert found["synthetic_loss"] < 0.1
    assert float(server["synthesis"]["lr"]) == found["lr_img"]
    again = renewed(small, trained, settings, server)
    assert (exchange.report(again)["lr_img"], len(searched)) == (found["lr_img"], 1)
    failed = renewed(small, trained, replace(settings, admm=1, image_steps=1), again)
    assert float(failed["synthesis"]["lr"]) == 0.0
    renewed(small, trained, settings, failed)
    assert len(searched) == 2


def test_figures_are_told_and_a_state_without_any_tells_none(small: Federation, trained: dict[str, Any]) -> None:
    server = renewed(small, trained, LITTLE)
    names = {"synthetic_loss_before", "synthetic_loss", "head_gradient_before", "head_gradient", "lr_img", "refused"}
    assert exchange.report(server).keys() == names
    assert exchange.report({"model": {}}) == {}
    assert tree.equal(server, tree.from_bytes(tree.to_bytes(server)))


def test_public_images_are_drawn_resized_and_coloured(small: Federation) -> None:
    from unalike.impressions.public import drawn

    spec = Spec("", (3, 12, 10), 4)
    x = drawn("digits", 30, spec, KEY)
    assert x.shape == (30, 3, 12, 10)
    assert x[:, 0].equal(x[:, 2])
    assert -1 <= float(x.min()) < -0.5 < 0.5 < float(x.max()) <= 1
    assert x.equal(drawn("digits", 30, spec, KEY))
    assert not x.equal(drawn("digits", 30, spec, Key.root(9)))
    whole = drawn("digits", 2000, Spec("", (1, 8, 8), 4), KEY)  # more than there are
    assert whole.shape == (2000, 1, 8, 8)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"data": "wine", "models": "mlp-5"}, "fedimpres: impressions are images, and the data are rows of a table"),
        ({"start": "nothing"}, "impressions cannot start from 'nothing': give noise, or public:DATA"),
        ({"start": "public:"}, "impressions cannot start from 'public:'"),
        ({"start": "public:wine"}, "impressions cannot start from public:wine: it is a table, not images"),
        ({"start": "public:nowhere.npz"}, "nowhere.npz is neither a file or folder nor one of"),
        ({"models": f"{__file__}:deep"}, "impressions need a model whose header is one torch.nn.Linear"),
        ({"images": 0}, "images = 0 is refused"),
        ({"rho": 0.0}, "rho = 0.0 is refused"),
        ({"labels": "some"}, "labels = 'some' is refused"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        api.prepare("fedimpres", **{"models": "cnn-5", "clients": 2, "rows": 100, **keys})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def deep(input: tuple[int, ...], classes: int) -> torch.nn.Module:
    from unalike.models.cnn import assemble

    header = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, classes))
    return assemble(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(64)), header)


@pytest.mark.parametrize(("warm_up", "rounds", "first"), [(0, 100, 20), (0, 12, 2), (0, 3, 1), (0, 1, 1), (5, 8, 5)])
def test_the_warm_up_is_a_fifth_of_the_rounds_unless_it_is_given(warm_up: int, rounds: int, first: int) -> None:
    assert Impressions(warm_up=warm_up).first(rounds) == first


def _with_strength(server: dict[str, Any], strength: float) -> dict[str, Any]:
    return {**server, "synthesis": {**server["synthesis"], "strength": torch.tensor(strength, dtype=torch.float64)}}
