"""docs/deploying.md and docs/operating.md: commands parse, files and keys exist, links lead somewhere, tables hold."""

from __future__ import annotations

import contextlib
import inspect
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import typer

import unalike
from pages import ROOT, blocks, text
from unalike import api, cli, config, runs
from unalike.algorithms import find
from unalike.data.schema import Schema
from unalike.deploy import commands as commands_module
from unalike.deploy import operate, rehearse, serverapp
from unalike.deploy import site as site_module
from unalike.deploy.commands import names_of
from unalike.deploy.folder import Deployment, SiteConfig, read_deployment, read_site, site_federation
from unalike.deploy.init import init
from unalike.engines.flower import host as host_module
from unalike.engines.flower.host import Host, Local
from unalike.engines.flower.in_process import InProcess
from unalike.engines.flower.records import from_content
from unalike.engines.wire import Message
from unalike.options import words

DEPLOYING, OPERATING = PAGES = ("docs/deploying.md", "docs/operating.md")
LINKED = (*PAGES, "README.md", "docs/architecture.md")
NAMES = "berlin,gdansk,lyon,porto,turin"
NET = "import torch\n\n\ndef net():\n    return torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Linear(64, 2))\n"


def quoted(page: str) -> list[str]:
    """What stands in backticks, outside of blocks."""
    return [
        " ".join(q.split()) for q in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text(page), flags=re.DOTALL))
    ]


def ours(lines: list[str]) -> list[str]:
    """The commands of unalike among shell lines, from the word unalike on."""
    found = [re.match(r"\s*(?:[A-Z_]+=\S+ )*(unalike .*)", line) for line in lines]
    return [match[1] for match in found if match]


def commands(page: str) -> list[str]:
    return ours([line for block in blocks(page, "bash") for line in block.splitlines()])


def mentions(page: str) -> list[str]:
    """Commands named in a sentence, where arguments may be left out."""
    return [
        f"unalike {q}" if q.startswith("deploy ") else q for q in quoted(page) if re.match("(unalike|deploy) [a-z]", q)
    ]


def parsed(command: str) -> click.Context:
    """The command as click takes it, without running it; `click.UsageError` or `InputError` when it does not."""
    group, context, left = typer.main.get_command(cli.app), None, shlex.split(command, comments=True)[1:]
    while isinstance(group, click.Group):
        with group.make_context(None, left[:1], parent=context) as context:
            _, found, _ = group.resolve_command(context, left[:1])
            assert found is not None
            group, left = found, left[1:]
    context = group.make_context(group.name, left, parent=context)
    if "unalike.options" in type(group).__module__:
        given, keys = words(context)
        method = next((word for word in given if word in unalike.ALGORITHMS), "pfedafm")
        for key in keys:
            if key not in config.GENERAL and key not in config.parameters_of(find(method)):
                raise click.NoSuchOption(f"--{key}")
    return context


@pytest.mark.parametrize("command", [*dict.fromkeys(commands(DEPLOYING) + commands(OPERATING))])
def test_each_command_parses(command: str) -> None:
    parsed(command)


@pytest.mark.parametrize("command", [*dict.fromkeys(mentions(DEPLOYING) + mentions(OPERATING))])
def test_each_command_that_is_mentioned_exists(command: str) -> None:
    with contextlib.suppress(click.MissingParameter):
        parsed(command)


@pytest.mark.parametrize(
    "wrong",
    ["unalike deploy start x", "unalike deploy run", "unalike deploy run x --fast", "unalike run --loacl-epochs 3"],
)
def test_a_wrong_command_would_be_found(wrong: str) -> None:
    with pytest.raises(click.UsageError):
        parsed(wrong)


def test_the_commands_are_those_of_the_whole_way() -> None:
    said = {" ".join(c.split()[1:3]) for c in commands(DEPLOYING)}
    for verb in ("run pfedafm", "deploy init", "deploy server", "deploy run", "deploy status"):
        assert verb in said
    assert {c.split()[1] for c in commands(DEPLOYING)} >= {"rehearse", "site", "doctor"}


def write_csv(path: Path, page_block: str) -> None:
    """The page's table with its rows forty times over."""
    head, *rows = page_block.split()
    path.write_text("\n".join([head, *rows * 40]) + "\n")


@pytest.fixture(scope="module")
def factories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page's own `deploy init` writes, with one network of a user's file beside it."""
    place = tmp_path_factory.mktemp("page")
    write_csv(place / "example.csv", blocks(DEPLOYING, "csv")[0])
    (place / "net.py").write_text(NET)
    [command] = [c for c in commands(DEPLOYING) if c.startswith("unalike deploy init factories")]
    context = parsed(command)
    _, keys = words(context)
    changed = {"data": str(place / "example.csv"), "seed": "5", "models": f"mlp-5,{place / 'net.py'}:net"}
    options = context.params
    init(place / "factories", config.resolve({**keys, **changed}), names_of(options["sites"]), options["address"])
    return place / "factories"


@pytest.fixture(scope="module")
def recorded(factories: Path) -> dict[str, set[str]]:
    """Kind of message to the fields of all replies, in a run whose folder is left as runs/shared."""
    seen = dict[str, set[str]]()

    def record(message: Any) -> None:
        if message.metadata.reply_to_message_id:
            head = from_content(message.content).head
            seen.setdefault(head["kind"], set()).update(head)

    federation = unalike.federation("wine", clients=2, partition="iid", fleet="1GiB")
    prepared = api.prepare("pfedafm", federation, rounds=2, engine="serial")
    out = factories / serverapp.RUNS / "shared"
    runs.create(out, prepared)
    with InProcess(record) as engine:
        api.drive(out, prepared, engine)
    host = Host(Local(name="berlin", clients=[0], folder=factories), federation)
    for kind in ("hello", "ping", "nonsense"):
        head = Message.decode(host.answer(Message({"kind": kind, "run": "r"}).encode())).head
        seen["failed" if "error" in head else kind] = {*head}
    seen["hello"] |= {*host._hello()["clients"][0]}
    seen["open"] |= {*host._hello()["clients"][0]}
    return seen


def test_the_trials_site_has_its_own_network_and_trusts_it(factories: Path) -> None:
    assert read_deployment(factories).sites == tuple(NAMES.split(","))
    assert (factories / "sites/gdansk/code/net.py").read_text() == NET
    assert [name.rpartition("/")[2] for name in read_site(factories / "sites/gdansk").trust] == ["net.py:net"]


def rows_of(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    lines = text(page).partition(f"\n{heading}\n")[2].splitlines()
    table = [line for line in lines[: next(i for i, line in enumerate(lines) if line.startswith("## "))] if "|" in line]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table if line.startswith("| ")][1:]


def test_what_leaves_a_site_is_what_the_page_says(recorded: dict[str, set[str]]) -> None:
    said = dict[str, set[str]]()
    echoed = {"run", "kind", "round", "client"}
    for kinds, what in rows_of(OPERATING, "## What leaves a site"):
        names = {*re.findall(r"`([\w.]+)`", what)} - {"site.toml", "Wire"}
        for kind in re.findall(r"`(\w+)`", kinds) or [kinds]:
            said.setdefault(kind, set()).update(names)
    assert said.pop("all of them") == echoed
    assert said.pop("any that failed") == {"error"} == recorded.pop("failed") - echoed
    assert said.keys() == recorded.keys()
    for kind, names in said.items():
        assert names == recorded[kind] - echoed - {"id", "n"}, kind


def test_status_says_what_the_page_says(factories: Path, recorded: dict[str, set[str]]) -> None:
    (factories / "runs/shared.failed.json").write_text(json.dumps({"error": "x"}))
    rows = rows_of(OPERATING, "## Monitoring")
    said = [name for keys, *_ in rows if "log" not in keys for name in re.findall("`([^`]+)`", keys)]
    assert {*operate.status(factories)} == {*said[: said.index("failed") + 1]}


ELSEWHERE = {
    "example.csv": "the user's",
    "runs/laptop": "the laptop's",
    "runs/laptop/experiment.toml": "the laptop's",
    "runs/rehearsal": "the rehearsal's",
    "server.log": "the rehearsal's",
    "site-1.log": "the rehearsal's",
    "pyproject.toml": "of the app",
    "wheels/": "filled by pip",
    "runs/local": "another stage's",
    "runs/canary": "another stage's",
    "deploying.md": "a page",
    "operating.md": "a page",
}
"""Files of the pages that are not in the deployment's folder."""
PATH = re.compile(r"[\w.*-]+(?:/[\w.*-]+)*(?:/|\.(?:toml|json|jsonl|key|pub|crt|txt|log|csv|db|html|run|md))|runs/\w+")


def test_each_file_exists(factories: Path, recorded: dict[str, set[str]]) -> None:
    (factories / "server" / operate.LOG).touch()
    (factories / "sites/berlin/state" / site_module.LOG).touch()
    serverapp._run_id(factories / "runs/shared")
    (factories / "runs/shared.failed.json").touch()
    assert '"run.json"' in inspect.getsource(host_module)
    (factories / "sites/berlin/state/RUN").mkdir(exist_ok=True)
    (factories / "sites/berlin/state/RUN/run.json").touch()
    assert '"rehearsal"' in inspect.getsource(commands_module)
    assert '{name}.log"' in inspect.getsource(rehearse)
    found = 0
    for page in PAGES:
        for name in {q for q in quoted(page) if PATH.fullmatch(q)} - ELSEWHERE.keys():
            pattern = name.replace("NAME", "berlin").rstrip("/")
            assert [*factories.glob(pattern)] or [*factories.glob(f"**/{pattern}")], f"{page}: {name}"
            found += 1
    assert found > 50


def test_each_key_exists(recorded: dict[str, set[str]]) -> None:
    parameters = {*config.parameters_of(find("pfedafm"))}
    written = {*Deployment.model_fields} | {*SiteConfig.model_fields} | {*config.GENERAL} | parameters
    messages = set.union(*recorded.values()) | {"init_key"}
    for page in PAGES:
        for line in [q for q in quoted(page) if re.match(r"\w+ = ", q)]:
            assert {*tomllib.loads(line)} <= written, line
        named = {q for q in quoted(page) if re.fullmatch(r"[a-z]+(?:_[a-z0-9]+)+", q)}
        assert named <= written | messages | {"state_sha256"}, named - written


def test_the_pages_settings_are_read(factories: Path) -> None:
    [stage] = [tomllib.loads(block) for block in blocks(OPERATING, "toml")]
    known = tomllib.loads((factories / "deployment.toml").read_text())
    assert Deployment(**{**known, **stage}).stage.value == "canary"
    assert serverapp.taking_part(Deployment(**{**known, **stage})).keys() == {"berlin", "turin"}


def test_a_table_in_another_order_is_brought_to_the_agreement(factories: Path, tmp_path: Path) -> None:
    [keys] = [tomllib.loads(block) for block in blocks(DEPLOYING, "toml")]
    write_csv(tmp_path / "parts.csv", blocks(DEPLOYING, "csv")[1])
    turin = factories / "sites/turin"
    site = read_site(turin).model_copy(update={**keys, "data": str(tmp_path / "parts.csv")})
    schema = Schema.from_json(turin / "schema.json")
    federation = site_federation(site, schema)
    assert schema.features == ("pressure", "temperature", "material=brass", "material=steel")
    assert federation.source.x[0] == pytest.approx([5.0, 180.2, 0, 1], rel=1e-6)
    assert [federation.source.classes[y] for y in federation.source.y[:3]] == ["good", "scrap", "good"]
    assert len(federation.rows(4, "train")) == 72
    for wrong, said in (("pressure", "druck"), ("scrap", "junk"), ("steel", "lead")):
        (tmp_path / "wrong.csv").write_text((tmp_path / "parts.csv").read_text().replace(wrong, said))
        with pytest.raises(unalike.InputError, match=said):
            site_federation(site.model_copy(update={"data": str(tmp_path / "wrong.csv")}), schema)


def slug(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", LINKED)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text(page)):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        place = (ROOT / page).parent / path if path else ROOT / page
        assert place.exists(), target
        if anchor:
            assert anchor in {slug(h) for h in re.findall(r"^#+ (.*)$", place.read_text(), re.MULTILINE)}, target


def test_the_operators_page_has_commands_that_parse(factories: Path) -> None:
    found = ours((factories / "README.md").read_text().splitlines())
    assert len(found) > 8
    for command in found:
        parsed(command)


def test_the_picture_is_whole_and_needs_nothing_else() -> None:
    picture = text("docs/five-factories.svg")
    assert not re.search(r"(?:href|src)=\"(?!#)|url\((?!#)|@import|<script", picture)
    assert "prefers-color-scheme: dark" in picture
    assert all(f">{name}</text>" in picture for name in NAMES.split(","))
