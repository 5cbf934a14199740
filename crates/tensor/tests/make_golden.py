"""Makes the golden vectors of `golden.rs` with the Python package `gguf`, an independent implementation in numpy.

    pip install numpy==2.4.6 gguf==0.19.0
    python crates/tensor/tests/make_golden.py

Writes beside itself, in `golden/` (all numbers little-endian):

- `TYPE.decode`  u32 number of blocks with finite scales, u32 number of blocks with a scale that is NaN or infinite,
                 the blocks, their elements as f32. A "block" of F32, F16, BF16 is 32 numbers.
- `source.f32`   input of the quantisers: f32, a multiple of 32.
- `TYPE.encode`  `source.f32` quantised to that type.
- `sums.txt`     lines `decode TYPE SUM` and `encode TYPE SUM`: checksums over inputs that are too large to store and
                 that both sides generate (`random_bytes`, `ramp`), so that every entry of every codebook is met.

The output depends on nothing but the seeds below: running it again must leave the files unchanged.
"""

import pathlib
import warnings

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf import quants

warnings.filterwarnings("ignore")  # overflow to infinity is part of the tests

OUT = pathlib.Path(__file__).parent / "golden"

# Type: bytes of a block at which an f16 scale or minimum lies.
HALVES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
    T.IQ1_S: [0], T.IQ1_M: [], T.IQ2_XXS: [0], T.IQ2_XS: [0], T.IQ2_S: [0], T.IQ3_XXS: [0], T.IQ3_S: [0],
    T.IQ4_NL: [0], T.IQ4_XS: [0], T.TQ1_0: [52], T.TQ2_0: [64], T.MXFP4: [],
}
PLAIN = {T.F32: 4, T.F16: 2, T.BF16: 2}
ENCODED = [T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0]
SUM_BLOCKS = 4096
RAMP = 1 << 18


def geometry(t):
    """(elements, bytes) of a block."""
    return (32, 32 * PLAIN[t]) if t in PLAIN else GGML_QUANT_SIZES[t]


def decode(t, blocks):
    return np.ascontiguousarray(quants.dequantize(np.ascontiguousarray(blocks), t)).astype("<f4").reshape(-1)


def encode(t, values):
    return np.ascontiguousarray(quants.quantize(values.reshape(-1, 32), t)).view(np.uint8).reshape(-1)


def set_scale(t, block, scales):
    """Writes f16 scales, in turn, into the scale fields of one block."""
    scales = np.asarray(scales, dtype="<f2")
    for i, at in enumerate(HALVES[t]):
        block[at:at + 2] = scales[[i % len(scales)]].view(np.uint8)
    if t == T.IQ1_M:
        bits = int(scales[:1].view("<u2")[0])
        for i in range(4):
            block[49 + 2 * i] = block[49 + 2 * i] & 0x0F | (bits >> (4 * i) & 15) << 4


def finite_blocks(t, rng):
    """Random quants with: ordinary scales, all zero, all ones, subnormal, negative, zero scales, random bits."""
    size = geometry(t)[1]
    blocks = rng.integers(0, 256, (10, size), dtype=np.uint8)
    blocks[3] = 0
    blocks[4] = 255
    if t in PLAIN:
        return plain_finite(t, blocks)
    for i in range(3):
        set_scale(t, blocks[i], rng.normal(0, 0.02, 2))
    set_scale(t, blocks[4], [1.0, 0.5])
    set_scale(t, blocks[5], [3e-7, -5e-8])
    set_scale(t, blocks[6], [-0.0123, -0.07])
    set_scale(t, blocks[7], [0.0, -0.0])
    for i in (8, 9):
        bits = rng.integers(0, 1 << 16, 2, dtype=np.uint16)
        bits[(bits & 0x7C00) == 0x7C00] ^= 0x0400
        set_scale(t, blocks[i], bits.view("<f2"))
    if t == T.MXFP4:
        blocks[:, 0] = [120, 127, 128, 0, 255, 1, 2, 3, 254, 60]
    return blocks


def plain_finite(t, blocks):
    """Clears one bit of the exponent where a number is not finite."""
    words, exponent, bit = {
        T.F32: ("<u4", 0x7F800000, 0x00800000),
        T.F16: ("<u2", 0x7C00, 0x0400),
        T.BF16: ("<u2", 0x7F80, 0x0080),
    }[t]
    view = blocks.view(words)
    view[(view & exponent) == exponent] ^= bit
    return blocks


def nonfinite_blocks(t, rng):
    size = geometry(t)[1]
    blocks = rng.integers(0, 256, (3, size), dtype=np.uint8)
    specials = [[np.inf, 1.0], [-np.inf, np.inf], [np.nan, 0.5]]
    if t in PLAIN:
        words = {T.F32: "<f4", T.F16: "<f2", T.BF16: "<u2"}[t]
        row = np.array([np.inf, -np.inf, np.nan] if t != T.BF16 else [0x7F80, 0xFF80, 0x7FC1], dtype=words)
        blocks = np.tile(row, 32).view(np.uint8).reshape(3, size)
    elif t == T.MXFP4:
        return blocks[:0]  # every scale is finite
    else:
        for block, scales in zip(blocks, specials):
            set_scale(t, block, scales)
    return blocks


def source(rng):
    """Input of the quantisers, in blocks of 32.

    Left out, because implementations may differ there: NaN and infinity, ranges so small that the reciprocal of the
    scale overflows, and blocks whose minimum is met as +0 and as -0.
    """
    blocks = rng.normal(0, 0.02, (96, 32)).astype(np.float32)
    blocks[0] = 0.0
    blocks[1] = -0.0
    blocks[2] = 0.25
    blocks[3] = -3.0
    blocks[4] = np.arange(32) - 16  # ties
    blocks[5] = np.arange(32) / 2 - 8
    blocks[6] = (np.arange(32) - 16) * 127 / 32
    blocks[7, 1:] = 0.0  # one element stands out
    blocks[8] *= 1e4
    blocks[9] *= 60000 / np.abs(blocks[9]).max()  # near the end of f16
    blocks[10] *= 1e-3
    blocks[11] *= 1e-6  # subnormal scales
    blocks[12] *= 1e-12  # scales that vanish
    blocks[13] = np.where(np.arange(32) % 2, 1.0, -1.0)  # extremes of either sign
    blocks[14] = np.where(np.arange(32) % 2, -1.0, 1.0)
    blocks[15] = np.abs(blocks[15])
    blocks[16] = -np.abs(blocks[16])
    blocks[17] = 5.0 + blocks[17]
    blocks[18] = 2.0 ** (np.arange(32) - 20.0)
    blocks[19] = np.float32(1.0) + np.arange(32, dtype=np.float32) * np.float32(2.0 ** -9)  # ties of BF16
    blocks[20] = np.float32(1.0) + np.arange(32, dtype=np.float32) * np.float32(2.0 ** -12)  # ties of F16
    return blocks.reshape(-1)


def mix(n):
    """The first `n` outputs of splitmix64 from seed 0."""
    with np.errstate(over="ignore"):
        z = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def random_bytes(n):
    return mix((n + 7) // 8).astype("<u8").view(np.uint8)[:n].copy()


def ramp(n):
    """Random numbers that both sides compute exactly: 24 bits times a power of two that changes by the block."""
    words = mix(n)
    mantissa = (words >> np.uint64(40)).astype(np.float32) - np.float32(2**23)
    power = (np.arange(n) // 32 % 16).astype(np.float32) - 28
    return (mantissa * np.exp2(power)).astype(np.float32)


def checksum(words):
    """Sum of word times splitmix64 of its index, modulo 2^64; any change of a word or of the order shows."""
    words = words.astype(np.uint64)
    return int((words * (mix(len(words)) | np.uint64(1))).sum(dtype=np.uint64))


def canonical(values):
    """Bits, with one NaN for all."""
    bits = values.view("<u4").copy()
    bits[np.isnan(values)] = 0x7FC00000
    return bits


def main():
    OUT.mkdir(exist_ok=True)
    sums = []
    for t in [*PLAIN, *HALVES]:
        rng = np.random.default_rng(int(t))
        finite, rest = finite_blocks(t, rng), nonfinite_blocks(t, rng)
        head = np.array([len(finite), len(rest)], dtype="<u4")
        values = [decode(t, b) if len(b) else np.empty(0, "<f4") for b in (finite, rest)]
        assert t == T.MXFP4 or np.isfinite(values[0]).all(), t
        parts = [head, finite, rest, *values]
        (OUT / f"{t.name}.decode").write_bytes(b"".join(np.ascontiguousarray(p).tobytes() for p in parts))
        blocks = random_bytes(SUM_BLOCKS * geometry(t)[1]).reshape(SUM_BLOCKS, -1)
        sums.append(f"decode {t.name} {checksum(canonical(decode(t, blocks))):016x}")

    values = source(np.random.default_rng(99))
    (OUT / "source.f32").write_bytes(values.astype("<f4").tobytes())
    for t in ENCODED:
        (OUT / f"{t.name}.encode").write_bytes(encode(t, values).tobytes())
        sums.append(f"encode {t.name} {checksum(encode(t, ramp(RAMP))):016x}")
    (OUT / "sums.txt").write_text("\n".join(sums) + "\n")


if __name__ == "__main__":
    main()
