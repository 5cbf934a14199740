#!/usr/bin/env python3
"""Holds the GGUF files that this project writes against two other readers.

usage: gguf_versus.py logits UNICORN FIXTURE...
       gguf_versus.py types UNICORN SOURCE.gguf FOLDER [TYPE]...

`logits` writes each Hugging Face directory of fixtures/ as GGUF (f32, and the preset q8_0), lets llama.cpp and `unicorn
logits` read the file, and prints how far the logits of both are from those in the directory's expected.safetensors and
from each other: the root mean square of the difference over that of the logits. It fails where llama.cpp does not load
a file, or a distance exceeds BOUND; with q8_0 both programs round activations, each in its own way. Of a model of the
architecture llama with a sliding window only the tokens within the first window are compared: llama.cpp attends to
everything there.

`types` packs SOURCE into each type, decodes the file with the package gguf (numpy) and with `unicorn quantize --preset
f32`, and fails where a bit of a tensor of that type differs. FOLDER takes some gigabytes for a large SOURCE.

Needs the packages numpy, gguf and safetensors, and `logits` llama-cpp-python.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type, quants

TYPES = "F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4".split()
BOUND = {"f32": 1e-3, "q8_0": 1e-1}


def quantize(unicorn, source, target, *flags):
    subprocess.run([unicorn, "quantize", source, target, "--force", *flags], check=True, capture_output=True)


def llama_logits(path, ids):
    """Logits of every token, with caches in f32 and without flash attention; None where the file is refused."""
    import llama_cpp as llama

    quiet = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(quiet, ctypes.c_void_p(0))
    params = llama.llama_model_default_params()
    params.n_gpu_layers = 0
    model = llama.llama_model_load_from_file(path.encode(), params)
    if not model:
        return None
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = 512, 512, 512
    params.type_k = params.type_v = int(Type.F32)
    params.flash_attn_type = 0
    context = llama.llama_init_from_model(model, params)
    batch = llama.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for at, token in enumerate(ids):
        batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.logits[at] = token, at, 1, 1
        batch.seq_id[at][0] = 0
    if llama.llama_decode(context, batch):
        return None
    width = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    rows = [np.ctypeslib.as_array(llama.llama_get_logits_ith(context, at), (width,)).copy() for at in range(len(ids))]
    llama.llama_batch_free(batch)
    llama.llama_free(context)
    llama.llama_model_free(model)
    return np.array(rows)


def unicorn_logits(unicorn, path, ids, folder):
    from safetensors.numpy import load_file

    out = os.path.join(folder, "logits.safetensors")
    subprocess.run([unicorn, "logits", "--model", path, "--ids", ",".join(map(str, ids)), "-o", out, "--kv", "f32",
                    "--device", "cpu"], check=True, capture_output=True)
    return load_file(out)["logits"]


def logits(arguments):
    from safetensors.numpy import load_file

    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for directory in arguments.fixtures:
            name = os.path.basename(os.path.normpath(directory))
            expected = load_file(os.path.join(directory, "expected.safetensors"))
            ids, want = expected["input_ids"].tolist(), expected["logits"]
            with open(os.path.join(directory, "config.json")) as file:
                config = json.load(file)
            window = config.get("sliding_window") if config["model_type"] == "mistral" else None
            for preset in ("f32", "q8_0"):
                path = os.path.join(folder, f"{name}-{preset}.gguf")
                quantize(arguments.unicorn, directory, path, "--preset", preset)
                theirs = llama_logits(path, ids)
                if theirs is None:
                    print(f"{name:14} {preset:5} llama.cpp REFUSES it", flush=True)
                    failed += 1
                    continue
                ours = unicorn_logits(arguments.unicorn, path, ids, folder)
                rows = slice(window)

                def far(a, b):
                    return float(np.sqrt(np.square(a[rows] - b[rows]).mean() / np.square(want[rows]).mean()))

                distances = far(theirs, want), far(ours, want), far(theirs, ours)
                wrong = max(distances) > BOUND[preset]
                failed += wrong
                print(f"{name:14} {preset:5} {len(want[rows]):3} tokens: llama.cpp from transformers {distances[0]:.1e}, "
                      f"unicorn {distances[1]:.1e}, one from the other {distances[2]:.1e}{' WRONG' if wrong else ''}",
                      flush=True)
    return 1 if failed else 0


def types(arguments):
    failed = 0
    packed, back = (os.path.join(arguments.folder, name) for name in ("types-packed.gguf", "types-back.gguf"))
    for name in arguments.types or TYPES:
        quantize(arguments.unicorn, arguments.source, packed, "--preset", "f32", "--rule", f".*={name}")
        quantize(arguments.unicorn, packed, back, "--preset", "f32")
        decoded = {tensor.name: tensor for tensor in gguf.GGUFReader(back).tensors}
        tensors = elements = different = 0
        for tensor in gguf.GGUFReader(packed).tensors:
            if tensor.tensor_type != Type[name]:
                continue
            theirs = quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32).ravel()
            ours = decoded[tensor.name].data.ravel()
            tensors, elements = tensors + 1, elements + ours.size
            different += int((theirs.view(np.uint32) != ours.view(np.uint32)).sum())
        failed += different > 0 or tensors == 0
        print(f"{name:7} {tensors:4} tensors, {elements:12} elements, {different} differ", flush=True)
    os.remove(packed)
    os.remove(back)
    return 1 if failed else 0


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split("usage:")[1].split("\n\n")[0])
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("logits")
    command.add_argument("unicorn")
    command.add_argument("fixtures", nargs="+")
    command.set_defaults(run=logits)
    command = commands.add_parser("types")
    for name in ("unicorn", "source", "folder"):
        command.add_argument(name)
    command.add_argument("types", nargs="*")
    command.set_defaults(run=types)
    arguments = parser.parse_args()
    sys.exit(arguments.run(arguments))


if __name__ == "__main__":
    main()
