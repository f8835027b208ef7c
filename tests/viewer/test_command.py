"""The command: the address comes first, and Ctrl-C is how it ends."""

import json
import os
import signal
import subprocess
import sys
import urllib.request


def test_the_address_is_the_first_line_and_ctrl_c_ends_it(material):
    command = [sys.executable, "-m", "misfm", "view", str(material / "masks"), "--no-browser", "--json"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as started:
        address = started.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(f"{address}cases.json", timeout=60) as answer:
            listing = json.load(answer)
        assert [case["name"] for case in listing["cases"]] == ["anna", "bert", "carl"]
        started.send_signal(signal.SIGINT)
        out, err = started.communicate(timeout=60)
    assert started.returncode == 1, "as any command that is stopped"
    assert json.loads(out.splitlines()[-1])["cases"].keys() == {"anna", "bert", "carl"}
    assert "Traceback" not in err


def test_what_cannot_be_viewed_is_one_sentence(run_command, tmp_path):
    done = run_command("view", tmp_path / "nothing", "--no-browser")
    assert done.status == 1
    assert "does not exist" in done.error
