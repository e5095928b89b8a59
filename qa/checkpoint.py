"""What survives a kill, a power cut and a full disk.

Every file and folder is written under another name, flushed to the disk, renamed, and the renaming
flushed as well: at any moment it is there whole or not at all, and what was written first is on
the disk first. A checkpoint is a folder `step-N` with tensors (safetensors) and plain state (JSON);
its predecessor is deleted when it stands. Nothing is pickled.
"""

import errno
import glob
import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from qa import UserError

if TYPE_CHECKING:  # signals must be noted before the seconds that loading torch takes
    from torch import Tensor


def flush(path: Path) -> None:
    """Have a file's content, or a folder's list of names, on the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        # Some network file systems flush no folders, and some folders may be written but not read.
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing; flushed, each in the one above it."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        flush(path.parent)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        path.unlink()


def clear_leftovers(target: Path) -> None:
    """Delete what processes that are gone have left of writing `target` (see `scratch`)."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        pid = path.name.split(".")[-2]
        if pid.isdecimal() and (int(pid) == os.getpid() or not psutil.pid_exists(int(pid))):
            _remove(path)


@contextmanager
def scratch(target: Path) -> Iterator[Path]:
    """A name beside `target` for a file or folder that `publish` is to put in its place.

    Whatever is left under that name is deleted, by the next process if this one is killed. Raises
    UserError where the disk is full, or the folder gone or read-only.
    """
    clear_leftovers(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
    except Exception as error:
        # The Rust libraries raise kinds of their own, but name the system's error alike.
        system = re.search(r"([^:]+) \(os error \d+\)", str(error))
        if not isinstance(error, OSError) and not system:
            raise
        reason = system[1].strip() if system else error.strerror or str(error)
        raise UserError(
            f"{target}: cannot be written ({reason}); see to the folder and the room on its disk"
        ) from None
    finally:
        _remove(temporary)


def publish(source: Path, target: Path) -> None:
    """Rename a complete file or folder to `target`, flushed before and after."""
    for path in (*(source.rglob("*") if source.is_dir() else ()), source):
        flush(path)
    os.replace(source, target)
    flush(target.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file or nothing. Raises UserError."""
    with scratch(path) as temporary:
        temporary.write_bytes(content)
        publish(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file or nothing. Raises UserError."""
    write_bytes(path, text.encode())


def save(
    folder: Path, step: int, tensors: "Mapping[str, Tensor]", state: Mapping[str, Any]
) -> None:
    """Make `folder/step-N` the checkpoint; one of that step, being the same, is left alone.

    The folder's parent, the run, has to be there. Raises UserError.
    """
    from safetensors.torch import save_file

    target = folder / f"step-{step:08d}"
    if target.exists():
        return
    with scratch(target) as temporary:
        if not folder.exists():
            folder.mkdir()
            flush(folder.parent)
        temporary.mkdir()
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in tensors.items()},
            temporary / "state.safetensors",
        )
        (temporary / "state.json").write_text(json.dumps(state), encoding="utf-8")
        publish(temporary, target)
    for other in folder.iterdir():
        if other != target:
            _remove(other)


def delete(folder: Path) -> None:
    """Delete a folder; renamed first, so that at no moment a part of it stands in its place."""
    with scratch(folder) as doomed:
        if folder.exists():
            os.replace(folder, doomed)
            flush(folder.parent)


def load(folder: Path) -> "tuple[dict[str, Tensor], dict[str, Any]] | None":
    """The newest whole checkpoint, or None."""
    from safetensors.torch import load_file

    found = sorted(folder.glob("step-*"))
    if not found:
        return None
    state = json.loads((found[-1] / "state.json").read_text(encoding="utf-8"))
    return load_file(found[-1] / "state.safetensors"), state


_noted: list[Callable[[], int]] = []  # of the stop_signals() that are open


@contextmanager
def stop_signals(quiet: bool = False):
    """Within this context SIGINT and SIGTERM do not end the program: they are noted.

    Yields a function that returns the signal's number, or 0. A second signal does what it would
    have done before (by default it ends the program at once). Inside another such context, that
    one's signals are seen. quiet: nothing is said, since the process that passes signals on does.
    """
    if _noted:
        yield _noted[-1]
        return
    received = 0
    previous = {}

    def note(signum, frame):
        nonlocal received
        received = signum
        if not quiet:
            os.write(2, b"stopping after this update or evaluation; once more ends at once\n")
        for number, handler in previous.items():
            signal.signal(number, handler)

    # Handlers can only be set in the main thread; elsewhere (a notebook's worker) none are.
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    _noted.append(lambda: received)
    try:
        yield _noted[-1]
    finally:
        _noted.pop()
        for number, handler in previous.items():
            signal.signal(number, handler)
