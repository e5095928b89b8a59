"""What survives a kill.

A checkpoint is a folder `step-N` with tensors (safetensors) and plain state (JSON). It is written
under another name, flushed to the disk, renamed, and only then is its predecessor deleted: at any
moment of a kill, one whole checkpoint stands. Nothing is pickled.
"""

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # signals must be noted before the seconds that loading torch takes
    from torch import Tensor


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file or nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    _flush(temporary)
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file or nothing."""
    write_bytes(path, text.encode())


def save(
    folder: Path, step: int, tensors: "Mapping[str, Tensor]", state: Mapping[str, Any]
) -> None:
    """Make `folder/step-N` the checkpoint; one of that step, being the same, is left alone."""
    from safetensors.torch import save_file

    target = folder / f"step-{step:08d}"
    if target.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"tmp-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    save_file(
        {k: v.detach().cpu().contiguous() for k, v in tensors.items()},
        temporary / "state.safetensors",
    )
    (temporary / "state.json").write_text(json.dumps(state), encoding="utf-8")
    for path in (temporary / "state.safetensors", temporary / "state.json", temporary):
        _flush(path)
    os.rename(temporary, target)
    _flush(folder)
    for other in folder.iterdir():
        if other != target:
            shutil.rmtree(other, ignore_errors=True)


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
