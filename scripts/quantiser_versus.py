#!/usr/bin/env python3
"""Holds the quantisers of this project against llama.cpp's.

usage: quantiser_versus.py blocks ENCODE [MODEL.gguf TENSOR]...
       quantiser_versus.py files UNICORN SOURCE.gguf FOLDER [TYPE]... [-t THREADS] [-r PAIRS]

`blocks` compares error and speed of each type on one thread. ENCODE is the program of `cargo build --release -p tensor
--example encode`; ggml's `ggml_quantize_chunk` is called for the other side, and the package gguf decodes the blocks of
both. Normal weights are always among the rows. It fails where an error is larger than ggml's.

`files` times whole runs in turn, `unicorn quantize` as a process and llama.cpp's `llama_model_quantize`, from the same
source into FOLDER, which is best a file system in memory, with the same threads. Every matrix gets the type, the
embedding as well: both files have the same bytes in each tensor, which is checked.

Needs the packages numpy, gguf and llama-cpp-python; the last brings llama.cpp's libraries.
"""

import argparse
import ctypes
import os
import statistics
import subprocess
import sys
import tempfile
import time

import gguf
import llama_cpp
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type, quants

TYPES = "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4".split()
ROWS = 256
# `llama_ftype` of `llama.h`.
FILE_TYPES = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K": 11, "Q4_K": 14, "Q5_K": 16,
              "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30}


def ggml():
    folder = os.path.join(os.path.dirname(llama_cpp.__file__), "lib")
    library = ctypes.CDLL(os.path.join(folder, "libggml-base.so"))
    chunk = library.ggml_quantize_chunk
    chunk.restype = ctypes.c_size_t
    chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
    return chunk


def theirs(chunk, name, x, importance):
    length, size = GGML_QUANT_SIZES[Type[name]]
    out = np.empty(x.size // length * size, np.uint8)
    pointer = None if importance is None else importance.ctypes.data
    start = time.perf_counter()
    chunk(int(Type[name]), x.ctypes.data, out.ctypes.data, 0, *x.shape, pointer)
    return out, x.size / (time.perf_counter() - start) / 1e6


def ours(program, name, x, importance, folder):
    source, target, weights = (os.path.join(folder, end) for end in ("x", "y", "w"))
    x.tofile(source)
    command = [program, name, source, target]
    if importance is not None:
        np.broadcast_to(importance, x.shape).astype(np.float32).tofile(weights)
        command.append(weights)
    rate = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return np.fromfile(target, np.uint8), float(rate)


def snr_db(name, packed, x, importance):
    y = quants.dequantize(packed.reshape(x.shape[0], -1), Type[name]).reshape(x.shape)
    weight = 1.0 if importance is None else importance.astype(np.float64)
    error = (weight * (x.astype(np.float64) - y) ** 2).sum()
    return 10 * np.log10((weight * x.astype(np.float64) ** 2).sum() / max(error, 1e-300))


def tensors(arguments):
    yield "normal", (np.random.default_rng(1).standard_normal((ROWS, 2048)) * 0.02).astype(np.float32)
    for path, name in zip(arguments[::2], arguments[1::2]):
        tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == name)
        x = quants.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])
        cols = x.shape[1] // 256 * 256
        yield name, np.ascontiguousarray(x[:ROWS, :cols], dtype=np.float32)


def blocks(arguments):
    chunk, worse = ggml(), 0
    with tempfile.TemporaryDirectory() as folder:
        for title, x in tensors(arguments.tensors):
            importance = np.random.default_rng(2).chisquare(2, x.shape[1]).astype(np.float32)
            for name in TYPES:
                for label, weight in (("plain", None), ("importance", importance)):
                    a, rate_a = ours(arguments.encode, name, x, weight, folder)
                    b, rate_b = theirs(chunk, name, x, weight)
                    mine, other = snr_db(name, a, x, weight), snr_db(name, b, x, weight)
                    worse += mine < other
                    print(f"{title:24} {name:7} {label:10} {mine:7.3f} dB, ggml {other:7.3f} dB; "
                          f"{rate_a:6.0f} M/s, ggml {rate_b:6.0f} M/s{' WORSE' if mine < other else ''}", flush=True)
    print(f"{worse} times a larger error than ggml's")
    return 1 if worse else 0


def timed(run, path):
    if os.path.exists(path):
        os.remove(path)
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def sizes(path):
    return {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors}


def files(arguments):
    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    ours, theirs = (os.path.join(arguments.folder, name) for name in ("versus-ours.gguf", "versus-theirs.gguf"))
    different = 0
    for name in arguments.types:
        params = llama_cpp.llama_model_quantize_default_params()
        params.nthread, params.ftype, params.pure, params.allow_requantize = arguments.t, FILE_TYPES[name], True, True
        params.token_embedding_type = params.output_tensor_type = int(Type[name])
        command = [arguments.unicorn, "quantize", arguments.source, ours, "--preset", "f32", "--rule", f".*={name}",
                   "--threads", str(arguments.t), "--force"]

        def mine():
            subprocess.run(command, check=True, capture_output=True)

        def other():
            if llama_cpp.llama_model_quantize(arguments.source.encode(), theirs.encode(), ctypes.byref(params)):
                sys.exit("llama_model_quantize failed")

        pairs = [(timed(mine, ours), timed(other, theirs)) for _ in range(arguments.r)]
        ratios = sorted(b / a for a, b in pairs)
        same = sizes(ours) == sizes(theirs)
        different += not same
        a, b = (statistics.median(side) for side in zip(*pairs))
        print(f"{name:7} {a:7.2f} s, llama.cpp {b:7.2f} s; ratio {statistics.median(ratios):.2f} "
              f"({ratios[0]:.2f} to {ratios[-1]:.2f}); {'same' if same else 'DIFFERENT'} sizes", flush=True)
        os.remove(ours)
        os.remove(theirs)
    return 1 if different else 0


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split("usage:")[1].split("\n\n")[0])
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("blocks")
    command.add_argument("encode")
    command.add_argument("tensors", nargs="*")
    command.set_defaults(run=blocks)
    command = commands.add_parser("files")
    for name in ("unicorn", "source", "folder"):
        command.add_argument(name)
    command.add_argument("types", nargs="*", default=["Q4_0", "Q8_0", "Q4_K"])
    command.add_argument("-t", type=int, default=os.cpu_count())
    command.add_argument("-r", type=int, default=5)
    command.set_defaults(run=files)
    arguments = parser.parse_args()
    sys.exit(arguments.run(arguments))


if __name__ == "__main__":
    main()
