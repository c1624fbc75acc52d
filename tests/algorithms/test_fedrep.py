"""FedRep, equation by equation."""

from __future__ import annotations

from by_hand import close, gradient, job, minus, prepared

from unalike import tree
from unalike.data.federation import Federation, federation


def test_first_the_header_moves_then_the_body_through_the_new_header(alike: Federation) -> None:
    """h1 = h − η ∇_h L(h ∘ φ), φ1 = φ − η ∇_φ L(h1 ∘ φ), two header steps here."""
    method = prepared("fedrep", alike, local_epochs=2)
    it = job(method, alike)
    phi, h = it.down["extractor"], it.state["header"]
    for _ in range(2):
        g = gradient(method, {"extractor": phi, "header": h}, it.data)
        h = minus(h, method.lr, g["header"])
    g = gradient(method, {"extractor": phi, "header": h}, it.data)
    update = method.client_update(it)
    assert close(update.state["header"], h)
    assert close(update.up["extractor"], minus(phi, method.lr, g["extractor"]))


def test_body_epochs_are_the_bodys_own(alike: Federation) -> None:
    method = prepared("fedrep", alike, body_epochs=2)
    it = job(method, alike)
    update, h = method.client_update(it), method.client_update(it).state["header"]
    phi = it.down["extractor"]
    for _ in range(2):
        phi = minus(phi, method.lr, gradient(method, {"extractor": phi, "header": h}, it.data)["extractor"])
    assert close(update.up["extractor"], phi)
    assert tree.equal(h, prepared("fedrep", alike).client_update(it).state["header"])


def test_weight_decay_does_not_move_the_fixed_part(alike: Federation) -> None:
    """With decay every trained weight shrinks, so the header of a second body epoch would give itself away."""
    one, two = (
        prepared("fedrep", alike, weight_decay=0.5, momentum=0.9, body_epochs=epochs).client_update(
            job(prepared("fedrep", alike), alike)
        )
        for epochs in (1, 2)
    )
    assert tree.equal(one.state, two.state)
    assert not tree.equal(one.up, two.up)


def test_batch_norm_statistics_of_a_fixed_body_follow_the_data() -> None:
    """Six forward passes of one batch each: five for the header and one for the body."""
    normed = federation("digits", clients=2, partition="iid", models=["cnn-5(norm=True)"], seed=3)
    method = prepared("fedrep", normed, local_epochs=5)
    it = job(method, normed)
    before = tree.clone(it.down)
    up = method.client_update(it).up["extractor"]
    assert int(up["~2.num_batches_tracked"]) == 6
    assert tree.equal(it.down, before)
