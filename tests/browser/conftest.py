"""Fixtures of the browser tests: a JupyterLab server of their own, a browser, a page.

Set ``TRIO_SUBSHELLS_REQUIRE_BROWSER=1`` to fail, not skip, where there is no browser, and
``TRIO_SUBSHELLS_SCREENSHOTS=DIR`` to keep the pictures that the tests take.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

import attrs
import pytest
from jupyter_client.blocking.client import BlockingKernelClient

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HERE = Path(__file__).parent
#: Seconds until a wait counts as a hang.
PATIENCE = 120

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER_ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all that is in this folder, so that `-m "not browser"` leaves it out."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("browser")


@attrs.frozen
class Lab:
    """A running JupyterLab server.

    Attributes:
        url: its address, without a slash at the end.
        token: what it lets its users in by.
        notebooks: the directory that it shows.
        runtime: where it keeps the connection files of its kernels.
    """

    url: str
    token: str
    notebooks: Path
    runtime: Path

    def address_of(self, notebook: str) -> str:
        """Return where a browser finds a notebook, in a workspace that nobody has used yet."""
        workspace = secrets.token_hex(4)
        return f"{self.url}/lab/workspaces/{workspace}/tree/{notebook}?token={self.token}"

    def running_kernels(self) -> list[dict[str, Any]]:
        """Ask the server which kernels it runs."""
        question = f"{self.url}/api/kernels?token={self.token}"
        with urllib.request.urlopen(question, timeout=PATIENCE) as answer:
            kernels = json.load(answer)
        assert isinstance(kernels, list)
        return kernels

    def connection_file(self) -> Path:
        """Return the connection file of the one kernel that runs."""
        [kernel] = self.running_kernels()
        return self.runtime / f"kernel-{kernel['id']}.json"


@pytest.fixture(scope="package")
def chromium() -> str:
    """The path of a browser that Playwright can drive."""
    found = os.environ.get("TRIO_SUBSHELLS_BROWSER") or next(
        filter(None, map(shutil.which, BROWSERS)), None
    )
    if found is None:
        _do_without(
            f"no browser: none of {', '.join(BROWSERS)} is on the PATH "
            "(`apt install chromium`, or name one in TRIO_SUBSHELLS_BROWSER)"
        )
    return found


@pytest.fixture(scope="package")
def browser(chromium: str) -> Iterator[Browser]:
    """A headless browser."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _do_without("Playwright is not installed: pip install playwright")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=BROWSER_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A JupyterLab server with directories of its own, on a port that the system chose."""
    runtime, notebooks = tmp_path / "runtime", tmp_path / "notebooks"
    notebooks.mkdir()
    environment = {
        **os.environ,
        "JUPYTER_PATH": str(tmp_path / "prefix" / "share" / "jupyter"),
        "JUPYTER_DATA_DIR": str(tmp_path / "data"),
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "JUPYTER_RUNTIME_DIR": str(runtime),
        "JUPYTER_NO_CONFIG": "1",
        "JUPYTER_PLATFORM_DIRS": "1",
        "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "workspaces"),
        "IPYTHONDIR": str(tmp_path / "ipython"),
    }
    subprocess.run(
        [
            *(sys.executable, "-c", "from trio_subshells.cli import main; main()"),
            *("install", "--prefix", str(tmp_path / "prefix")),
        ],
        check=True,
        capture_output=True,
    )
    notifications = tmp_path / "settings/@jupyterlab/apputils-extension"
    notifications.mkdir(parents=True)
    (notifications / "notification.jupyterlab-settings").write_text(
        '{"fetchNews": "false", "checkForUpdates": false}'
    )
    token = secrets.token_hex()
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
        "--expose-app-in-browser",
        "--ServerApp.ip=127.0.0.1",
        "--ServerApp.port=0",
        f"--ServerApp.root_dir={notebooks}",
        f"--IdentityProvider.token={token}",
        "--LabApp.extension_manager=readonly",
    ]
    server = subprocess.Popen(
        command,
        cwd=notebooks,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    with server, _Log(server) as log:
        try:
            address = log.wait_for_address()
            yield Lab(address, token, notebooks, runtime)
        finally:
            server.terminate()
            try:
                server.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                server.kill()
                raise


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty page that has seen nothing yet, and is large enough for a notebook and a console."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    context.set_default_timeout(PATIENCE * 1000)
    yield context.new_page()
    context.close()


@pytest.fixture
def photograph(
    page: Page, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[[str], None]]:
    """Take a picture of the page under a name; one more is taken at the end."""
    directory = Path(os.environ.get("TRIO_SUBSHELLS_SCREENSHOTS") or tmp_path / "screenshots")
    directory.mkdir(parents=True, exist_ok=True)

    def take(name: str) -> None:
        page.screenshot(path=directory / f"{request.node.name}-{name}.png")

    yield take
    take("end")


@pytest.fixture
def connect(lab: Lab) -> Iterator[Callable[[], BlockingKernelClient]]:
    """Connect to the kernel that the server runs, past its server, to hear all that it says."""
    clients: list[BlockingKernelClient] = []

    def connect() -> BlockingKernelClient:
        client = BlockingKernelClient()
        client.load_connection_file(str(lab.connection_file()))
        client.start_channels(hb=False)
        clients.append(client)
        wait_for_iopub(client, "iopub_welcome")
        return client

    yield connect
    for client in clients:
        client.stop_channels()
        client.context.destroy(linger=0)


def wait_for_iopub(
    client: BlockingKernelClient, type_: str, *, parent: str | None = None, **content: Any
) -> dict[str, Any]:
    """Wait for a message of a type, with this type of parent and (at least) this content."""
    while True:
        message = client.get_iopub_msg(timeout=PATIENCE)
        if (
            message["msg_type"] == type_
            and message["parent_header"].get("msg_type") == parent
            and content.items() <= message["content"].items()
        ):
            assert isinstance(message, dict)
            return message


class _Log:
    """Reads what the server says, all the time, lest its pipe fills up; printed at the end."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        self._server = server
        self._lines: list[str] = []
        self._known = threading.Event()
        self._address: str | None = None
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        print("".join(self._lines))

    def wait_for_address(self) -> str:
        if not self._known.wait(PATIENCE) or self._address is None:
            raise AssertionError(f"JupyterLab did not start: {''.join(self._lines)}")
        return self._address

    def _read(self) -> None:
        assert self._server.stdout is not None
        for line in self._server.stdout:
            self._lines.append(line)
            start = line.find("http://127.0.0.1:")
            if self._address is None and start >= 0:
                self._address = line[start:].split("/lab")[0].strip()
                self._known.set()
        self._known.set()  # the end of the server, if nothing else


def _do_without(reason: str) -> NoReturn:
    if os.environ.get("TRIO_SUBSHELLS_REQUIRE_BROWSER") == "1":
        pytest.fail(f"{reason}; and TRIO_SUBSHELLS_REQUIRE_BROWSER=1 requires it")
    pytest.skip(reason)
