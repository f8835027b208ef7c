"""Weights from the hub, against a small server that answers as the hub does."""

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
from golden_files import golden_file
from huggingface_hub import constants

import misfm.models
from misfm import weights
from misfm.errors import WeightsError
from misfm.weights import hub
from misfm.weights.hub import Address, parse_address

GOLDEN = golden_file("ckpt_nnssl_primusm_voco.pth")
COMMIT, OLDER = "a" * 40, "b" * 40


@dataclass
class Repo:
    """A repository: its files by revision, or the status and error code that every request gets."""

    revisions: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refusal: tuple[int, str] | None = None


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos = {}
        self.renamed = {}
        self.requests = []
        self.cuts = []  # after how many bytes the next transfers break off

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def publish(self, repo, revision="main", commit=COMMIT, **files):
        contents = {name.replace("__", "."): content for name, content in files.items()}
        entry = self.repos.setdefault(repo, Repo())
        entry.revisions[revision] = entry.revisions[commit] = contents
        return contents


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    PATH = re.compile(
        r"(?P<before>/api/models)?/(?P<repo>[^/]+/[^/?]+)((/revision|/resolve)/(?P<revision>[^/?]+))?"
        r"(/(?P<file>[^?]+))?(\?.*)?"
    )

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        self.server.requests.append((self.command, self.path))
        part = self.PATH.fullmatch(self.path)
        repo = self.server.repos.get(part["repo"])
        if part["repo"] in self.server.renamed:
            target = self.path.replace(part["repo"], self.server.renamed[part["repo"]])
            return self.send(307, headers={"Location": target})
        if repo is None:
            return self.send(401, headers={"X-Error-Code": "RepoNotFound"})
        if repo.refusal is not None:
            status, code = repo.refusal
            return self.send(status, headers={"X-Error-Code": code})
        files = repo.revisions.get(part["revision"] or "main")
        if files is None:
            return self.send(404, headers={"X-Error-Code": "RevisionNotFound"})
        if part["before"]:
            siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
            listing = {"id": part["repo"], "sha": COMMIT, "siblings": siblings}
            return self.send(200, json.dumps(listing).encode(), {"Content-Type": "application/json"})
        commit = next(name for name, found in repo.revisions.items() if found is files and len(name) == 40)
        if part["file"] not in files:
            return self.send(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        return self.send_file(files[part["file"]], commit)

    def send_file(self, content, commit):
        etag = hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted:
            start = int(wanted[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self.send(206, content[start:], headers)
        return self.send(200, content, headers)

    def send(self, status, content=b"", headers=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            cut = self.server.cuts.pop(0) if self.server.cuts and "resolve" in self.path else None
            self.wfile.write(content[:cut])
            self.close_connection = cut is not None


@pytest.fixture
def server(monkeypatch, tmp_path):
    """The only hub there is, with an empty cache; nothing of the user's own is seen."""
    with Hub() as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        use_endpoint(monkeypatch, running.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        start_anew()
        yield running
        running.shutdown()
    start_anew()


@pytest.fixture
def disconnect(server, monkeypatch):
    """Call it, and nobody listens where the hub was, as in a new process on a machine without a network."""

    def close():
        use_endpoint(monkeypatch, "http://127.0.0.1:9")
        start_anew()

    return close


def use_endpoint(monkeypatch, url):
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )


def start_anew():
    hub.fetch.cache_clear()
    huggingface_hub.close_session()


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """A weights file of ours."""
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    torch.manual_seed(0)
    model = misfm.models.create("unet", num_classes=3, patch_size=(8, 8, 8), channels=[2, 4])
    info = weights.WeightsInfo(
        network=weights.NetworkInfo(name="unet", options={"channels": [2, 4]}),
        in_channels=1,
        num_classes=3,
        patch_size=(8, 8, 8),
        spacing=None,
        steps=7,
        data=None,
    )
    weights.save(path, model, info)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf://owner/repo", Address("owner/repo")),
        ("hf://owner/repo@v1.0", Address("owner/repo", "v1.0")),
        ("hf://owner/repo/dir/file.pth", Address("owner/repo", None, "dir/file.pth")),
        ("hf://owner/repo@refs%2Fpr%2F1/file.pth", Address("owner/repo", "refs/pr/1", "file.pth")),
    ],
)
def test_addresses_are_read_and_written(text, address):
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize("text", ["hf://repo", "hf://", "hf://owner/repo@", "hf:///owner/repo", "hf://a b/c"])
def test_what_is_no_address_shows_how_to_write_one(text):
    with pytest.raises(WeightsError, match="hf://owner/repo@revision"):
        weights.describe(text)


def test_weights_are_downloaded_once_and_serve_without_a_network(server, content, disconnect):
    server.publish("owner/repo", weights__safetensors=content, README__md=b"read me")
    assert weights.describe("hf://owner/repo")["steps"] == 7
    model = weights.from_pretrained("hf://owner/repo", num_classes=2)
    assert model(torch.zeros(1, 1, 8, 8, 8)).shape == (1, 2, 8, 8, 8)
    downloads = [path for command, path in server.requests if command == "GET" and "resolve" in path]
    assert downloads == ["/owner/repo/resolve/main/weights.safetensors"]
    disconnect()
    assert weights.describe("hf://owner/repo")["steps"] == 7
    assert "hf://owner/repo" in str(weights.load(model, "hf://owner/repo"))


def test_nothing_but_an_address_uses_the_network(server, content, tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(content)
    weights.describe(tmp_path)
    weights.describe("builtin")
    assert server.requests == []


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["weights.safetensors", "checkpoint_final.pth"], "weights.safetensors"),
        (["checkpoint_final.pth", "checkpoint_best.pth"], "checkpoint_final.pth"),
        (["config.json", "model.pt"], "model.pt"),
    ],
)
def test_the_file_is_chosen_by_its_name(names, chosen):
    assert hub.choose(names, Address("owner/repo")) == chosen


@pytest.mark.parametrize(
    ("names", "file", "message"),
    [
        (["a.pth", "b.pth"], None, r"several files of weights \(a.pth, b.pth\); say which: hf://o/r/a.pth"),
        (["README.md"], None, "holds no file of weights"),
        (["a.pth"], "b.pth", r"has no file b.pth; it has a.pth"),
    ],
)
def test_no_file_or_several_are_refused(names, file, message):
    with pytest.raises(WeightsError, match=message):
        hub.choose(names, Address("o/r", None, file))


def test_a_revision_is_another_file(server, content, disconnect):
    server.publish("owner/repo", weights__safetensors=b"newer")
    server.publish("owner/repo", "v1", OLDER, weights__safetensors=content)
    assert weights.describe("hf://owner/repo@v1")["steps"] == 7
    assert weights.describe(f"hf://owner/repo@{OLDER}")["steps"] == 7
    with pytest.raises(WeightsError, match="has no revision 'v2'; give a branch"):
        weights.describe("hf://owner/repo@v2")
    disconnect()
    assert weights.describe("hf://owner/repo@v1")["steps"] == 7
    with pytest.raises(WeightsError, match="not in the cache"):
        weights.describe("hf://owner/repo")


def test_owners_who_changed_their_name_are_found_under_both(server, content, disconnect):
    server.publish("MIC-DKFZ/Some-Weights", weights__safetensors=content)
    server.renamed["old/repo"] = "MIC-DKFZ/Some-Weights"
    assert weights.describe("hf://old/repo")["steps"] == 7  # the hub redirects
    assert weights.describe("hf://AnonRes/Some-Weights")["steps"] == 7  # and if it no longer does
    disconnect()
    assert weights.describe("hf://AnonRes/Some-Weights")["steps"] == 7


def test_a_broken_transfer_is_resumed(server, content, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server.publish("owner/repo", weights__safetensors=content)
    server.cuts = [len(content) // 2]
    assert weights.describe("hf://owner/repo")["steps"] == 7
    assert [command for command, path in server.requests if "resolve" in path] == ["HEAD", "GET", "GET"]


def test_a_transfer_that_never_ends_leaves_nothing_and_says_how_to_go_on(server, content, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server.publish("owner/repo", weights__safetensors=content)
    server.cuts = [0] * 20
    with pytest.raises(WeightsError, match=r"fetch http\S+/owner/repo/tree/main by other means"):
        weights.describe("hf://owner/repo")
    server.cuts = []
    assert weights.describe("hf://owner/repo")["steps"] == 7


def test_damage_in_the_cache_is_found_and_can_be_cured(server, content):
    server.publish("owner/repo", weights__safetensors=content)
    path = hub.fetch(Address("owner/repo"))
    path.resolve().write_bytes(content[:-1] + b"x")
    start_anew()
    with pytest.raises(WeightsError, match="is damaged") as caught:
        weights.describe("hf://owner/repo")
    Path(re.search(r"delete (\S+)", str(caught.value))[1]).unlink()
    assert weights.describe("hf://owner/repo")["steps"] == 7


def test_published_weights_come_by_name_and_must_be_the_known_file(server, content):
    server.publish("MIC-DKFZ/ResEncL-OpenMind-VF", checkpoint_final__pth=content)
    server.publish("MIC-DKFZ/ResEncL-OpenMind-MAE", checkpoint_final__pth=content)
    known = weights.describe("openmind/resenc-l-vf")
    assert known["steps"] == 7
    assert known["licence"] == "CC-BY-4.0"
    with pytest.raises(WeightsError, match=r"is not the file that misfm knows .* give its hf:// address"):
        weights.describe("openmind/resenc-l-mae")
    assert weights.describe("hf://MIC-DKFZ/ResEncL-OpenMind-MAE")["steps"] == 7


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        (None, "shows no model owner/repo: check owner and name, or run `hf auth login`"),
        ((401, "GatedRepo"), "is open to those only .* run `hf auth login`"),
        ((403, "GatedRepo"), "is open to those only .* run `hf auth login`"),
        ((403, ""), "is open to those only .* run `hf auth login`"),
        ((503, ""), r"not in the cache and could not be downloaded \(Server error '503"),
    ],
)
def test_refusals_are_one_sentence(server, refusal, message):
    if refusal is not None:
        server.repos["owner/repo"] = Repo(refusal=refusal)
    with pytest.raises(WeightsError, match=message) as caught:
        weights.describe("hf://owner/repo")
    assert "\n" not in str(caught.value)


def test_without_a_network_the_message_says_what_to_download_by_hand(disconnect):
    disconnect()
    with pytest.raises(WeightsError) as caught:
        weights.describe("openmind/primus-m-simmim")
    url = "http://127.0.0.1:9/MIC-DKFZ/PrimusM-OpenMind-SimMIM/resolve/main/checkpoint_final.pth"
    assert f"fetch {url} by other means and give the path of the file" in str(caught.value)


def test_a_released_checkpoint_may_have_its_plan_beside_it(server):
    whole = torch.load(GOLDEN, map_location="cpu", weights_only=True)
    plan = {**whole.pop("nnssl_adaptation_plan"), "trainer_name": whole.pop("trainer_name")}
    bare = Path(constants.HF_HUB_CACHE).with_name("bare.pth")
    torch.save({"network_weights": whole["network_weights"]}, bare)
    files = {"config__json": b"{}", "adaptation_plan__json": json.dumps(plan).encode()}
    server.publish("AnonRes/Tiny", checkpoint_final__pth=GOLDEN.read_bytes(), **files)
    server.publish("AnonRes/Bare", checkpoint_final__pth=bare.read_bytes(), **files)
    embedded, beside = weights.describe("hf://AnonRes/Tiny"), weights.describe("hf://AnonRes/Bare")
    assert embedded == {**beside, "steps": embedded["steps"]}
    assert beside["pretext"] == "voco"
    server.publish("AnonRes/Broken", checkpoint_final__pth=bare.read_bytes(), adaptation_plan__json=b"[1")
    with pytest.raises(WeightsError, match="is no adaptation plan"):
        weights.describe("hf://AnonRes/Broken")


@pytest.mark.parametrize(
    "text",
    [
        *("hf://a/..", "hf://../b", "hf://a--b/c", "hf://a/b.git", f"hf://a/{'b' * 100}", "hf://-a/b"),
        *("hf://a/b@..", "hf://a/b@..%2F..%2Fx", "hf://a/b@%2Fetc", "hf://a/b@%00", f"hf://a/b@{'c' * 300}"),
        *("hf://a/b/../c.pth", "hf://a/b//etc/c.pth", "hf://a/b/c/./d.pth"),
    ],
)
def test_no_part_of_an_address_leads_out_of_the_cache(server, run_command, text):
    with pytest.raises(WeightsError, match="is no address on the hub: write hf://owner/repo"):
        parse_address(text)
    done = run_command("info", text)
    assert (done.status, len(done.error) < 500) == (1, True)
    assert not server.requests


def test_files_that_a_repository_puts_outside_of_itself_are_passed_over(server, content):
    server.publish("owner/repo", **{"../../x.pth": b"x", "/etc/y.pth": b"y", "model.pth": content})
    assert hub.fetch(parse_address("hf://owner/repo")).name == "model.pth"


def test_more_than_weights_ever_are_is_not_downloaded(server, content, monkeypatch):
    server.publish("owner/repo", **{"model.pth": content, "adaptation_plan.json": b"{}" * 20})
    monkeypatch.setattr(hub, "MOST_PLAN_BYTES", 30)
    with pytest.raises(WeightsError, match=r"adaptation_plan\.json of hf://owner/repo has 40 bytes"):
        hub.fetch(parse_address("hf://owner/repo"))
    monkeypatch.setattr(hub, "MOST_BYTES", 30)
    with pytest.raises(WeightsError, match=r"model\.pth of hf://owner/repo has .* bytes"):
        hub.fetch(parse_address("hf://owner/repo"))
    assert not [path for _, path in server.requests if "resolve" in path]


def test_a_damaged_cache_holds_nothing(server, content, disconnect):
    server.publish("owner/repo", **{"model.pth": content})
    cached = hub.fetch(parse_address("hf://owner/repo"))
    (cached.parents[2] / "refs" / "main").write_bytes(b"\xff\x00")
    disconnect()
    with pytest.raises(WeightsError, match="is not in the cache and could not be downloaded"):
        hub.fetch(parse_address("hf://owner/repo"))
