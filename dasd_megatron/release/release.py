"""Makes a finished run's release: RUN/release/model and RUN/release/data, each a folder that can be uploaded as it is."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from dasd_megatron import __version__
from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.release.cards import CARD, Names, data_card, model_card
from dasd_megatron.release.data_files import write_stage
from dasd_megatron.release.finished_run import FinishedRun
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.files import disk_error, write_atomically, write_json
from dasd_megatron.utils.hashing import hash_file
from dasd_megatron.utils.progress import Progress

CHECKSUMS, RECORD = "SHA256SUMS", "release.json"
MODEL, DATA = "model", "data"
# Of a model folder, what must be passed on with the weights.
LICENSE_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "USAGE_POLICY*")
_CHUNK = 16 << 20


@dataclass(frozen=True)
class ReleaseOptions:
    """What the user says of a release; names that are None are taken from the run.

    Attributes:
        repository: OWNER/NAME on the hub.
        data: whether the data set is part of it.
    """

    base: str | None = None
    teacher: str | None = None
    license: str | None = None
    repository: str | None = None
    data: bool = True


def make_release(run: FinishedRun, folder: Path, options: ReleaseOptions) -> dict[str, Path]:
    """Writes {model, data: folder} below `folder`, and leaves them where the same release is there already.

    Each appears whole or not at all. Raises UserError where the disk is full, or something of the run is damaged.
    """
    parts = {MODEL: folder / MODEL, **({DATA: folder / DATA} if options.data else {})}
    for path in parts.values():
        if path.exists() and not (path / CHECKSUMS).is_file():
            raise UserError(f"{path}: is there, and is no release; move it, or choose another --output")
    record = {"run": run.report.manifest["key"], "options": asdict(options), "version": __version__}
    if _read_record(folder / RECORD) == {**record, "bytes": _sizes(parts)}:
        print(f"{folder}: is there already", file=sys.stderr)
        return parts
    names = _names(run, options)
    write: dict[str, Callable[[Path], None]] = {
        MODEL: lambda path: _write_model(run, names, path),
        DATA: lambda path: _write_data(run, names, path),
    }
    try:
        (folder / RECORD).unlink(missing_ok=True)
        for part, path in parts.items():
            _replace(path, write[part])
    except OSError as error:
        raise disk_error(folder, error) from error
    write_json(folder / RECORD, {**record, "bytes": _sizes(parts)})
    return parts


def _sizes(parts: Mapping[str, Path]) -> dict[str, int]:
    """Of every file but the cards, which people may edit."""
    files = sorted(path for folder in parts.values() for path in folder.rglob("*") if path.is_file())
    return {f"{path.parent.name}/{path.name}": path.stat().st_size for path in files if path.name != CARD}


def _read_record(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _names(run: FinishedRun, options: ReleaseOptions) -> Names:
    base, teacher = run.model_folder("student"), run.model_folder("teacher")
    given = options.license or _stated_license(base)
    if given is None:
        print(f"warning: no licence is stated in {base}/{CARD}; give --license", file=sys.stderr)
    for option, name, folder in (("base-model", options.base, base), ("teacher", options.teacher, teacher)):
        if name is None:
            print(
                f"warning: the cards name {folder.name}; --{option} OWNER/NAME says what the hub calls it",
                file=sys.stderr,
            )
    return Names(
        base=options.base or base.name,
        teacher=options.teacher or teacher.name,
        license=given,
        repository=options.repository,
        has_data=options.data,
    )


def _stated_license(model: Path) -> str | None:
    """What a model folder's own card says."""
    card = model / CARD
    try:  # ModelCard.load would look for a missing one on the hub
        stated = ModelCard(card.read_text(), ignore_metadata_errors=True).data.get("license")
    except (OSError, ValueError):
        return None
    return stated if isinstance(stated, str) else None


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write(temporary)
    paths = sorted(path for path in temporary.rglob("*") if path.is_file() and path.name != CARD)
    files = [path.relative_to(temporary).as_posix() for path in paths]
    sums = "".join(f"{hash_file(temporary / name)}  {name}\n" for name in files)
    write_atomically(temporary / CHECKSUMS, lambda file: file.write(sums.encode()))
    if path.is_dir():
        shutil.rmtree(path)
    temporary.rename(path)


def _write_model(run: FinishedRun, names: Names, folder: Path) -> None:
    """The checkpoint as it was exported, the base model's licence files, and the card."""
    model, base = run.model, run.model_folder("student")
    with Progress("model", sum(entry["bytes"] for entry in model.manifest["files"]), "B") as progress:
        copied = 0
        for entry in model.manifest["files"]:
            copied = _copy(model, entry, folder, progress, copied)
    licenses = sorted(path for pattern in LICENSE_FILES for path in base.glob(pattern) if path.is_file())
    for path in licenses:
        shutil.copyfile(path, folder / path.name)
    system_prompt = model.manifest["config"]["system_prompt"]
    card = model_card(run, names, system_prompt, [path.name for path in licenses])
    write_atomically(folder / CARD, lambda file: file.write(card.encode()))


def _copy(model: Artifact, entry: Mapping[str, Any], folder: Path, progress: Progress, copied: int) -> int:
    """Copies one file; returns how many bytes are copied by now. Raises UserError where it isn't what the manifest says."""
    digest, source, target = hashlib.sha256(), model.path / entry["name"], folder / entry["name"]
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as content, target.open("wb") as file:
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
            file.write(chunk)
            copied += len(chunk)
            progress.update(copied)
    if digest.hexdigest() != entry["sha256"]:
        raise UserError(
            f"{source}: damaged (its hash is not the manifest's); delete {model.path} and run the recipe again"
        )
    return copied


def _write_data(run: FinishedRun, names: Names, folder: Path) -> None:
    files = {stage.name: write_stage(stage, folder) for stage in run.stages}
    card = data_card(run, names, files)
    write_atomically(folder / CARD, lambda file: file.write(card.encode()))
