"""A Prefect server of one run's own: on the loopback interface, with a password, on a database under the home folder.

Prefect would start a server by itself, but that one is killed by the same Ctrl-C as its client (which then retries for a minute) and
outlives a client that is killed. This one is in a session of its own, and the kernel ends it when its parent dies.
Imports neither Prefect nor uvicorn in the parent.
"""

from __future__ import annotations

import atexit
import contextlib
import http.client
import importlib.metadata
import os
import secrets
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ioptim.errors import UnavailableError

STARTUP_S = 90
"""Making the database takes 8 s alone on two cores, and 24 s were seen where four runs began at once."""
ANSWER_S = 5
"""How long a server that is said to be there may take to answer."""
GONE_S = 10
"""How long the server may take to write down what it was told and end."""
FOLDER = "prefect"
"""Of the home folder: database and log."""
LOG = "server.log"
DATABASE = "prefect.db"
CURRENT = "database-current"
"""Which Prefect has brought the database to which revision: as long as both are these, looking for migrations is 0.2 s for nothing."""
VACUUMED = "vacuumed"
VACUUM_S = 86400
"""Old events are removed once a day, not beside the first requests of every run."""
LOG_MAX_BYTES = 1 << 20

# Nothing is scheduled, paused, vacuumed or triggered in a run's own server: these only cost start-up time.
IDLE_SERVICES = (
    "CANCELLATION_CLEANUP",
    "FOREMAN",
    "LATE_RUNS",
    "PAUSE_EXPIRATIONS",
    "REPOSSESSOR",
    "SCHEDULER",
    "TRIGGERS",
)


@dataclass
class PrivateServer:
    """A server that is starting or running. `start` makes one."""

    home: Path
    port: int
    process: subprocess.Popen[bytes]
    _ready: threading.Event = field(default_factory=threading.Event)

    @property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def log(self) -> Path:
        return self.home / LOG

    def wait_healthy(self, timeout: float = STARTUP_S) -> None:
        """Return once the server answers.

        Raises:
            UnavailableError: it ended, or did not answer in time; with the last lines of its log.
        """
        deadline = time.monotonic() + timeout
        while not self._ready.is_set():
            if self.process.poll() is not None:
                raise UnavailableError(f"Prefect's private server ended with code {self.process.returncode}. {self._hint()}")
            if time.monotonic() > deadline:
                raise UnavailableError(f"Prefect's private server did not answer within {timeout:g} s. {self._hint()}")
            # The socket listens before the server is there, so the request waits in its queue instead of being sent again.
            with contextlib.suppress(OSError), _direct().open(f"{self.api_url}/health", timeout=1):
                self._ready.set()
                (self.home / CURRENT).write_text(_revision(self.home))

    def stop(self, timeout: float = GONE_S) -> None:
        """End the server: it may write down what it was told last, and is killed after `timeout` seconds."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def _hint(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()[-5:] if self.log.is_file() else []
        tail = f" Its log ({self.log}) ends:\n" + "\n".join(f"  {line}" for line in lines) if lines else ""
        return f"The run works without it: --engine local.{tail}"


_running: PrivateServer | None = None


def running(home: Path) -> PrivateServer | None:
    """The server that this process has started for `home`, if it has."""
    return _running if _running is not None and _running.home == home else None


def start(home: Path) -> PrivateServer:
    """Start a server that keeps its database in `home`, and point this process and its children to it; does not wait for it.

    Call it from the main thread before Prefect is imported: the kernel ends the server with the thread that started it,
    and what is registered at exit before Prefect's own handlers runs after they have sent the last logs.

    Raises:
        UnavailableError: `home` cannot be written.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        log = _open_log(home / LOG)
    except OSError as error:
        raise UnavailableError(f"cannot write {home}: {error.strerror or error}. Make it writable, or use --engine local") from error
    password = f"ioptim:{secrets.token_urlsafe(24)}"
    with log, socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
        port = listening.getsockname()[1]
        code = f"from ioptim.prefect_server import serve; serve({listening.fileno()}, {os.getpid()})"
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(listening.fileno(),),
            start_new_session=True,
            env=_server_environment(home, password),
        )
    global _running
    _running = server = PrivateServer(home, port, process)
    _point_here(server, password)
    atexit.register(server.stop)
    return server


def check_reachable(api_url: str) -> None:
    """Ask a server that the user named whether it is there.

    Raises:
        UnavailableError: nothing answers, or something that is not Prefect's API.
    """
    fix = "Start it (`prefect server start`), or unset PREFECT_API_URL to run with a private server"
    try:
        with urllib.request.urlopen(f"{api_url.rstrip('/')}/health", timeout=ANSWER_S):
            return
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):  # it is there and wants to know who asks: Prefect's client has the key
            return
        problem = f"answers /health with {error.code}; the address of the API ends in /api"
    except (OSError, ValueError, http.client.InvalidURL) as error:
        problem = f"cannot be reached: {getattr(error, 'reason', error)}"
    except http.client.HTTPException as error:
        problem = f"does not answer in HTTP: {error!r}"
    raise UnavailableError(f"the Prefect server at {api_url} (PREFECT_API_URL) {problem}. {fix}")


def serve(listening: int, parent: int) -> None:
    """The server's process: serve on a socket that listens already, until SIGTERM or until the parent is gone."""
    import gc

    gc.disable()  # importing the server makes a million objects that stay: collecting meanwhile costs a fifth of the start
    _die_with(parent)
    import uvicorn
    from prefect.server.api.server import create_app
    from sqlalchemy.orm import configure_mappers

    app = create_app()
    configure_mappers()  # the first request would wait for it
    gc.freeze()
    gc.enable()
    config = uvicorn.Config(app, log_level="error", lifespan="on", timeout_graceful_shutdown=3)
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=listening)])


def _die_with(parent: int) -> None:
    """End this process when the one that started it is gone: by the kernel on Linux, by looking now and then elsewhere."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it died before the kernel was told
        raise SystemExit(0)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def _revision(home: Path) -> str:
    """The Prefect that is installed and the revision of the database's tables; without tables that can be read the first alone."""
    version = importlib.metadata.version("prefect")
    if not (home / DATABASE).is_file():
        return version
    try:
        with contextlib.closing(sqlite3.connect(f"{(home / DATABASE).absolute().as_uri()}?mode=ro", uri=True)) as connection:
            [(revision,)] = connection.execute("SELECT version_num FROM alembic_version")
    except (sqlite3.Error, ValueError):
        return version
    return f"{version} {revision}"


def _is_current(home: Path) -> bool:
    """Whether a server of this version has seen these tables, and nobody has changed them since."""
    known, found = home / CURRENT, _revision(home)
    return " " in found and known.is_file() and known.read_text() == found


def _vacuum_is_due(home: Path) -> bool:
    stamp = home / VACUUMED
    due = not stamp.is_file() or time.time() - stamp.stat().st_mtime > VACUUM_S
    if due:
        stamp.touch()
    return due


def _server_environment(home: Path, password: str) -> dict[str, str]:
    """The child's environment: nothing of the user's own Prefect settings, so that it cannot reach the user's database."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    services = {f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in IDLE_SERVICES}
    return {
        **kept,
        **services,
        "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path),
        "PREFECT_HOME": str(home),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home / DATABASE}",
        "PREFECT_SERVER_DATABASE_MIGRATE_ON_START": "false" if _is_current(home) else "true",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events" if _vacuum_is_due(home) else ",",  # "false" would mean events
        "PREFECT_SERVER_API_AUTH_STRING": password,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_SERVER_UI_ENABLED": "false",
        "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
        "PREFECT_SERVER_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
        "PREFECT__SERVER_EPHEMERAL": "1",
    }


def _point_here(server: PrivateServer, password: str) -> None:
    """Prefect in this process and in its children uses this server and this folder, never `~/.prefect`."""
    for name in ("PREFECT_API_KEY", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH", "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"):
        os.environ.pop(name, None)
    os.environ["PREFECT_HOME"] = str(server.home)
    os.environ["PREFECT_API_URL"] = server.api_url
    os.environ["PREFECT_API_AUTH_STRING"] = password
    os.environ["PREFECT_CLIENT_CSRF_SUPPORT_ENABLED"] = "false"  # a server that is ours, of our version: three and two requests less
    os.environ["PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED"] = "false"
    for name in ("NO_PROXY", "no_proxy"):  # a proxy must not be asked for the loopback interface
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1"]))


def _open_log(path: Path) -> IO[bytes]:
    too_long = path.is_file() and path.stat().st_size > LOG_MAX_BYTES
    return path.open("wb" if too_long else "ab")


def _direct() -> urllib.request.OpenerDirector:
    """Opens addresses without a proxy."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))
