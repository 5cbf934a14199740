// A row on its way into a product: a sum with another row, a norm, and the form the product reads.
//
//   s = x + y            or  s = x + norm(y) * w1   or  s = x      (kept where `sum` is written)
//   h = norm(s) * w2     or  h = s
//   result: h as floats, as bytes in groups of 32, or as halves under one scale a row
//
// One workgroup a row. `width` elements a row; norms are over the row.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "memory.glsl"
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
const uint FLOATS = 1, BYTES = 2, HALVES = 4;

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
    uint width;
    float eps1;
    float eps2;
    uint rows;
};

float inverse_rms(float square, float eps) {
    return 1.0 / sqrt(workgroup_sum(square) / float(width) + eps);
}

float added(uint at, uint i, float scale) {
    float s = x.at[at];
    if (ADDEND == PLAIN) {
        s += y.at[at];
    } else if (ADDEND == NORMED) {
        s += y.at[at] * scale * w1.at[i];
    }
    return s;
}

void main() {
    uint row = gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x;
    if (row >= rows) {
        return;
    }
    uint base = row * width;
    float first = 0.0, second = 1.0;
    if (ADDEND == NORMED) {
        float square = 0.0;
        for (uint i = gl_LocalInvocationIndex; i < width; i += gl_WorkGroupSize.x) {
            float v = y.at[base + i];
            square += v * v;
        }
        first = inverse_rms(square, eps1);
    }
    if (NORM || KEEP_SUM) {
        float square = 0.0;
        for (uint i = gl_LocalInvocationIndex; i < width; i += gl_WorkGroupSize.x) {
            float v = added(base + i, i, first);
            if (KEEP_SUM) {
                sum.at[base + i] = v;
            }
            square += v * v;
        }
        if (NORM) {
            second = inverse_rms(square, eps2);
        }
    }
    if ((FORMS & FLOATS) != 0) {
        for (uint i = gl_LocalInvocationIndex; i < width; i += gl_WorkGroupSize.x) {
            float v = added(base + i, i, first);
            floats.at[base + i] = NORM ? v * second * w2.at[i] : v;
        }
    }
    if ((FORMS & BYTES) != 0) {
        uint groups = width / 32;
        for (uint g = gl_LocalInvocationIndex; g < groups; g += gl_WorkGroupSize.x) {
            vec4 values[8];
            [[unroll]] for (uint j = 0; j < 8; ++j) {
                [[unroll]] for (uint k = 0; k < 4; ++k) {
                    uint i = 32 * g + 4 * j + k;
                    float v = added(base + i, i, first);
                    values[j][k] = NORM ? v * second * w2.at[i] : v;
                }
            }
            store_group(quants, scales, row * groups + g, values);
        }
    }
    if ((FORMS & HALVES) != 0) {
        // Scaled so that the largest is 256: halves hold what is 2^24 times smaller, and sums of products stay small.
        float largest = 0.0;
        for (uint i = gl_LocalInvocationIndex; i < width; i += gl_WorkGroupSize.x) {
            float v = added(base + i, i, first);
            v = NORM ? v * second * w2.at[i] : v;
            // What is not finite counts as the largest, and makes the whole row not finite.
            largest = max(largest, isnan(v) ? 1.0 / 0.0 : abs(v));
        }
        largest = workgroup_max(largest);
        float factor = largest > 0.0 ? 256.0 / largest : 0.0;
        for (uint i = 2 * gl_LocalInvocationIndex; i < width; i += 2 * gl_WorkGroupSize.x) {
            vec2 v = vec2(added(base + i, i, first), added(base + i + 1, i + 1, first));
            if (NORM) {
                v *= second * vec2(w2.at[i], w2.at[i + 1]);
            }
            quants.at[(base + i) / 2] = packHalf2x16(v * factor);
        }
        if (gl_LocalInvocationIndex == 0) {
            scales.at[row] = uvec2(floatBitsToUint(largest / 256.0), 0);
        }
    }
}
