"""What the demo lets through of a machine's settings: nothing that leads anywhere."""

import os
import subprocess
import sys
from pathlib import Path

from worker.settings import Settings


def test_settings_in_run_secrets_reach_neither_a_process_of_the_demo_nor_its_children(tmp_path: Path) -> None:
    """SEGMENT_KEY above all: with it the demo would report its invented learners to a real Segment."""
    (tmp_path / "SEGMENT_KEY").write_text("real-key")
    look = (
        "import os, pathlib; from worker.settings import sources\n"
        f"sources.SECRETS_FOLDER = pathlib.Path({str(tmp_path)!r})\n"
        "from simulator.sealed import close_secrets; from worker.settings import load_settings\n"
        "print(load_settings().SEGMENT_KEY)\n"
        "close_secrets()\n"
        "os.fork() or (print(load_settings().SEGMENT_KEY or 'none', flush=True), os._exit(0)); os.wait()"
    )
    given = {name: "x" for name, field in Settings.model_fields.items() if field.is_required()}
    given |= {"DATABASE_URL": "sqlite:///x", "LMS_URL": "https://x", "BACKEND_SERVICE_EDX_OAUTH2_SECRET": "x"}
    told = subprocess.run(
        [sys.executable, "-c", look],
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert told.stdout.splitlines() == ["real-key", "none"]
