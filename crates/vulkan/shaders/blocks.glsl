// Weights as they lie on the device (`src/pack.rs`): four regions one after another, each begun at a multiple of 16
// bytes. `Q` holds the low bits of the elements, `H` further bits, `S` what every 32 elements have of scales, `D` what
// every 256 have. A block is 32 elements of a row; block `i` of a weight is `row * blocks_a_row + block`.
//
// A quantised block becomes 32 bytes in the order of its elements and, for each half, a scale and an addend:
// element = scale * byte + addend. Bytes are signed.

layout(constant_id = 0) const uint TYPE = 0;

const uint F32 = 0, F16 = 1, BF16 = 2, Q4_0 = 3, Q4_1 = 4, Q5_0 = 5, Q5_1 = 6, Q8_0 = 7;
const uint Q2_K = 8, Q3_K = 9, Q4_K = 10, Q5_K = 11, Q6_K = 12, IQ4_NL = 13, IQ4_XS = 14, MXFP4 = 15;

const bool IS_FLOAT = TYPE <= BF16;
const bool IS_CODED = TYPE >= IQ4_NL;
// Elements of 2 and of 8 bits; the others have 4.
const bool HAS_TWO_BITS = TYPE == Q2_K || TYPE == Q3_K;
const bool HAS_FIFTH = TYPE == Q5_0 || TYPE == Q5_1 || TYPE == Q5_K;

// Words of 32 bits a block takes of the regions Q and H, bits of S, and words of D for 256 elements.
const uint Q_WORDS = TYPE == F32 ? 32 : IS_FLOAT ? 16 : TYPE == Q8_0 ? 8 : HAS_TWO_BITS ? 2 : 4;
const uint H_WORDS = TYPE == Q6_K ? 2 : HAS_FIFTH || TYPE == Q3_K ? 1 : 0;
const uint S_BITS = IS_FLOAT ? 0 : TYPE == Q4_1 || TYPE == Q5_1 ? 32 : TYPE == IQ4_XS || TYPE == MXFP4 ? 8 : 16;
const bool HAS_PAIRS = TYPE == Q2_K || TYPE == Q4_K || TYPE == Q5_K;
const bool HAS_SINGLES = TYPE == Q3_K || TYPE == Q6_K || TYPE == IQ4_XS;

uint whole_fours(uint words) { return (words + 3) & ~3u; }

// Where the regions of a weight begin, in words.
struct Regions {
    uint h;
    uint s;
    uint d;
};

Regions regions_of(uint blocks) {
    Regions at;
    at.h = whole_fours(blocks * Q_WORDS);
    at.s = at.h + whole_fours(blocks * H_WORDS);
    at.d = at.s + whole_fours((blocks * (S_BITS / 8) + 3) / 4);
    return at;
}

struct Block {
    uint q[8];
    float scale[2];
    float addend[2];
};

// Values of the codes of IQ4_NL and IQ4_XS (ggml `kvalues_iq4nl`), and twice those of MXFP4 (OCP Microscaling Formats
// 1.0, E2M1).
int code_value(uint code) {
    if (TYPE == MXFP4) {
        const int twice[8] = int[8](0, 1, 2, 3, 4, 6, 8, 12);
        int value = twice[code & 7];
        return (code & 8) != 0 ? -value : value;
    }
    const int values[16] = int[16](-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113);
    return values[code];
}

shared uint codebook[IS_CODED ? 16 : 1];

// To be called by all invocations before a block of a coded type is read.
void fill_codebook() {
    if (IS_CODED) {
        uint i = gl_LocalInvocationIndex;
        if (i < 16) {
            codebook[i] = uint(code_value(i)) & 0xff;
        }
        barrier();
    }
}

uint decode_bytes(uint codes) {
    return codebook[codes & 15] | codebook[(codes >> 8) & 15] << 8 | codebook[(codes >> 16) & 15] << 16
        | codebook[(codes >> 24) & 15] << 24;
}

uint short_at(ReadU w, uint base, uint index) {
    return (w.at[base + index / 2] >> (16 * (index & 1))) & 0xffff;
}

uint byte_at(ReadU w, uint base, uint index) {
    return (w.at[base + index / 4] >> (8 * (index & 3))) & 0xff;
}

float e8m0(uint exponent) {
    // Half the value, since the codebook holds doubles: 2^(exponent - 128), of which two are not normal numbers.
    return uintBitsToFloat(exponent < 2 ? 0x00200000u << exponent : (exponent - 1) << 23);
}

// What is stored of the scales of block `i`, block `b` of its row: its bits of region S, and the words of D.
uvec2 load_scales(ReadU w, Regions at, uint i, uint row, uint b, uint blocks_a_row) {
    uvec2 raw = uvec2(0);
    if (S_BITS == 32) {
        raw.x = w.at[at.s + i];
    } else if (S_BITS == 16) {
        raw.x = short_at(w, at.s, i);
    } else if (S_BITS == 8) {
        raw.x = byte_at(w, at.s, i);
    }
    if (HAS_PAIRS || HAS_SINGLES) {
        uint super_block = row * (blocks_a_row / 8) + b / 8;
        raw.y = HAS_PAIRS ? w.at[at.d + super_block] : short_at(w, at.d, super_block);
    }
    return raw;
}

// Scales and addends of both halves: (scale, scale, addend, addend).
vec4 scales_of(uvec2 raw) {
    int s = int(raw.x);
    if (S_BITS == 32) {
        return unpackHalf2x16(raw.x).xxyy;
    }
    if (HAS_PAIRS) {
        vec2 d = unpackHalf2x16(raw.y);
        if (TYPE == Q2_K) {
            vec2 scale = vec2(bitfieldExtract(raw.x, 0, 4), bitfieldExtract(raw.x, 8, 4));
            vec2 least = vec2(bitfieldExtract(raw.x, 4, 4), bitfieldExtract(raw.x, 12, 4));
            return vec4(d.x * scale, -d.y * least);
        }
        return vec2(d.x * float(raw.x & 0xff), -d.y * float(raw.x >> 8)).xxyy;
    }
    if (HAS_SINGLES) {
        float d = unpackHalf2x16(raw.y).x;
        if (TYPE == IQ4_XS) {
            return vec2(d * float(bitfieldExtract(s, 0, 8)), 0.0).xxyy;
        }
        vec2 scale = d * vec2(bitfieldExtract(s, 0, 8), bitfieldExtract(s, 8, 8));
        return vec4(scale, (TYPE == Q6_K ? -32.0 : -4.0) * scale);
    }
    if (TYPE == MXFP4) {
        return vec2(e8m0(raw.x), 0.0).xxyy;
    }
    float scale = unpackHalf2x16(raw.x).x;
    return vec2(scale, TYPE == Q4_0 ? -8.0 * scale : TYPE == Q5_0 ? -16.0 * scale : 0.0).xxyy;
}

void read_scales(ReadU w, Regions at, uint i, uint row, uint b, uint blocks_a_row, inout Block block) {
    vec4 scales = scales_of(load_scales(w, at, i, row, b, blocks_a_row));
    block.scale[0] = scales.x;
    block.scale[1] = scales.y;
    block.addend[0] = scales.z;
    block.addend[1] = scales.w;
}

// Byte `k` of word `j` is element `4 j + k`.
void read_bytes(ReadU w, Regions at, uint i, inout Block block) {
    if (TYPE == Q8_0) {
        uvec4 low = ReadU4(w).at[2 * i], high = ReadU4(w).at[2 * i + 1];
        [[unroll]] for (uint j = 0; j < 4; ++j) {
            block.q[j] = low[j];
            block.q[4 + j] = high[j];
        }
    } else if (HAS_TWO_BITS) {
        uvec2 words = ReadU2(w).at[i];
        uint third = TYPE == Q3_K ? w.at[at.h + i] : 0;
        [[unroll]] for (uint j = 0; j < 8; ++j) {
            block.q[j] = (words[j / 4] >> (2 * (j & 3))) & 0x03030303;
            if (TYPE == Q3_K) {
                block.q[j] |= ((third >> j) & 0x01010101) << 2;
            }
        }
    } else {
        uvec4 words = ReadU4(w).at[i];
        uvec2 high = uvec2(0);
        if (TYPE == Q6_K) {
            high = uvec2(w.at[at.h + 2 * i], w.at[at.h + 2 * i + 1]);
        } else if (HAS_FIFTH) {
            high.x = w.at[at.h + i];
        }
        [[unroll]] for (uint j = 0; j < 8; ++j) {
            uint q = (words[j & 3] >> (j < 4 ? 0 : 4)) & 0x0f0f0f0f;
            if (TYPE == Q6_K) {
                q |= ((high[j / 4] >> (2 * (j & 3))) & 0x03030303) << 4;
            } else if (HAS_FIFTH) {
                q |= ((high.x >> j) & 0x01010101) << 4;
            }
            block.q[j] = IS_CODED ? decode_bytes(q) : q;
        }
    }
}

vec4 bytes_of(uint word) {
    int w = int(word);
    return vec4(bitfieldExtract(w, 0, 8), bitfieldExtract(w, 8, 8), bitfieldExtract(w, 16, 8), bitfieldExtract(w, 24, 8));
}

// Elements `4 j .. 4 j + 4` of a quantised block.
vec4 values_of(Block block, uint j) {
    return block.scale[j / 4] * bytes_of(block.q[j]) + block.addend[j / 4];
}

// The same of block `i` of a weight of floats.
vec4 floats_at(ReadU w, uint i, uint j) {
    if (TYPE == F32) {
        return uintBitsToFloat(ReadU4(w).at[8 * i + j]);
    }
    uvec2 words = ReadU2(w).at[8 * i + j];
    if (TYPE == F16) {
        return vec4(unpackHalf2x16(words.x), unpackHalf2x16(words.y));
    }
    return uintBitsToFloat(uvec4(words.x << 16, words.x & 0xffff0000, words.y << 16, words.y & 0xffff0000));
}
