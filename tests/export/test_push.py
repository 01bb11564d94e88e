"""Uploading an export, against a local stand-in of the hub's HTTP API."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gorp.errors import ConfigError, ExportError
from gorp.export.push import check_push


TOKEN = "hf_secret"


class Hub(BaseHTTPRequestHandler):
    """Keeps what was asked of it; accepts one repository and a commit of small files."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.path, self.headers.get("Authorization"), body))
        if self.path in self.server.refused:
            return self.answer({"error": f"no entry for {TOKEN}"}, 403)
        if self.path == "/api/repos/create":
            return self.answer({"url": f"{self.server.address}/me/bot"})
        if self.path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            return self.answer(
                {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]}
            )
        if self.path.endswith("/commit/main"):
            return self.answer({"commitUrl": f"{self.server.address}/me/bot/commit/1", "commitOid": "1"})
        return self.answer({})

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Authorization"), b""))
        self.answer({"id": "me/bot", "sha": "0", "siblings": []})

    def answer(self, value, status=200):
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.refused = [], set()
    server.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def pushed(folder, address, monkeypatch):
    """Run `push` in a process of its own, because huggingface_hub reads the environment when it is imported."""
    for key, value in {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}.items():
        monkeypatch.setenv(key, value)
    code = f"""
from pathlib import Path
from gorp.errors import ExportError
from gorp.export.push import check_push, push
check_push("me/bot")
try:
    print(push(Path({str(folder)!r}), "me/bot", private=True))
except ExportError as error:
    print("refused:", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert TOKEN not in done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("# card\n")
    (tmp_path / "out" / "adapter_config.json").write_text("{}")
    return tmp_path / "out"


def test_every_file_is_uploaded_in_one_commit_of_a_private_repository(hub, folder, monkeypatch):
    assert pushed(folder, hub.address, monkeypatch) == f"{hub.address}/me/bot/commit/1\n"
    asked = {path: (token, body) for path, token, body in hub.asked}
    made = json.loads(asked["/api/repos/create"][1])
    assert (made["name"], made["organization"], made["visibility"]) == ("bot", "me", "private")
    lines = [json.loads(line) for line in asked["/api/models/me/bot/commit/main"][1].splitlines()]
    assert {line["value"]["path"] for line in lines if line["key"] == "file"} == {"README.md", "adapter_config.json"}
    assert all(token == f"Bearer {TOKEN}" for token, _ in asked.values() if token)


def test_a_refusal_is_one_sentence_that_names_the_complete_folder_and_no_token(hub, folder, monkeypatch):
    hub.refused.add("/api/models/me/bot/commit/main")
    text = pushed(folder, hub.address, monkeypatch)
    assert text.count("\n") == 1
    assert text.startswith(f"refused: {folder}: complete, but it cannot be uploaded to me/bot (")
    assert f"`hf upload me/bot {folder} --private`" in text


def test_a_hub_that_does_not_answer_is_reported_in_the_same_way(folder, monkeypatch):
    text = pushed(folder, "http://127.0.0.1:9", monkeypatch)
    assert text.startswith(f"refused: {folder}: complete, but") and text.count("\n") == 1


def test_what_cannot_be_uploaded_is_refused_before_anything_is_computed(monkeypatch):
    with pytest.raises(ConfigError, match="not the name of a repository"):
        check_push("me/bot/x/y")
    with pytest.raises(ConfigError, match="Wanted OWNER/NAME"):
        check_push("bot")
    with pytest.raises(ExportError, match="HF_HUB_OFFLINE"):
        check_push("me/bot")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ExportError, match="there is no token"):
        check_push("me/bot")
