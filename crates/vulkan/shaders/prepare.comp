// A row on its way into a product: a sum with another row, a norm, and the form the product reads.
//
//   s = x + y            or  s = x + norm(y) * w1   or  s = x      (kept where `sum` is written)
//   h = norm(s) * w2     or  h = s
//   where rows are selected, row i of h is made of row `selected[i]` of x and y
//   result: h as floats, as bytes in groups of 32, or as halves under one scale a row, in the order of
//   rows or in that of `gemm_fragments.comp`
//
// One workgroup a row. `width` elements a row; norms are over the row. The row is read once and stays in registers.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "memory.glsl"
#include "fragments.glsl"
#include "reduce.glsl"
#include "quantise.glsl"

layout(local_size_x_id = 0) in;

// What is added to x.
layout(constant_id = 1) const uint ADDEND = 0;
const uint NOTHING = 0, PLAIN = 1, NORMED = 2;
layout(constant_id = 2) const bool KEEP_SUM = false;
layout(constant_id = 3) const bool NORM = false;
// Forms of the result, a bit each.
layout(constant_id = 4) const uint FORMS = 1;
const uint FLOATS = 1, BYTES = 2, HALVES = 4, FRAGMENTS = 8;
// Words of four elements that an invocation holds.
layout(constant_id = 5) const uint EACH = 1;
// The width is no multiple of 4.
layout(constant_id = 6) const bool RAGGED = false;
layout(constant_id = 7) const bool SELECT = false;

layout(push_constant, std430) uniform Push {
    ReadF x;
    ReadF y;
    ReadF w1;
    ReadF w2;
    WriteF sum;
    WriteF floats;
    // Bytes or halves.
    WriteU quants;
    // Scales of groups or of rows.
    WriteU2 scales;
    ReadU selected;
    uint width;
    float eps1;
    float eps2;
    uint rows;
};

float inverse_rms(float square, float eps) {
    return 1.0 / sqrt(workgroup_sum(square) / float(width) + eps);
}

// Four elements of a row that begins at `base`, from element `i` on; zeros beyond its end.
vec4 four(ReadF source, uint base, uint i) {
    if (!RAGGED) {
        return i < width ? ReadF4(source).at[(base + i) / 4] : vec4(0.0);
    }
    vec4 v = vec4(0.0);
    [[unroll]] for (uint k = 0; k < 4; ++k) {
        if (i + k < width) {
            v[k] = source.at[base + i + k];
        }
    }
    return v;
}

void keep(WriteF target, uint base, uint i, vec4 v) {
    [[unroll]] for (uint k = 0; k < 4; ++k) {
        if (i + k < width) {
            target.at[base + i + k] = v[k];
        }
    }
}

void main() {
    uint row = gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x;
    if (row >= rows) {
        return;
    }
    uint base = row * width, from = (SELECT ? selected.at[row] : row) * width;
    vec4 s[EACH], w[EACH];
    [[unroll]] for (uint e = 0; e < EACH; ++e) {
        uint i = 4 * (e * gl_WorkGroupSize.x + gl_LocalInvocationIndex);
        s[e] = four(x, from, i);
        if (NORM) {
            w[e] = four(w2, 0, i);
        }
    }
    if (ADDEND != NOTHING) {
        vec4 added[EACH];
        float square = 0.0;
        [[unroll]] for (uint e = 0; e < EACH; ++e) {
            uint i = 4 * (e * gl_WorkGroupSize.x + gl_LocalInvocationIndex);
            added[e] = four(y, from, i);
            square += dot(added[e], added[e]);
            if (ADDEND == NORMED) {
                added[e] *= four(w1, 0, i);
            }
        }
        float scale = ADDEND == NORMED ? inverse_rms(square, eps1) : 1.0;
        [[unroll]] for (uint e = 0; e < EACH; ++e) {
            s[e] += added[e] * scale;
            if (KEEP_SUM) {
                keep(sum, base, 4 * (e * gl_WorkGroupSize.x + gl_LocalInvocationIndex), s[e]);
            }
        }
    }
    if (NORM) {
        float square = 0.0;
        [[unroll]] for (uint e = 0; e < EACH; ++e) {
            square += dot(s[e], s[e]);
        }
        float scale = inverse_rms(square, eps2);
        [[unroll]] for (uint e = 0; e < EACH; ++e) {
            s[e] *= scale * w[e];
        }
    }
    float factor = 0.0;
    if ((FORMS & (HALVES | FRAGMENTS)) != 0) {
        // Scaled so that the largest is 256: halves hold what is 2^24 times smaller, and sums of products stay small.
        float largest = 0.0;
        [[unroll]] for (uint e = 0; e < EACH; ++e) {
            vec4 m = abs(s[e]);
            // What is not finite counts as the largest, and makes the whole row not finite.
            largest = any(isnan(m)) ? 1.0 / 0.0 : max(largest, max(max(m.x, m.y), max(m.z, m.w)));
        }
        largest = workgroup_max(largest);
        factor = largest > 0.0 ? 256.0 / largest : 0.0;
        if (gl_LocalInvocationIndex == 0) {
            scales.at[row] = uvec2(floatBitsToUint(largest / 256.0), 0);
        }
    }
    [[unroll]] for (uint e = 0; e < EACH; ++e) {
        uint word = e * gl_WorkGroupSize.x + gl_LocalInvocationIndex;
        if ((FORMS & FLOATS) != 0) {
            keep(floats, base, 4 * word, s[e]);
        }
        // Whole groups of eight invocations are inside the row or outside.
        if (4 * word < width) {
            if ((FORMS & BYTES) != 0) {
                store_word(quants, scales, base / 4 + word, s[e]);
            }
            if ((FORMS & (HALVES | FRAGMENTS)) != 0) {
                vec4 v = s[e] * factor;
                uint to = (FORMS & FRAGMENTS) != 0 ? fragment(row, word, width) : base / 4 + word;
                WriteU2(quants).at[to] = fragment_halves(v);
            }
        }
    }
}
