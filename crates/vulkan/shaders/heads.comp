// What happens to a head of queries, keys or values between its product and attention: a norm, a rotation, and its
// place in the cache. Up to three parts side by side; one workgroup a head of a token.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "memory.glsl"
#include "reduce.glsl"
#include "rope.glsl"

layout(local_size_x = 64) in;

layout(constant_id = 0) const uint HEAD_DIM = 64;
// A bit for each part.
layout(constant_id = 1) const uint NORM = 0;
layout(constant_id = 2) const uint ROPE = 0;
// Parts that go to the cache; the others stay values.
layout(constant_id = 3) const uint CACHE = 0;
// Elements of the cache.
layout(constant_id = 4) const uint ELEMENT = 1;
layout(constant_id = 5) const bool NEIGHBOURS = false;
// Frequencies: pairs that turn.
layout(constant_id = 6) const uint PAIRS = 0;

#include "cache.glsl"

layout(push_constant, std430) uniform Push {
    ReadF source[3];
    ReadF weight[3];
    WriteU target[3];
    ReadF frequencies;
    ReadU positions;
    // Token by token, where it lies in the cache: block * BLOCK_TOKENS + slot.
    ReadU places;
    uint heads[3];
    float eps;
    float magnitude;
};

shared float head[HEAD_DIM + 1];

void main() {
    uint token = gl_WorkGroupID.y;
    uint part = 0, index = gl_WorkGroupID.x;
    if (index >= heads[0]) {
        index -= heads[0];
        part = 1;
        if (index >= heads[1]) {
            index -= heads[1];
            part = 2;
        }
    }
    uint base = (token * heads[part] + index) * HEAD_DIM;
    float square = 0.0;
    for (uint i = gl_LocalInvocationIndex; i < HEAD_DIM; i += gl_WorkGroupSize.x) {
        float v = source[part].at[base + i];
        head[i] = v;
        square += v * v;
    }
    if (((NORM >> part) & 1) != 0) {
        float inverse = 1.0 / sqrt(workgroup_sum(square) / float(HEAD_DIM) + eps);
        for (uint i = gl_LocalInvocationIndex; i < HEAD_DIM; i += gl_WorkGroupSize.x) {
            head[i] *= inverse * weight[part].at[i];
        }
    }
    barrier();
    if (((ROPE >> part) & 1) != 0) {
        float position = float(positions.at[token]);
        for (uint i = gl_LocalInvocationIndex; i < PAIRS; i += gl_WorkGroupSize.x) {
            vec2 cs = cos_sin(position * frequencies.at[i]) * magnitude;
            uint a = NEIGHBOURS ? 2 * i : i;
            uint b = NEIGHBOURS ? 2 * i + 1 : i + PAIRS;
            float x = head[a], y = head[b];
            head[a] = x * cs.x - y * cs.y;
            head[b] = x * cs.y + y * cs.x;
        }
        barrier();
    }
    if (((CACHE >> part) & 1) != 0) {
        uint place = places.at[token];
        uint of = place / BLOCK_TOKENS * heads[part] + index;
        if (ELEMENT == CACHE_BYTES) {
            // Whole groups, though the last may be shorter.
            for (uint w = gl_LocalInvocationIndex; w < SCALES * 8; w += gl_WorkGroupSize.x) {
                bool there = 4 * w < HEAD_DIM;
                vec4 v = vec4(0.0);
                if (there) {
                    v = vec4(head[4 * w], head[4 * w + 1], head[4 * w + 2], head[4 * w + 3]);
                }
                uint scale;
                uint bytes = round_group(v, scale);
                if (there) {
                    store_group(target[part], of, place % BLOCK_TOKENS, w, bytes, scale);
                }
            }
            return;
        }
        base = (of * BLOCK_TOKENS + place % BLOCK_TOKENS) * HEAD_DIM;
        if (ELEMENT == CACHE_HALVES) {
            for (uint i = gl_LocalInvocationIndex; i < HEAD_DIM / 2; i += gl_WorkGroupSize.x) {
                target[part].at[base / 2 + i] = packHalf2x16(vec2(head[2 * i], head[2 * i + 1]));
            }
            return;
        }
    }
    for (uint i = gl_LocalInvocationIndex; i < HEAD_DIM; i += gl_WorkGroupSize.x) {
        target[part].at[base + i] = floatBitsToUint(head[i]);
    }
}
