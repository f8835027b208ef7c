"""The server: who is let in, what is handed out, and what is not."""

import gzip
import http.client
import json
import socket

import nibabel as nib
import numpy as np
import pytest
from viewer.conftest import label_map_of, scan_of, served

from misfm.commands.view import collection_of, view
from misfm.errors import ConfigError, DataError
from misfm.viewer.nifti import strides, thinned
from misfm.viewer.server import PAGE


@pytest.fixture(scope="module")
def server(material):
    with served(material / "masks") as started:
        yield started


def ask(server, path, *, method="GET", token=None, **headers):
    """Ask for what follows the token; returns status, headers and body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    token = server.token if token is None else token
    connection.request(method, f"/{token}/{path}", headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers, body


def test_the_page_and_its_files_are_served_and_may_load_nothing_from_elsewhere(server):
    for path in PAGE:
        status, headers, body = ask(server, path)
        assert (status, int(headers["Content-Length"])) == (200, len(body))
        assert body
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"


def test_a_head_request_has_no_body(server):
    status, headers, body = ask(server, "", method="HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 0


@pytest.mark.parametrize("token", ["", "wrong", "x" * 32, "%00", "..", "%C3%A9"])
def test_without_the_token_nothing_is_served(server, token):
    for path in ("", "cases.json", "case/0/image-0.nii", "viewer.js"):
        status, _, body = ask(server, path, token=token)
        assert status == 403
        assert b"token" in body
        assert server.token.encode() not in body


@pytest.mark.parametrize(
    "host", ["example.org", "127.0.0.1.example.org:{port}", "127.0.0.1", "localhost:1", ""]
)
def test_a_name_that_points_here_is_no_way_in(server, host):
    status, _, body = ask(server, "cases.json", Host=host.format(port=server.server_port))
    assert status == 403
    assert b"this machine alone" in body


def test_this_machine_may_be_called_localhost(server):
    assert ask(server, "cases.json", Host=f"localhost:{server.server_port}")[0] == 200


def test_only_this_machine_can_connect(server):
    assert server.server_address[0] == "127.0.0.1"
    assert len(server.token) >= 32


@pytest.mark.parametrize(
    "path",
    [
        *("../server.py", "page/viewer.js", "..%2fserver.py", "/etc/passwd", "//etc/passwd", "case/", "case"),
        *("case/3/facts", "case/-1/facts", "case/0/../../x", "case/0/image-0.nii/..", "case/0/secret.nii"),
        *(
            "case/0/image-1.nii",
            "case/99999999999/facts",
            "case/0/image-9999.nii",
            "viewer.js/",
            "index.html",
        ),
    ],
)
def test_there_is_nothing_beside_what_is_viewed(server, path):
    status, _, body = ask(server, path)
    assert status == 404
    assert json.loads(body)["error"]


def test_other_methods_are_refused(server):
    assert ask(server, "cases.json", method="POST")[0] == 501
    assert ask(server, "cases.json", method="DELETE")[0] == 501


def test_a_connection_that_breaks_off_harms_nobody(server):
    with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
        connection.sendall(
            f"GET /{server.token}/niivue.js HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\n\r\n".encode()
        )
        connection.recv(10)
    assert ask(server, "cases.json")[0] == 200


def as_image(body):
    return nib.Nifti1Image.from_bytes(body)


def test_a_scan_is_the_voxels_of_its_file_where_these_lie(server, material):
    status, headers, body = ask(server, "case/1/image-0.nii")
    assert status == 200
    assert "Content-Encoding" not in headers
    image = as_image(body)
    original = nib.load(material / "Dataset001" / "imagesTr" / "bert_0000.nii.gz")
    assert image.get_data_dtype() == np.int16
    assert np.array_equal(np.asarray(image.dataobj), scan_of(1))
    assert np.allclose(image.affine, original.affine)
    assert np.allclose(image.get_qform(), original.affine, atol=1e-4)


def test_parts_of_a_scan_can_be_asked_for(server):
    whole = ask(server, "case/0/image-0.nii")[2]
    for wanted, part in (
        ("bytes=0-9", whole[:10]),
        ("bytes=340-359", whole[340:360]),
        ("bytes=1000-", whole[1000:]),
        ("bytes=-7", whole[-7:]),
        (f"bytes=5-{len(whole) + 100}", whole[5:]),
    ):
        status, headers, body = ask(server, "case/0/image-0.nii", Range=wanted)
        assert (status, body) == (206, part)
        start = whole.index(part) if len(part) > 30 else None
        assert headers["Content-Range"].endswith(f"/{len(whole)}")
        assert start is None or headers["Content-Range"].startswith(f"bytes {start}-")
    status, headers, _ = ask(server, "case/0/image-0.nii", Range=f"bytes={len(whole)}-")
    assert (status, headers["Content-Range"]) == (416, f"bytes */{len(whole)}")
    for odd in ("bytes=-", "bytes=0-1,3-4", "lines=1-2", "bytes=a-b"):
        assert ask(server, "case/0/image-0.nii", Range=odd)[0] == 200


def test_label_maps_are_packed_for_browsers(server):
    status, headers, body = ask(server, "case/2/prediction.nii", **{"Accept-Encoding": "gzip, br"})
    plain = ask(server, "case/2/prediction.nii")[2]
    assert (status, headers["Content-Encoding"]) == (200, "gzip")
    assert gzip.decompress(body) == plain
    assert len(body) < len(plain) / 20
    assert np.array_equal(np.asarray(as_image(plain).dataobj), label_map_of(2))


def test_facts_of_a_scan(server):
    facts = json.loads(ask(server, "case/1/facts")[2])
    assert facts["shape"] == [16, 28, 30]
    assert facts["spacing"] == [4, 2, 2]
    (channel,) = facts["channels"]
    assert channel["kind"] == "ct"
    assert channel["windows"][0] == {"name": "Soft tissue", "low": -160.0, "high": 240.0}
    assert facts["notes"] == ["the scan is odd."]


def test_facts_of_label_maps(server):
    facts = json.loads(ask(server, "case/1/labels")[2])
    assert facts["has"] == ["reference", "prediction", "difference", "outline"]
    liver, tumour = facts["labels"]
    reference, prediction = label_map_of(0), label_map_of(1)
    assert (liver["name"], tumour["name"]) == ("liver", "tumour")
    assert liver["colour"] != tumour["colour"]
    assert liver["reference_ml"] == pytest.approx((reference == 1).sum() * 16 / 1000)
    assert liver["prediction_ml"] == pytest.approx((prediction == 1).sum() * 16 / 1000)
    both = ((reference == 1) & (prediction == 1)).sum()
    assert liver["dice"] == pytest.approx(2 * both / ((reference == 1).sum() + (prediction == 1).sum()))
    wrong = reference != prediction
    assert sum(one["ml"] for one in facts["differences"]) == pytest.approx(wrong.sum() * 16 / 1000)
    worst = int(wrong.sum(axis=(0, 1)).argmax())
    assert facts["worst"]["mm"][2] == worst * 4
    assert f"slice {worst + 1} of 16" in facts["worst"]["text"]
    same = json.loads(ask(server, "case/0/labels")[2])
    assert same["worst"] is None
    assert same["dice"] == 1


def test_differences_say_which_way(server):
    ask(server, "case/2/labels")
    difference = np.asarray(as_image(ask(server, "case/2/difference.nii")[2]).dataobj)
    reference, prediction = label_map_of(0), label_map_of(2)
    assert np.array_equal(difference == 1, (reference > 0) & (prediction == 0))
    assert np.array_equal(difference == 2, (reference == 0) & (prediction > 0))
    assert np.array_equal(difference == 3, (reference > 0) & (prediction > 0) & (reference != prediction))
    outline = np.asarray(as_image(ask(server, "case/2/outline.nii")[2]).dataobj)
    assert set(np.unique(outline[outline != reference])) == {0}
    assert outline[10, 14, 5] == 1
    assert outline[17, 14, 5] == 0


def test_scores_come_to_the_list(material):
    with served(material / "masks") as server:
        server.session.score_in_background()
        for _ in range(200):
            listing = json.loads(ask(server, "cases.json")[2])
            if not listing["scoring"]:
                break
        scores = [case["dice"] for case in listing["cases"]]
    assert scores[0] == 1
    assert scores[0] > scores[1] > scores[2]


def test_what_is_missing_is_said_and_the_rest_goes_on(copied):
    (copied / "masks" / "anna.nii.gz").unlink()
    (copied / "masks" / "bert.nii.gz").write_bytes(b"no label map")
    with served(copied / "masks") as server:
        facts = json.loads(ask(server, "case/0/labels")[2])
        assert facts["has"] == ["reference"]
        assert "anna.nii.gz is not there any more" in facts["faults"][0]
        assert ask(server, "case/0/prediction.nii")[0] == 404
        assert "bert.nii.gz" in json.loads(ask(server, "case/1/labels")[2])["faults"][0]
        assert ask(server, "case/2/prediction.nii")[0] == 200


def test_a_scan_that_was_moved_is_said(copied):
    with served(copied / "Dataset001") as server:
        (copied / "Dataset001" / "imagesTr" / "anna_0000.nii.gz").unlink()
        status, _, body = ask(server, "case/0/facts")
        assert status == 422
        assert "anna_0000.nii.gz is missing" in json.loads(body)["error"]
        assert ask(server, "case/1/facts")[0] == 200


def test_a_port_that_is_taken_is_one_sentence(server, material):
    with pytest.raises(ConfigError, match="choose another --port"):
        view(material / "masks", port=server.server_port, browser=False, say=lambda _: None)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: folder / "nothing", "does not exist"),
        (lambda folder: folder, "holds no scan"),
    ],
)
def test_what_cannot_be_viewed_is_one_sentence(tmp_path, make, says):
    with pytest.raises(DataError, match=says):
        collection_of(make(tmp_path))


def test_a_large_scan_is_thinned_along_its_finest_axes_and_stays_where_it_is():
    affine = np.array([[0, 0, 0.8, 5], [0, 0.8, 0, 6], [1.0, 0, 0, 7], [0, 0, 0, 1]])
    kept = strides((600, 512, 512), (1.0, 0.8, 0.8))
    assert kept == (1, 2, 2)
    assert strides((60, 512, 512), (1.0, 0.8, 0.8)) == (1, 1, 1)
    voxels = np.arange(4 * 6 * 8).reshape(4, 6, 8)
    less, moved = thinned(voxels, affine, kept)
    for place in np.ndindex(less.shape):
        before = np.array(place) * kept
        assert less[place] == voxels[tuple(before)]
        assert np.allclose(moved @ [*place, 1], affine @ [*before, 1])


def test_all_voxels_can_be_asked_for(server, monkeypatch):
    monkeypatch.setattr(
        "misfm.viewer.session.strides",
        lambda shape, spacing, most: (1, 1, 1) if most == float("inf") else (1, 2, 2),
    )
    assert json.loads(ask(server, "case/0/facts")[2])["step"] == 2
    thin, whole = (as_image(ask(server, f"case/0/image-0.nii{query}")[2]) for query in ("", "?whole"))
    assert (thin.shape, whole.shape) == ((15, 14, 16), (30, 28, 16))
    labels = as_image(ask(server, "case/0/reference.nii")[2])
    assert np.allclose(labels.affine, thin.affine)
