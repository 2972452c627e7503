"""Caches of users without a home."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dasd_megatron.utils.caches import use_writable_caches
from dasd_megatron.utils.errors import UserError


def test_a_home_that_can_be_written_stays(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path)}
    use_writable_caches(environment)
    assert environment == {"HOME": str(tmp_path)}


def test_without_a_home_they_are_in_a_folder_of_the_users_own(tmp_path: Path) -> None:
    home = str(tmp_path / "none")
    environment = {"HOME": home, "TRITON_HOME": "/scratch"}
    use_writable_caches(environment, tmp_path)
    use_writable_caches(environment, tmp_path)
    [folder] = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o077 == 0
    assert environment.pop("HOME") == home
    assert environment.pop("TRITON_HOME") == "/scratch"
    assert {Path(value).is_relative_to(folder) for value in environment.values()} == {True}
    assert {"XDG_CACHE_HOME", "CUDA_CACHE_PATH"} <= environment.keys()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make another user's folder")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / f"dasd-megatron-{os.getuid()}"
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    with pytest.raises(UserError, match="belongs to another user"):
        use_writable_caches({"HOME": str(tmp_path / "none")}, tmp_path)
