"""Where libraries keep what they compile and download, for users whose home can't be written, or who have none in a container."""

from __future__ import annotations

import os
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

from dasd_megatron.utils.errors import UserError

# Read by huggingface_hub, vLLM and torch; by vLLM; Triton; FlashInfer; and CUDA.
_VARIABLES = {
    "XDG_CACHE_HOME": "cache",
    "XDG_CONFIG_HOME": "config",
    "TRITON_HOME": "",
    "FLASHINFER_WORKSPACE_BASE": "",
    "CUDA_CACHE_PATH": "cuda",
}


def use_writable_caches(environment: MutableMapping[str, str], temporary: Path | None = None) -> None:
    """Names a folder of this user's own in the temporary folder, where the home can't be written; what is set stays."""
    home = environment.get("HOME", "/")
    if os.access(home, os.W_OK | os.X_OK):
        return
    folder = (temporary or Path(tempfile.gettempdir())) / f"dasd-megatron-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{folder}: {reason}, and the home {home} can't be written; set HOME or TMPDIR") from error
    if folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder}: belongs to another user, and the home {home} can't be written; set HOME or TMPDIR")
    for variable, name in _VARIABLES.items():
        environment.setdefault(variable, str(folder / name))
