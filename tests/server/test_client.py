"""The example client, as it stands in examples/, against a real server."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from servers import Running, photographs

CLIENT = Path(__file__).parents[2] / "examples" / "client.py"


def test_the_example_client_makes_a_picture_and_says_what_is_wrong(
    server: Running, tmp_path: Path
) -> None:
    for name, content in zip(("street.png", "cup.png"), photographs(), strict=True):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "text.png").write_text("no picture")
    command = [sys.executable, str(CLIENT), f"http://127.0.0.1:{server.port}"]
    command += ["street.png", "cup.png", "--box", "100,120,90,80", "-o", "out.png"]
    done = subprocess.run(
        [*command, "--method", "poisson"], cwd=tmp_path, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert "step 1 of 1" in done.stderr
    made = hashlib.sha256((tmp_path / "out.png").read_bytes()).hexdigest()
    assert server.service.store.file(made).kind == "picture"
    command[3] = "text.png"
    wrong = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True)
    assert "is not a PNG" in wrong.stderr.splitlines()[-1]
