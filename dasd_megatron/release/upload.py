"""Uploads a release to a model hub."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx2

from dasd_megatron.release.release import DATA, MODEL
from dasd_megatron.utils.errors import UserError

# The hub's names of what a folder becomes.
_REPOSITORY_TYPES = {MODEL: "model", DATA: "dataset"}


def read_token(variable: str) -> str:
    """The hub's token, from the environment. Raises UserError where there is none."""
    token = os.environ.get(variable, "").strip()
    if not token:
        raise UserError(
            f"--push needs a token with write access in the environment variable {variable}; --token-env names another"
        )
    return token


def check_repository(name: str) -> None:
    """Raises UserError unless this is OWNER/NAME."""
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name, re.ASCII):
        raise UserError(f"--push {name}: give OWNER/NAME, of letters, digits, '-', '_' and '.'")


def upload(parts: Mapping[str, Path], repository: str, token: str, private: bool) -> list[str]:
    """Uploads {model, data: folder}; returns their addresses. What is there already is not sent again.

    Raises UserError where the hub refuses or can't be reached; the token is in no message.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api, addresses = HfApi(token=token), []
    for part, folder in parts.items():
        kind = _REPOSITORY_TYPES[part]
        print(f"{folder}: to the {kind} repository {repository}", file=sys.stderr)
        try:
            address = api.create_repo(repository, repo_type=kind, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=folder, repo_type=kind, commit_message="Upload")
        except HfHubHTTPError as error:
            said = str(error.server_message or error).splitlines()[0]
            raise UserError(
                f"{repository}: the hub refused ({error.response.status_code}: {said}); see whether the token may write there"
            ) from None
        except (OSError, httpx2.HTTPError) as error:
            raise UserError(
                f"{repository}: can't reach the hub ({type(error).__name__}); run the same command again"
            ) from None
        addresses.append(str(address))
    return addresses
