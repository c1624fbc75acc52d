"""Simulated domain shift: what each kind does to pixels, who gets what, and that it is named as simulated."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from refusals import refused

from unalike import api, cli, config, runs
from unalike.data import Source, source_of
from unalike.data.federation import PARTS, Federation, federation
from unalike.data.partition import Partition
from unalike.data.resize import resized
from unalike.data.shift import KINDS, Shift, Transform, draw, parse, shifted
from unalike.data.sources import load
from unalike.rng import Key

KEY = Key.root(5)
ALL = ",".join(f"{kind}:1" for kind in KINDS)


def images(channels: int = 3, dtype: Any = np.uint8, n: int = 60, side: int = 8) -> Source:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (n, channels, side, side)).astype(np.uint8)
    given_x = x if dtype == np.uint8 else (x / 255).astype(dtype)
    return source_of("pictures", given_x, np.arange(n) % 3)


def flat(value: float, channels: int = 1) -> np.ndarray:
    return np.full((2, channels, 6, 6), value, np.float32)


# what each kind does


def test_stain_multiplies_the_optical_density_of_each_channel() -> None:
    x = np.array([0.25, 0.5, 1.0], np.float32).reshape(1, 3, 1, 1)
    seen = Transform(stain=(2.0, 0.5, 3.0))(x, 1.0).ravel()
    assert np.allclose(seen, [0.0625, 0.5**0.5, 1.0])
    assert np.allclose(-np.log(seen), np.array([2, 0.5, 3]) * -np.log(x.ravel()))


def test_contrast_stretches_about_the_images_own_mean_and_is_clipped() -> None:
    x = np.array([[0.2, 0.4], [0.6, 0.8]], np.float32).reshape(1, 1, 2, 2)
    assert np.allclose(Transform(contrast=0.5)(x, 1.0).ravel(), [0.35, 0.45, 0.55, 0.65])
    assert np.allclose(Transform(contrast=2)(x, 1.0).ravel(), [0.0, 0.3, 0.7, 1.0])


def test_blur_is_a_gaussian_of_sigma_pixels() -> None:
    x = np.zeros((1, 1, 21, 21), np.float32)
    x[0, 0, 10, 10] = 1
    seen = Transform(blur=1.5)(x, 1.0)[0, 0]
    assert abs(seen.sum() - 1) < 1e-5
    place = np.arange(21) - 10
    assert abs((seen.sum(axis=0) * place**2).sum() - 1.5**2) < 0.01
    assert np.allclose(Transform(blur=1.5)(flat(0.7), 1.0), 0.7)


def test_resolution_halves_each_side_and_brings_it_back() -> None:
    x = np.indices((8, 8)).sum(axis=0)[None, None] % 2 * np.ones((1, 1, 8, 8), np.float32)
    seen = Transform(resolution=0.5)(x, 1.0)
    assert np.abs(seen - 0.5).max() < 0.15, "a chessboard of single pixels is gone"
    assert np.allclose(Transform(resolution=0.01)(flat(0.3), 1.0), 0.3)


def test_noise_has_its_deviation_and_is_the_seeds() -> None:
    x = np.full((40, 1, 16, 16), 0.5, np.float32)
    noise = Transform(noise=0.1, seed=3)(x, 1.0) - 0.5
    assert abs(noise.std() - 0.1) < 0.005
    assert abs(noise.mean()) < 0.005
    assert (Transform(noise=0.1, seed=3)(x, 1.0) - 0.5 == noise).all()
    assert (Transform(noise=0.1, seed=4)(x, 1.0) - 0.5 != noise).any()
    assert len({image.tobytes() for image in noise}) == 40


@pytest.mark.parametrize("size", [(4, 4), (7, 3), (12, 20), (8, 12)])
def test_resizing_is_pillows_bilinear(size: tuple[int, int]) -> None:
    x = np.random.default_rng(0).random((2, 3, 8, 12)).astype(np.float32)
    ours = resized(x, *size)
    for i, c in np.ndindex(2, 3):
        theirs = Image.fromarray(x[i, c]).resize(size[::-1], Image.Resampling.BILINEAR)
        assert np.allclose(ours[i, c], np.asarray(theirs), atol=1e-5)
    assert (resized(x, 8, 12) == x).all()


# who gets what


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_strength_0_leaves_every_bit(channels: int, dtype: Any) -> None:
    source = images(channels, dtype)
    nothing = draw(ALL.replace(":1", ":0"), 3, source.x.shape[1:], KEY)
    assert nothing.clients == (Transform(),) * 3
    assert shifted(source, np.array_split(np.arange(60), 3), nothing).fingerprint == source.fingerprint
    assert draw("mixed:0", 3, source.x.shape[1:], KEY).clients == (Transform(),) * 3


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(KINDS), min_size=1, unique=True),
    st.floats(0, 1),
    st.integers(0, 10**6),
    st.sampled_from([1, 3]),
    st.sampled_from([np.uint8, np.float32]),
)
def test_range_shape_and_type_are_kept(kinds: list[str], strength: float, seed: int, channels: int, dtype: Any) -> None:
    source = images(channels, dtype)
    text = ",".join(f"{kind}:{strength}" for kind in kinds)
    found = draw(text, 2, source.x.shape[1:], Key.root(seed))
    for transform in found.clients:
        seen = transform(source.x, source.pixel_max)
        assert (seen.shape, seen.dtype) == (source.x.shape, source.x.dtype)
        assert seen.min() >= 0
        assert seen.max() <= source.pixel_max
        assert np.isfinite(seen).all()
    assert draw(text, 2, source.x.shape[1:], Key.root(seed)) == found
    assert Shift.from_json(found.to_json()) == found


@pytest.mark.parametrize("kind", KINDS)
def test_every_client_has_its_own_and_none_is_spared(kind: str) -> None:
    source = images()
    found = draw(f"{kind}:0.8", 6, source.x.shape[1:], KEY)
    assert len(set(found.clients)) == 6
    assert all({*one.describe()} - {"seed"} == {kind} for one in found.clients)
    assert all((one(source.x, 255.0) != source.x).mean() > 0.2 for one in found.clients)


def test_sizes_are_between_half_and_all_of_the_strength() -> None:
    drawn = [one for seed in range(40) for one in draw(ALL, 4, (3, 32, 16), Key.root(seed)).clients]
    for one in drawn:
        assert 1 <= one.blur <= 2
        assert 0.25 <= one.resolution <= 0.625
        assert 0.125 <= one.noise <= 0.25
        assert all(0.5 <= abs(np.log(factor)) <= 1 for factor in (*one.stain, one.contrast))
        assert len(one.stain) == 3
    assert {gamma > 1 for one in drawn for gamma in one.stain} == {True, False}


def test_a_kind_is_drawn_alike_whatever_stands_beside_it() -> None:
    alone, beside = (draw(text, 3, (3, 8, 8), KEY).clients for text in ("stain:0.8", "noise:0.1,stain:0.8"))
    assert [one.stain for one in alone] == [one.stain for one in beside]


def test_mixed_deals_the_kinds_round_and_round() -> None:
    found = draw("mixed:0.7", 11, (3, 8, 8), KEY)
    kinds = [next(iter({*one.describe()} - {"seed"})) for one in found.clients]
    assert sorted(Counter(kinds).values()) == [2, 2, 2, 2, 3]
    assert kinds[:5] == kinds[5:10]
    others = [draw("mixed:0.7", 11, (3, 8, 8), Key.root(seed)).clients[0].describe() for seed in range(9)]
    assert len({next(iter({*one} - {"seed"})) for one in others}) > 1, "their order is the seed's"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "foo:1",
            "'foo' is no kind of shift; give KIND:STRENGTH with KIND one of stain, blur, resolution,",
        ),
        ("", "is no kind of shift"),
        ("stain:0.8,", "is no kind of shift"),
        ("stain", "the strength of stain is missing; give 0 to 1"),
        ("stain:", "the strength of stain is missing"),
        ("stain:x", "the strength of stain is x; give 0 to 1"),
        ("stain:-0.1", "the strength of stain is -0.1"),
        ("stain:1.1", "the strength of stain is 1.1"),
        ("stain:nan", "the strength of stain is nan"),
        ("blur:0.1,blur:0.2", "gives blur twice"),
        ("mixed:0.5,blur:0.2", "mixed gives each client one kind and stands alone"),
    ],
)
def test_wrong_texts(text: str, words: str) -> None:
    refused(lambda: parse(text), f"--shift {text}", words)


def test_only_images_within_their_range_and_once() -> None:
    def ask(source: Source | str, **more: Any) -> Federation:
        return federation(source, clients=2, models=["cnn-5"], shift="stain:0.5", **({"partition": "iid"} | more))

    refused(lambda: ask("wine"), "--shift stain:0.5 changes images, and wine is a table: leave --shift out")
    beyond = replace(images(dtype=np.float32), pixel_max=0.5)
    refused(lambda: ask(beyond), "needs pixels in 0..0.5, and those of pictures are in 0..1: give pixel_max")
    refused(lambda: ask(replace(beyond, x=-beyond.x, pixel_max=1.0)), "are in -1..-0")
    made = ask(images())
    refused(lambda: ask(made.source), "the images of pictures are shifted already (stain:0.5)")
    refused(lambda: ask(images(), partition=made.partition), "the partition has one already (stain:0.5): leave it out")
    refused(lambda: federation("digits", shift="stain:2"), "the strength of stain is 2")
    refused(
        lambda: federation(images(1), partition=made.partition, models=["cnn-5"]), "the shift is of 3 channels, and"
    )


# of a federation


def made(shift: str | None = "stain:0.8,noise:0.2", **more: Any) -> Federation:
    return federation("digits", clients=4, partition="iid", models=["cnn-5"], shift=shift, **more)


def test_all_parts_of_a_client_go_through_its_transform_and_nobody_elses() -> None:
    plain, seen = made(None), made("stain:0.8")
    assert seen.partition.shift is not None
    for k, transform in enumerate(seen.partition.shift.clients):
        for part in PARTS:
            rows = plain.rows(k, part)
            assert (rows == seen.rows(k, part)).all()
            assert np.allclose(seen.source.x[rows], 16 * (plain.source.x[rows] / 16) ** transform.stain[0], atol=1e-4)
            assert torch.equal(seen.data(k, part)["y"], plain.data(k, part)["y"])
    assert plain.partition.hash != seen.partition.hash != made("stain:0.7").partition.hash
    assert made("stain:0.8").source.fingerprint == seen.source.fingerprint
    assert made("stain:0.8", seed=1).source.fingerprint != seen.source.fingerprint
    few = made("stain:0.8", rows=200)
    mine = np.concatenate([few.partition.of(k) for k in range(4)])
    others = np.setdiff1d(np.arange(1797), mine)
    assert (few.source.x[others] == plain.source.x[others]).all(), "rows that nobody has stay as they are"


def test_saved_loaded_and_shared_with_its_sites_it_is_the_same(tmp_path: Path) -> None:
    whole = made()
    whole.save(tmp_path / "all")
    whole.only([2]).save(tmp_path / "two")
    for found in (Federation.load(tmp_path / "all"), Federation.load(tmp_path / "two")):
        for part in PARTS:
            assert torch.equal(found.data(2, part)["x"], whole.data(2, part)["x"])
        assert found.partition.shift == whole.partition.shift
        assert found.source.simulated_shift == "stain:0.8,noise:0.2"
    whole.partition.save(tmp_path / "p.npz")
    assert Partition.load(tmp_path / "p.npz").hash == whole.partition.hash
    again = federation("digits", partition=f"file:{tmp_path}/p.npz", models=["cnn-5"], seed=7)
    assert again.source.fingerprint == whole.source.fingerprint


def test_a_run_names_it_as_simulated_and_is_reopened_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = "--data digits --clients 3 --partition iid --models cnn-5 --rounds 1 --engine serial --shift stain:0.8"
    assert cli._guarded(["run", "fedavg", *keys.split(), "--out", str(tmp_path / "a")], True) == 0
    assert "fedavg: 1 rounds under a simulated shift (stain:0.8)" in capsys.readouterr().err
    for name in ("summary.json", "partition.json", "manifest.json"):
        assert json.loads((tmp_path / "a" / name).read_text())["simulated_shift"] == "stain:0.8"
    clients = json.loads((tmp_path / "a" / "partition.json").read_text())["clients"]
    assert all(len(client["simulated_shift"]["stain"]) == 1 for client in clients)
    page = (tmp_path / "a" / "report.html").read_text()
    assert "fedavg on digits under a simulated shift (stain:0.8)" in page
    assert "Simulated domain shift: each client" in page
    assert f"stain {clients[0]['simulated_shift']['stain'][0]:.2g}" in page
    found = runs.reopen(tmp_path / "a").federation
    assert found.partition.shift is not None
    experiment = tmp_path / "a" / "experiment.toml"
    again = api.run(config.from_toml(experiment), out=tmp_path / "b")
    assert again.summary["state_sha256"] == json.loads((tmp_path / "a" / "summary.json").read_text())["state_sha256"]


def test_a_federation_made_in_python_is_repeated_from_its_folder(tmp_path: Path) -> None:
    given_federation = federation(
        "digits", clients=3, partition="iid", models=["cnn-5"], shift="blur:1,noise:0.3", seed=9
    )
    experiment = config.resolve({"method": "fedavg", "rounds": 1, "engine": "serial", "seed": 2})
    result = api.run(api.prepare(experiment, given_federation), out=tmp_path / "a")
    assert result.summary["simulated_shift"] == "blur:1,noise:0.3"
    again = runs.prepare(config.from_toml(tmp_path / "a" / "experiment.toml"))
    assert again.federation.source.fingerprint == given_federation.source.fingerprint
    assert load("digits").fingerprint != given_federation.source.fingerprint


def test_processes_see_the_same_images_as_one_process(tmp_path: Path) -> None:
    keys = {"rounds": 1, "data": "digits", "rows": 200, "clients": 2, "partition": "iid", "shift": "stain:1,noise:0.3"}
    ends = []
    for engine in ("serial", "processes"):
        experiment = config.resolve({"method": "fedavg", "models": "cnn-5", "engine": engine, "workers": 1, **keys})
        ends.append(api.run(experiment, out=tmp_path / engine).summary["state_sha256"])
    assert ends[0] == ends[1]
