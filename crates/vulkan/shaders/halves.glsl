// Blocks of a weight as halves, for matrix units. They sum over columns in any order, so of four elements the second and
// the third change places, here and in the activations (`prepare.comp`): bytes 0 and 2 of a word become one pair of
// halves and bytes 1 and 3 another, by a mask each.

#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require

// What is stored of half a block: of its elements 8 h .. 8 h + 8 and, in the second field, 16 + 8 h .. 24 + 8 h.
struct Raw {
    uvec4 a;
    uvec4 b;
    uvec2 high;
    uvec2 scales;
};

// Half `h` (0 or 1) of block `i`, block `b` of row `row`.
Raw load_half(ReadU w, Regions at, uint i, uint row, uint b, uint blocks_a_row, uint h) {
    Raw raw;
    raw.b = uvec4(0);
    raw.high = uvec2(0);
    raw.scales = uvec2(0);
    if (IS_FLOAT) {
        raw.a = ReadU4(w).at[4 * i + h];
        raw.b = ReadU4(w).at[4 * i + 2 + h];
        return raw;
    }
    if (TYPE == Q8_0) {
        raw.a = uvec4(ReadU2(w).at[4 * i + h], 0, 0);
        raw.b = uvec4(ReadU2(w).at[4 * i + 2 + h], 0, 0);
    } else if (HAS_TWO_BITS) {
        raw.a = uvec4(ReadU2(w).at[i], 0, 0);
    } else {
        raw.a = uvec4(ReadU2(w).at[2 * i + h], 0, 0);
    }
    if (H_WORDS == 2) {
        raw.high = uvec2(w.at[at.h + 2 * i], w.at[at.h + 2 * i + 1]);
    } else if (H_WORDS == 1) {
        raw.high.x = w.at[at.h + i];
    }
    raw.scales = load_scales(w, at, i, row, b, blocks_a_row);
    return raw;
}

// Four floats of a pair of words of 16-bit floats.
uvec2 swap_halves(uvec2 words) {
    if (TYPE == BF16) {
        vec4 v = uintBitsToFloat(uvec4(words.x << 16, words.x & 0xffff0000, words.y << 16, words.y & 0xffff0000));
        return uvec2(packHalf2x16(v.xz), packHalf2x16(v.yw));
    }
    return uvec2((words.x & 0xffff) | words.y << 16, words.x >> 16 | (words.y & 0xffff0000));
}

// Four bytes, scaled. A byte under the exponent of 1024 is the half 1024 + byte.
uvec2 scaled_halves(uint bytes, f16vec2 scale, f16vec2 addend) {
    const bool is_signed = TYPE == Q8_0 || IS_CODED;
    const f16vec2 base = f16vec2(is_signed ? 1152.0 : 1024.0);
    uint positive = is_signed ? bytes ^ 0x80808080 : bytes;
    f16vec2 even = unpackFloat2x16((positive & 0x00ff00ff) | 0x64006400) - base;
    f16vec2 odd = unpackFloat2x16(((positive >> 8) & 0x00ff00ff) | 0x64006400) - base;
    return uvec2(packFloat2x16(fma(even, scale, addend)), packFloat2x16(fma(odd, scale, addend)));
}

// The elements of `raw` as halves: those of its first field, and those of its second.
void unpack_half(Raw raw, uint h, out uvec4 first, out uvec4 second) {
    if (IS_FLOAT) {
        first = uvec4(swap_halves(raw.a.xy), swap_halves(raw.a.zw));
        second = uvec4(swap_halves(raw.b.xy), swap_halves(raw.b.zw));
        return;
    }
    vec4 scales = scales_of(raw.scales);
    f16vec2 scale0 = f16vec2(scales.x), scale1 = f16vec2(scales.y);
    f16vec2 addend0 = f16vec2(scales.z), addend1 = f16vec2(scales.w);
    [[unroll]] for (uint k = 0; k < 2; ++k) {
        // Words `j` and `4 + j` of the eight that a block has.
        uint j = 2 * h + k, low, high;
        if (TYPE == Q8_0) {
            low = raw.a[k];
            high = raw.b[k];
        } else if (HAS_TWO_BITS) {
            low = (raw.a.x >> (2 * j)) & 0x03030303;
            high = (raw.a.y >> (2 * j)) & 0x03030303;
        } else {
            low = raw.a[k] & 0x0f0f0f0f;
            high = (raw.a[k] >> 4) & 0x0f0f0f0f;
        }
        if (TYPE == Q6_K) {
            low |= ((raw.high.x >> (2 * j)) & 0x03030303) << 4;
            high |= ((raw.high.y >> (2 * j)) & 0x03030303) << 4;
        } else if (H_WORDS == 1) {
            const uint up = TYPE == Q3_K ? 2 : 4;
            low |= ((raw.high.x >> j) & 0x01010101) << up;
            high |= ((raw.high.x >> (4 + j)) & 0x01010101) << up;
        }
        if (IS_CODED) {
            low = decode_bytes(low);
            high = decode_bytes(high);
        }
        uvec2 l = scaled_halves(low, scale0, addend0), u = scaled_halves(high, scale1, addend1);
        first[2 * k] = l.x;
        first[2 * k + 1] = l.y;
        second[2 * k] = u.x;
        second[2 * k + 1] = u.y;
    }
}
