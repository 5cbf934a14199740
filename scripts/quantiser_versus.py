#!/usr/bin/env python3
"""Holds the quantisers of this project against llama.cpp's.

usage: quantiser_versus.py blocks ENCODE [MODEL.gguf TENSOR]...
       quantiser_versus.py files UNICORN SOURCE.gguf FOLDER [TYPE]... [-t THREADS] [-r PAIRS]
       quantiser_versus.py presets UNICORN SOURCE.gguf FOLDER TEXT [PRESET]... [--imatrix FILE] [-w WINDOWS] [-t N]

`blocks` compares error and speed of each type on one thread. ENCODE is the program of `cargo build --release -p tensor
--example encode`; ggml's `ggml_quantize_chunk` is called for the other side, and the package gguf decodes the blocks of
both. Normal weights are always among the rows. It fails where an error is larger than ggml's.

`files` times whole runs in turn, `unicorn quantize` as a process and llama.cpp's `llama_model_quantize`, from the same
source into FOLDER, which is best a file system in memory, with the same threads. Every matrix gets the type, the
embedding as well: both files have the same bytes in each tensor, which is checked.

`presets` makes each preset with both programs, and with the importance matrix if one is given (`unicorn imatrix`, in
GGUF), and prints the rows of a Markdown table: sizes, and what `unicorn compare` says of each against the source.

Needs the packages numpy, gguf and llama-cpp-python; the last brings llama.cpp's libraries.
"""

import argparse
import ctypes
import json
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
# The same of mixes; those that llama.cpp does not have are made by this project alone.
MIXES = {"q4_0": 2, "q8_0": 7, "q3_k_m": 12, "q4_k_m": 15, "q5_k_m": 17, "q6_k": 18}
PRESETS = ["q8_0", "q6_k", "q5_k_m", "quality", "balanced", "q4_k_m", "q4_0", "small"]


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


def quantise(source, target, params):
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)):
        sys.exit("llama_model_quantize failed")


def files(arguments):
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

        pairs = [(timed(mine, ours), timed(lambda: quantise(arguments.source, theirs, params), theirs))
                 for _ in range(arguments.r)]
        ratios = sorted(b / a for a, b in pairs)
        same = sizes(ours) == sizes(theirs)
        different += not same
        a, b = (statistics.median(side) for side in zip(*pairs))
        print(f"{name:7} {a:7.2f} s, llama.cpp {b:7.2f} s; ratio {statistics.median(ratios):.2f} "
              f"({ratios[0]:.2f} to {ratios[-1]:.2f}); {'same' if same else 'DIFFERENT'} sizes", flush=True)
        os.remove(ours)
        os.remove(theirs)
    return 1 if different else 0


def importance_of(path):
    """What llama.cpp takes as an importance matrix: the mean square of each column, by tensor, up to an empty name."""
    found = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    names = sorted(name.removesuffix(".in_sum2") for name in found if name.endswith(".in_sum2"))
    entries = (llama_cpp.llama_model_imatrix_data * (len(names) + 1))()
    for entry, name in zip(entries, names):
        means = found[name + ".in_sum2"] / found[name + ".counts"].reshape(-1, 1)
        means = np.ascontiguousarray(means, np.float32).ravel()
        entry.name, entry.size = name.encode(), means.size
        entry.data = (ctypes.c_float * means.size)(*means)
    return entries


def presets(arguments):
    target, worse = os.path.join(arguments.folder, "versus-preset.gguf"), 0
    imatrix = importance_of(arguments.imatrix) if arguments.imatrix else None
    common = ["--threads", str(arguments.t)]

    def mine(preset, weighed):
        command = [arguments.unicorn, "quantize", arguments.source, target, "--preset", preset, "--force", *common]
        subprocess.run(command + (["--imatrix", arguments.imatrix] if weighed else []), check=True, capture_output=True)

    def other(preset, weighed):
        params = llama_cpp.llama_model_quantize_default_params()
        params.nthread, params.ftype = arguments.t, MIXES[preset]
        if weighed:
            params.imatrix = imatrix
        quantise(arguments.source, target, params)

    def row(title, make):
        make()
        command = [arguments.unicorn, "compare", "--reference", arguments.source, "--model", target, "--json", "--file",
                   arguments.text, "--window", "512", "--windows", str(arguments.w), "--device", "cpu", *common]
        answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        found, reference = answer["comparison"], answer["comparison"]["reference"]
        if row.first:
            print("| file | MiB | perplexity | degradation, % | mean KL, nats | 99 % | same likeliest token, % |\n"
                  f"|---|---|---|---|---|---|---|\n"
                  f"| source | {answer['reference']['bytes'] / 2**20:.1f} | {reference['ppl']:.3f} | | | | |")
            row.first = False
        tail = dict(found["kl_quantiles"])[0.99]
        print(f"| {title} | {answer['model']['bytes'] / 2**20:.1f} | {found['model']['ppl']:.3f} "
              f"| {100 * found['degradation']:.2f} ± {100 * found['degradation_error']:.2f} "
              f"| {found['kl_mean']:.5f} ± {found['kl_error']:.5f} | {tail:.4f} "
              f"| {100 * found['top1_agreement']:.2f} |", flush=True)
        os.remove(target)
        return found["kl_mean"], found["kl_error"]

    row.first = True
    for preset in arguments.presets:
        for weighed in [False, True] if imatrix else [False]:
            note = ", importance" if weighed else ""
            kl, error = row(f"`{preset}`{note}", lambda: mine(preset, weighed))
            if preset in MIXES:
                theirs, theirs_error = row(f"`{preset}`{note}, llama.cpp", lambda: other(preset, weighed))
                worse += kl - theirs > 2 * (error**2 + theirs_error**2) ** 0.5
    print(f"{worse} times a divergence above llama.cpp's by more than two standard errors")
    return 1 if worse else 0


def main():
    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
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
    command = commands.add_parser("presets")
    for name in ("unicorn", "source", "folder", "text"):
        command.add_argument(name)
    command.add_argument("presets", nargs="*", default=PRESETS)
    command.add_argument("--imatrix")
    command.add_argument("-w", type=int, default=12)
    command.add_argument("-t", type=int, default=os.cpu_count())
    command.set_defaults(run=presets)
    arguments = parser.parse_args()
    sys.exit(arguments.run(arguments))


if __name__ == "__main__":
    main()
