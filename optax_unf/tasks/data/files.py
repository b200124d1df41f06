"""Where data files are: a folder the user names, or the user's cache, filled once by download."""

import contextlib
import contextvars
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

_VARIABLE = "OPTAX_UNF_DATA"
_OFFLINE = contextvars.ContextVar("_OFFLINE", default=False)


def find(
    name: str,
    *,
    folder: str,
    sha256: str,
    urls: tuple[str, ...],
    data_dir: str | Path | None,
    any_version: bool = False,
) -> Path:
    """The path of a data file, checked against its checksum.

    Looks in `data_dir`, else in the folder that the environment variable `OPTAX_UNF_DATA` names, both with and
    without the subfolder `folder`; with neither set, downloads the file into the user's cache.

    Args:
      name: the file's name.
      folder: the data set's folder.
      sha256: the file's checksum.
      urls: where to download it from, tried in order.
      data_dir: a folder that holds the data, or `None`.
      any_version: take the user's own file whatever its checksum, such as a part of the data set.

    Raises:
      FileNotFoundError: the folder given does not hold the file.
      ValueError: the file's checksum differs.
      ModuleNotFoundError: a download is needed and pooch is not installed.
      ConnectionError: no download succeeded.
    """
    root = given_folder(data_dir)
    if root is None:
        return _download(name, folder=folder, sha256=sha256, urls=urls)
    tried = [root / folder / name, root / name]
    for path in tried:
        if path.is_file():
            if not any_version:
                _check(path, sha256)
            return path
    raise FileNotFoundError(
        f"The data file {name} must be at {tried[0]} or {tried[1]}, but is at neither. Put it there, or leave "
        f"data_dir and {_VARIABLE} unset to download it."
    )


@contextlib.contextmanager
def without_download() -> Iterator[None]:
    """Inside the `with` block, a file that would have to be downloaded is missing."""
    token = _OFFLINE.set(True)
    try:
        yield
    finally:
        _OFFLINE.reset(token)


def given_folder(data_dir: str | Path | None) -> Path | None:
    """The data folder that the user names, by argument or by the environment variable `OPTAX_UNF_DATA`."""
    given = data_dir or os.environ.get(_VARIABLE)
    return Path(given).expanduser() if given else None


def _check(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ValueError(
            f"The data file {path} must have the SHA-256 checksum {sha256}, but has {found}: it is damaged or another "
            f"version. Fetch it again."
        )


def _download(name: str, *, folder: str, sha256: str, urls: tuple[str, ...]) -> Path:
    try:
        import pooch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"Downloading {name} needs pooch: pip install 'optax-unf[tasks]'. Or set {_VARIABLE} to a folder that "
            f"holds {folder}/{name}."
        ) from error
    cache = pooch.os_cache("optax_unf") / folder
    if _OFFLINE.get() and not (cache / name).is_file():
        raise FileNotFoundError(f"The data file {name} is not downloaded yet.")
    problems = []
    for url in urls:
        try:
            return Path(pooch.retrieve(url, f"sha256:{sha256}", name, cache, progressbar=True))
        except (OSError, ValueError) as error:
            problems.append(f"{url}: {error}")
    raise ConnectionError(
        f"Could not download {name}. Set {_VARIABLE} to a folder that holds {folder}/{name}. Tried:\n"
        + "\n".join(problems)
    )
