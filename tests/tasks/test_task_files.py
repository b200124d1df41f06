"""Data files of the tasks: where they are found, and downloads, through the real pooch, from a server here."""

import functools
import hashlib
import http.server
import sys
import threading
from pathlib import Path

import pytest

from optax_unf import tasks
from optax_unf.tasks.data import files

CONTENT = b"some data"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def find(monkeypatch):
    monkeypatch.delenv("OPTAX_UNF_DATA", raising=False)
    return functools.partial(files.find, "data.gz", folder="set", sha256=SHA256, urls=(), data_dir=None)


def put(path: Path, content: bytes = CONTENT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("where", ["set/data.gz", "data.gz"])
@pytest.mark.parametrize("by", ["data_dir", "data_dir as a string", "environment"])
def test_find(find, tmp_path, monkeypatch, where, by):
    path = put(tmp_path / where)
    if by == "environment":
        monkeypatch.setenv("OPTAX_UNF_DATA", str(tmp_path))
        assert find() == path
    else:
        assert find(data_dir=tmp_path if by == "data_dir" else str(tmp_path)) == path


def test_data_dir_goes_before_the_environment(find, tmp_path, monkeypatch):
    monkeypatch.setenv("OPTAX_UNF_DATA", str(tmp_path / "other"))
    put(tmp_path / "other" / "data.gz", b"other data")
    path = put(tmp_path / "data.gz")
    assert find(data_dir=tmp_path) == path


def test_home_folder(find, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    path = put(tmp_path / "datasets" / "data.gz")
    assert find(data_dir="~/datasets") == path


def test_missing_file(find, tmp_path, monkeypatch):
    message = r"data\.gz must be at .*set.data\.gz or .*data\.gz, but is at neither\. Put it there, or leave data_dir"
    with pytest.raises(FileNotFoundError, match=message):
        find(data_dir=tmp_path)
    monkeypatch.setenv("OPTAX_UNF_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find()
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
        tasks.get("mlp-fashion-mnist", data_dir=tmp_path)


def test_another_checksum(find, tmp_path):
    put(tmp_path / "data.gz", b"other data")
    with pytest.raises(
        ValueError, match=rf"data\.gz must have the SHA-256 checksum {SHA256}, but has .*Fetch it again"
    ):
        find(data_dir=tmp_path)


def test_another_checksum_of_a_real_name(tmp_path):
    put(tmp_path / "train-images-idx3-ubyte.gz")
    with pytest.raises(ValueError, match="SHA-256"):
        tasks.get("mlp-fashion-mnist", data_dir=tmp_path)


# Downloading, through the real pooch, from a server on this machine.


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        self.server.requested.append(self.path)  # type: ignore[attr-defined]


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    server.requested = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server, folder
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    import pooch

    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    return tmp_path / "cache" / "optax_unf"


def test_download_once(find, server, cache, capfd):
    server, folder = server
    put(folder / "data.gz")
    url = f"http://127.0.0.1:{server.server_port}/data.gz"
    path = find(urls=(url,))
    assert path == cache / "set" / "data.gz"
    assert path.read_bytes() == CONTENT
    assert "100%" in capfd.readouterr().err  # the progress bar
    assert find(urls=(url,)) == path
    assert len(server.requested) == 1


def test_download_again_if_the_cached_file_is_damaged(find, server, cache):
    server, folder = server
    put(folder / "data.gz")
    put(cache / "set" / "data.gz", b"damaged")
    assert find(urls=(f"http://127.0.0.1:{server.server_port}/data.gz",)).read_bytes() == CONTENT


def test_download_from_the_second_address(find, server, cache):
    server, folder = server
    put(folder / "wrong" / "data.gz", b"other data")
    put(folder / "right" / "data.gz")
    base = f"http://127.0.0.1:{server.server_port}"
    path = find(urls=(f"{base}/missing/data.gz", f"{base}/wrong/data.gz", f"{base}/right/data.gz"))
    assert path.read_bytes() == CONTENT


def test_download_with_another_checksum(find, server, cache):
    server, folder = server
    put(folder / "data.gz", b"other data")
    url = f"http://127.0.0.1:{server.server_port}/data.gz"
    with pytest.raises(ConnectionError, match=r"(?s)Could not download data\.gz\. Set OPTAX_UNF_DATA.*hash"):
        find(urls=(url,))
    assert not (cache / "set" / "data.gz").exists()


def test_download_that_fails(find, cache):
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as closed:
        port = closed.server_port
    url = f"http://127.0.0.1:{port}/data.gz"
    with pytest.raises(ConnectionError, match=rf"(?s)Could not download data\.gz.*{url}"):
        find(urls=(url,))


def test_download_without_pooch(find, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"pip install 'optax-unf\[tasks\]'.*Or set OPTAX_UNF_DATA.*set/data.gz"
    ):
        find(urls=("http://127.0.0.1:1/data.gz",))
