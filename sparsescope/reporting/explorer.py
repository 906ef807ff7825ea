"""How the explorer is started: one command and one set of settings for the command line and the tests.

The explorer listens on this machine only and sends nothing out. These settings are given as arguments, so
they hold wherever it is started from; ``.streamlit/config.toml`` beside the app repeats them for
``streamlit run``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sparsescope.core.files import given_path
from sparsescope.core.run_store import home as default_home
from sparsescope.errors import DependencyError, SpecError

ADDRESS = "127.0.0.1"
SETTINGS: dict[str, str | tuple[str, ...]] = {  # a tuple is given as repeated arguments
    "server.address": ADDRESS,
    "server.headless": "true",
    "server.enableXsrfProtection": "true",
    "server.enableCORS": "true",
    "server.enableStaticServing": "false",
    "server.allowedHosts": ("127.0.0.1", "localhost"),
    "server.maxUploadSize": "5",
    "server.fileWatcherType": "none",
    "server.runOnSave": "false",
    "browser.gatherUsageStats": "false",
    "browser.serverAddress": ADDRESS,
    "client.showErrorDetails": "none",
    "client.showErrorLinks": "false",
    "client.toolbarMode": "viewer",
    # Streamlit's own export of tables does not guard against formulas; the explorer's downloads do.
    "client.disableDataExport": "true",
    "runner.magicEnabled": "false",
    # For each form: a color for both would be taken for a theme of its own, which is always light.
    "theme.light.primaryColor": "#0064a6",
    "theme.dark.primaryColor": "#6cb6ff",
    "logger.level": "warning",
}


def app() -> Path:
    """Return the app's script: ``sparsescope/explorer`` when installed, ``apps/explorer`` in a checkout.

    Raises:
        DependencyError: If neither is there.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "explorer", package.parent / "apps" / "explorer"):
        if (folder / "app.py").is_file():
            return folder / "app.py"
    raise DependencyError(
        "the explorer is not part of this installation", next_step="pip install --force-reinstall sparsescope"
    )


def command(port: int = 8501) -> list[str]:
    """Return the command line that starts the explorer.

    Raises:
        SpecError: If the port is not one that a user may bind.
        DependencyError: If the app is not installed.
    """
    if not 1024 <= port <= 65535:
        raise SpecError("not a port for the explorer", where="--port", allowed="1024 to 65535", got=port)
    settings = []
    for name, value in SETTINGS.items():
        for part in (value,) if isinstance(value, str) else value:
            settings += [f"--{name}", part]
    return [sys.executable, "-m", "streamlit", "run", str(app()), "--server.port", str(port), *settings]


def environment(home: str | Path | None = None) -> dict[str, str]:
    """Return the environment variables of the explorer: this process's, and the folder of runs.

    Args:
        home: Folder of runs; that of this process when None.
    """
    folder = given_path(home, "the folder of runs") if home is not None else default_home()
    return {**os.environ, "SPARSESCOPE_HOME": str(folder.resolve())}


def address(port: int = 8501, run_id: str | None = None) -> str:
    """Return the address of the explorer, or of one run in it, with the base path that streamlit has."""
    from streamlit import config  # reads the settings of the user, a base path among them

    base = str(config.get_option("server.baseUrlPath") or "").strip("/")
    place = f"http://{ADDRESS}:{port}/" + (f"{base}/" if base else "")
    return place + (f"result?run={run_id}" if run_id else "")
