// The paged cache of keys and values: blocks of 32 tokens, KV head by KV head. Of a head a block holds the elements, token
// by token: floats, halves, or bytes in groups of 32, each with a scale, a half. The scales of a head lie behind its bytes,
// token by token.
//
// To be included behind HEAD_DIM and ELEMENT.

#extension GL_KHR_shader_subgroup_shuffle : require

const uint CACHE_FLOATS = 0, CACHE_HALVES = 1, CACHE_BYTES = 2;

const uint BLOCK_TOKENS = 32;
// Scales of a token.
const uint SCALES = (HEAD_DIM + 31) / 32;
// Words of four bytes that a head of a block has, and those before its scales.
const uint BYTE_WORDS = BLOCK_TOKENS * HEAD_DIM / 4;
const uint HEAD_WORDS = ELEMENT == CACHE_BYTES    ? BYTE_WORDS + BLOCK_TOKENS * SCALES / 2
                        : ELEMENT == CACHE_HALVES ? 2 * BYTE_WORDS
                                                  : 4 * BYTE_WORDS;

// Word `w` of eight elements of a token of head `head`, which is block * kv_heads + kv_head, as it lies there: bytes and
// behind them their scale, or halves, or floats, of which `rest` are the last four.
uvec4 cached(ReadU4 cache, uint head, uint token, uint w, out uvec4 rest) {
    rest = uvec4(0);
    if (ELEMENT == CACHE_BYTES) {
        uint scale = token * SCALES + w / 4;
        uint pair = ReadU(cache).at[head * HEAD_WORDS + BYTE_WORDS + scale / 2];
        return uvec4(ReadU2(cache).at[head * (HEAD_WORDS / 2) + token * (HEAD_DIM / 8) + w], pair >> scale % 2 * 16, 0);
    }
    uint at = (head * BLOCK_TOKENS + token) * (HEAD_DIM / 8) + w;
    if (ELEMENT == CACHE_HALVES) {
        return cache.at[at];
    }
    rest = cache.at[2 * at + 1];
    return cache.at[2 * at];
}

vec4 of_bytes(uint bytes) {
    int b = int(bytes);
    return vec4(bitfieldExtract(b, 0, 8), bitfieldExtract(b, 8, 8), bitfieldExtract(b, 16, 8), bitfieldExtract(b, 24, 8));
}

// What `cached` answers, as floats.
void widen(uvec4 word, uvec4 rest, out vec4 low, out vec4 high) {
    if (ELEMENT == CACHE_BYTES) {
        float scale = unpackHalf2x16(word.z).x;
        low = scale * of_bytes(word.x);
        high = scale * of_bytes(word.y);
    } else if (ELEMENT == CACHE_HALVES) {
        low = vec4(unpackHalf2x16(word.x), unpackHalf2x16(word.y));
        high = vec4(unpackHalf2x16(word.z), unpackHalf2x16(word.w));
    } else {
        low = uintBitsToFloat(word);
        high = uintBitsToFloat(rest);
    }
}

// Rounds four elements to bytes, which times `scale`, a half, are those the cache holds: eight neighbouring invocations
// of a subgroup round a group together. What is not finite, or too large for such a scale, makes the scale NaN.
uint round_group(vec4 values, out uint scale) {
    vec4 m = abs(values);
    float largest = max(max(m.x, m.y), max(m.z, m.w));
    uint bad = any(isnan(m)) || any(isinf(m)) || largest / 127.0 > 65504.0 ? 1 : 0;
    [[unroll]] for (uint step = 1; step < 8; step *= 2) {
        largest = max(largest, subgroupShuffleXor(largest, step));
        bad |= subgroupShuffleXor(bad, step);
    }
    scale = bad == 0 ? packHalf2x16(vec2(largest / 127.0, 0.0)) : 0x7e00;
    float rounded = unpackHalf2x16(scale).x;
    float inverse = rounded > 0.0 ? 1.0 / rounded : 0.0;
    ivec4 q = bad == 0 ? ivec4(clamp(roundEven(values * inverse), -128.0, 127.0)) : ivec4(1);
    q &= 0xff;
    return uint(q.x | q.y << 8 | q.z << 16 | q.w << 24);
}

// Stores word `w` of four bytes of a token, and the scale of a group with its first word.
void store_group(WriteU cache, uint head, uint token, uint w, uint bytes, uint scale) {
    cache.at[head * HEAD_WORDS + token * (HEAD_DIM / 4) + w] = bytes;
    if (w % 8 == 0) {
        uint at = token * SCALES + w / 8, shift = at % 2 * 16;
        // The other half of the word may be another token's, which another workgroup stores meanwhile.
        atomicAnd(cache.at[head * HEAD_WORDS + BYTE_WORDS + at / 2], ~(0xffffu << shift));
        atomicOr(cache.at[head * HEAD_WORDS + BYTE_WORDS + at / 2], scale << shift);
    }
}
