#!/usr/bin/env python3
"""Holds the quantisers of crates/tensor against ggml's: error and speed of each type on the same weights.

usage: quantiser_versus.py ENCODE [MODEL.gguf TENSOR]...

ENCODE is the program of `cargo build --release -p tensor --example encode`. Needs the packages numpy, gguf and
llama-cpp-python; the last brings ggml's library, which is called for its `ggml_quantize_chunk`. Blocks of both are
decoded by the package gguf. Normal weights are always among the rows.
"""

import ctypes
import os
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


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    chunk, worse = ggml(), 0
    with tempfile.TemporaryDirectory() as folder:
        for title, x in tensors(sys.argv[2:]):
            importance = np.random.default_rng(2).chisquare(2, x.shape[1]).astype(np.float32)
            for name in TYPES:
                for label, weight in (("plain", None), ("importance", importance)):
                    a, rate_a = ours(sys.argv[1], name, x, weight, folder)
                    b, rate_b = theirs(chunk, name, x, weight)
                    mine, other = snr_db(name, a, x, weight), snr_db(name, b, x, weight)
                    worse += mine < other
                    print(f"{title:24} {name:7} {label:10} {mine:7.3f} dB, ggml {other:7.3f} dB; "
                          f"{rate_a:6.0f} M/s, ggml {rate_b:6.0f} M/s")
    print(f"{worse} times a larger error than ggml's")


if __name__ == "__main__":
    main()
