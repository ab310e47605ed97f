"""Runs every benchmark of this folder that needs no GPU, one process each: `make bench`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

NOT_HERE = {
    "record.py",
    "real_weights.py",
    "run.py",
    "benchmark_bundle.py",
    "figures.py",
    "gpu_decode.py",
    "gpu_entropy.py",
    "gpu_load.py",
    "weight_formats.py",
    "gpu_matmul.py",
    "gpu_peers.py",
    "plots.py",
    "mlserver_peer.py",
    "mlserver_runtime.py",
}


def main() -> int:
    folder = Path(__file__).resolve().parent
    failed = []
    for script in sorted(path for path in folder.glob("*.py") if path.name not in NOT_HERE):
        print(f"== {script.name}", flush=True)
        if subprocess.run([sys.executable, str(script)], check=False).returncode != 0:
            failed.append(script.name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
