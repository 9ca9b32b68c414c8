from __future__ import annotations

import http.server
import importlib.metadata
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ioptim import prefect_server
from ioptim.cli import main
from ioptim.errors import UnavailableError

ROOT = Path(__file__).parents[1]
START = """
import sys, urllib.request
from pathlib import Path
from ioptim.environment import quiet_environment
quiet_environment()
from ioptim import prefect_server
from ioptim.cli import main
server = prefect_server.start(Path(sys.argv[1]))
{then}
"""


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _python(code: str, *args: str, home: Path) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    env = {**kept, "PYTHONPATH": str(ROOT), "HOME": str(home)}
    return subprocess.Popen([sys.executable, "-c", code, *args], stdout=-1, stderr=-1, stdin=-1, text=True, env=env, start_new_session=True)


def _is_gone(pid: int, within: float = 20) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":  # only its entry is left, for whoever adopted it to collect
            return True
        time.sleep(0.05)
    return False


def test_a_named_server_that_is_not_there() -> None:
    url = f"http://127.0.0.1:{_free_port()}/api"
    with pytest.raises(UnavailableError) as error:
        prefect_server.check_reachable(url)
    assert str(error.value) == (
        f"the Prefect server at {url} (PREFECT_API_URL) cannot be reached: [Errno 111] Connection refused."
        " Start it (`prefect server start`), or unset PREFECT_API_URL to run with a private server"
    )


def test_a_named_address_that_is_no_address() -> None:
    with pytest.raises(UnavailableError, match="cannot be reached: unknown url type"):
        prefect_server.check_reachable("localhost")


def test_a_port_that_is_no_number() -> None:
    with pytest.raises(UnavailableError, match="cannot be reached: nonnumeric port: '42o0'. Start it"):
        prefect_server.check_reachable("http://127.0.0.1:42o0/api")


def test_a_port_that_speaks_something_else() -> None:
    def greet() -> None:
        with listening.accept()[0] as peer:
            peer.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
            peer.recv(4096)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=greet).start()
        with pytest.raises(UnavailableError, match=r"does not answer in HTTP: BadStatusLine\('SSH-2.0-OpenSSH_9.2"):
            prefect_server.check_reachable(f"http://127.0.0.1:{listening.getsockname()[1]}/api")


def test_a_named_server_that_is_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.handle_request).start()
        with pytest.raises(UnavailableError, match="answers /health with 404; the address of the API ends in /api"):
            prefect_server.check_reachable(f"http://127.0.0.1:{server.server_port}")


def test_the_server_sees_nothing_of_the_user_s_own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "postgresql+asyncpg://precious")
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", "postgresql+asyncpg://precious")
    monkeypatch.setenv("PREFECT_PROFILE", "work")
    env = prefect_server._server_environment(tmp_path, "ioptim:secret")
    assert "precious" not in "".join(env.values())
    assert "PREFECT_PROFILE" not in env
    assert env["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(UnavailableError, match="Make it writable, or use --engine local"):
        prefect_server.start(tmp_path / "home" / "prefect")


@pytest.mark.parametrize("options", [[], ["--engine", "local"]])
def test_a_run_starts_it_before_anything_else_where_one_has_been(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[Path] = []
    monkeypatch.setattr(prefect_server, "start", started.append)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    command = ["run", str(tmp_path / "missing.yaml"), "--home", str(tmp_path / "home"), *options]
    assert main(command) == 2
    assert started == [] and not (tmp_path / "home").exists(), "a command that is refused makes no folder"
    database = tmp_path / "home" / prefect_server.FOLDER / prefect_server.DATABASE
    database.parent.mkdir(parents=True)
    database.touch()
    assert main(command) == 2
    assert started == ([] if options else [database.parent])
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    assert main(command) == 2
    assert len(started) == (0 if options else 1), "a server that the user names is used as it is"
    assert "missing.yaml" in capsys.readouterr().err


def test_a_run_without_prefect_says_so_where_a_server_has_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    database = tmp_path / "home" / prefect_server.FOLDER / prefect_server.DATABASE
    database.parent.mkdir(parents=True)
    database.touch()
    distribution = importlib.metadata.distribution

    def without_prefect(name: str) -> importlib.metadata.Distribution:
        if name == "prefect":
            raise importlib.metadata.PackageNotFoundError(name)
        return distribution(name)

    monkeypatch.setattr(importlib.metadata, "distribution", without_prefect)
    monkeypatch.setattr("ioptim.commands.run.installed", lambda name: name != "prefect")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert main(["run", str(ROOT / "recipes" / "bert-int8.yaml"), "--home", str(tmp_path / "home")]) == 3
    said = "ioptim: prefect is not installed. Install it with: pip install 'ioptim[track]', or go without it: --engine local\n"
    assert capsys.readouterr().err == said


def test_a_database_that_cannot_be_opened_has_no_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("unable to open database file")

    (tmp_path / prefect_server.DATABASE).touch()
    monkeypatch.setattr(sqlite3, "connect", refuse)
    assert not prefect_server._is_current(tmp_path)


@pytest.mark.integration
def test_a_server_that_cannot_start_shows_its_log(tmp_path: Path) -> None:
    (tmp_path / "prefect.db").mkdir()
    process = _python(START.format(then="server.wait_healthy()"), str(tmp_path), home=tmp_path)
    _, err = process.communicate(timeout=120)
    assert "ioptim.errors.UnavailableError: Prefect's private server ended with code" in err
    assert f"The run works without it: --engine local. Its log ({tmp_path}/server.log) ends:" in err
    assert "unable to open database file" in err


@pytest.mark.integration
@pytest.mark.slow
def test_the_server_wants_a_password_and_dies_with_a_killed_parent(tmp_path: Path) -> None:
    then = """
server.wait_healthy()
try:
    urllib.request.urlopen(server.api_url + "/flows/count", data=b"{}", timeout=10)
except urllib.error.HTTPError as error:
    print(error.code, server.process.pid, flush=True)
sys.stdin.read()
"""
    process = _python(START.format(then=then), str(tmp_path), home=tmp_path)
    assert process.stdout is not None
    code, pid = process.stdout.readline().split()
    assert code == "401"
    assert not _is_gone(int(pid), within=0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert _is_gone(int(pid))
    assert not (tmp_path / ".prefect").exists()
