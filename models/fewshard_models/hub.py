"""Models of the Hugging Face Hub: `hf:<owner>/<name>`, or `hf:<owner>/<name>@<revision>`.

A revision is a commit, a tag or a branch; without one it is the branch `main`. A server finds its commit
once, by `pinned`, so that all its replicas load the same files, also those that start later.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fewshard_models.errors import CheckpointError

SCHEME = "hf:"
FORM = "hf:<owner>/<name>, or hf:<owner>/<name>@<commit, tag or branch>"
FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
_PATH = re.compile(r"hf:(?P<repo>[^/@\s]+/[^/@\s]+)(@(?P<revision>[A-Za-z0-9_][A-Za-z0-9_+#./-]*))?")


def parse(path: str) -> tuple[str, str]:
    """Return `<owner>/<name>` and the revision. Raises CheckpointError for any other form."""
    found = _PATH.fullmatch(path)
    if found is None or ".." in path or path.endswith("/"):
        raise CheckpointError(f"{path!r} is not of the form {FORM}")
    return found["repo"], found["revision"] or "main"


def pinned(path: str) -> str:
    """Return the path with the commit that its revision is now. Raises CheckpointError.

    Where the Hub cannot be reached, it is the commit that was loaded last on this machine.
    """
    repo, _ = parse(path)
    with _without_progress_bars():
        return f"{SCHEME}{repo}@{_snapshot(path, ['config.json']).name}"


def download(path: str) -> Path:
    """Download what is not in the cache, and return the directory. Raises CheckpointError."""
    return _snapshot(path, FILES)


def _snapshot(path: str, patterns: list[str]) -> Path:
    """Return the directory of the files in the cache, whose name is the commit."""
    from huggingface_hub import snapshot_download

    repo, revision = parse(path)
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except Exception as error:
        raise CheckpointError(f"{path} cannot be downloaded: {_why(error, repo, revision)}") from error


def _why(error: Exception, repo: str, revision: str) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no commit, tag or branch {revision!r}"
    if isinstance(error, GatedRepoError):
        return f"{repo} is given only to who has accepted its conditions; do so, and set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no {repo}, or it is private; check the name, or set HF_TOKEN"
    if isinstance(error, LocalEntryNotFoundError):
        return (
            "the Hub does not answer, and the files are not in this machine's cache; check the network, "
            "HF_ENDPOINT and HF_HUB_OFFLINE, or give a directory"
        )
    return " ".join(str(error).split())


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
