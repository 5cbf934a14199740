// Attention over the paged cache. A workgroup takes a tile: up to QUERIES queries (some tokens of a sequence, times some
// of the heads that share a KV head) and, of the keys they see, a share. Keys are met in chunks of one a invocation,
// counted from the first token of the sequence; sums are carried from chunk to chunk under a running maximum (Milakov
// and Gimelshein 2018, arXiv:1805.02867).
#version 460
#extension GL_GOOGLE_include_directive : require
#include "memory.glsl"
#include "activation.glsl"
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require

layout(local_size_x_id = 0) in;

layout(constant_id = 1) const uint HEAD_DIM = 64;
layout(constant_id = 2) const uint QUERIES = 8;
// Query heads of a tile, all of one KV head.
layout(constant_id = 3) const uint TILE_HEADS = 1;
// Query heads that share a KV head.
layout(constant_id = 4) const uint GROUP = 1;
// Elements of the cache.
layout(constant_id = 5) const uint ELEMENT = 1;
layout(constant_id = 6) const bool CAPPED = false;
// Loads of keys or values before the first is used.
layout(constant_id = 7) const uint AHEAD = 1;
// Whether the keys of a tile are divided among workgroups: then sums go to `partial`.
layout(constant_id = 8) const bool SPLIT = false;

#include "cache.glsl"

const uint WIDTH = gl_WorkGroupSize.x;
// Eight elements of a value an invocation; groups of invocations take different keys.
const uint EIGHTS = HEAD_DIM / 8;
const uint GROUPS = WIDTH / EIGHTS;

layout(push_constant, std430) uniform Push {
    ReadF4 q;
    ReadU4 keys;
    ReadU4 values;
    WriteF result;
    // (first row, rows, token of the first row, where its block table begins)
    ReadU4 tiles;
    ReadU tables;
    // A tile's query, share by share: HEAD_DIM sums, the maximum, and the sum of the weights.
    WriteF partial;
    uint heads;
    uint kv_heads;
    // Tokens a query sees, itself included; 0 where it sees all.
    uint window;
    uint splits;
    float scale;
    float cap;
    // Workgroups of the second dimension that other pieces of a dispatch have taken.
    layout(offset = 124) uint groups_before;
};

shared vec4 query[QUERIES * HEAD_DIM / 4];
shared float weight[QUERIES * WIDTH];
shared float most[QUERIES * 32];
shared vec4 gathered[2 * WIDTH];

float dot_key(uint i, vec4 low, vec4 high, uint d) {
    return dot(query[i * (HEAD_DIM / 4) + 2 * d], low) + dot(query[i * (HEAD_DIM / 4) + 2 * d + 1], high);
}

void main() {
    uvec4 tile = tiles.at[gl_WorkGroupID.x];
    uint tiles_a_kv_head = (GROUP + TILE_HEADS - 1) / TILE_HEADS;
    uint kv_head = (gl_WorkGroupID.y + groups_before) / tiles_a_kv_head;
    uint first_head = (gl_WorkGroupID.y + groups_before) % tiles_a_kv_head * TILE_HEADS;
    uint tile_heads = min(TILE_HEADS, GROUP - first_head);
    first_head += kv_head * GROUP;
    // Query i is row i / TILE_HEADS of the tile, head i % TILE_HEADS.
    for (uint i = gl_LocalInvocationIndex; i < QUERIES * HEAD_DIM / 4; i += WIDTH) {
        uint one = i / (HEAD_DIM / 4);
        uint row = one / TILE_HEADS, head = one % TILE_HEADS;
        bool there = row < tile.y && head < tile_heads;
        uint at = ((tile.x + row) * heads + first_head + head) * (HEAD_DIM / 4) + i % (HEAD_DIM / 4);
        query[i] = there ? q.at[at] * scale : vec4(0.0);
    }
    uint last = tile.z + tile.y - 1;
    uint first = window != 0 && tile.z + 1 > window ? tile.z + 1 - window : 0;
    uint first_chunk = first / WIDTH, chunks = last / WIDTH + 1 - first_chunk;
    uint share = (chunks + splits - 1) / splits;
    uint begin = first_chunk + gl_WorkGroupID.z * share;
    uint end = min(begin + share, first_chunk + chunks);

    float largest[QUERIES], sum[QUERIES];
    vec4 acc[2 * QUERIES];
    [[unroll]] for (uint i = 0; i < QUERIES; ++i) {
        largest[i] = -1e30;
        sum[i] = 0.0;
        acc[2 * i] = acc[2 * i + 1] = vec4(0.0);
    }
    uint group = gl_LocalInvocationIndex / EIGHTS, eight = gl_LocalInvocationIndex % EIGHTS;
    barrier();

    for (uint chunk = begin; chunk < end; ++chunk) {
        uint token = chunk * WIDTH + gl_LocalInvocationIndex;
        bool seen = token >= first && token <= last;
        float score[QUERIES];
        [[unroll]] for (uint i = 0; i < QUERIES; ++i) {
            score[i] = 0.0;
        }
        if (seen) {
            uint head = tables.at[tile.w + token / BLOCK_TOKENS] * kv_heads + kv_head;
            for (uint d = 0; d < HEAD_DIM / 8; d += AHEAD) {
                uvec4 k[AHEAD], rest[AHEAD];
                [[unroll]] for (uint u = 0; u < AHEAD; ++u) {
                    k[u] = cached(keys, head, token % BLOCK_TOKENS, min(d + u, HEAD_DIM / 8 - 1), rest[u]);
                }
                [[unroll]] for (uint u = 0; u < AHEAD; ++u) {
                    if (d + u < HEAD_DIM / 8) {
                        vec4 low, high;
                        widen(k[u], rest[u], low, high);
                        [[unroll]] for (uint i = 0; i < QUERIES; ++i) {
                            score[i] += dot_key(i, low, high, d + u);
                        }
                    }
                }
            }
        }
        [[unroll]] for (uint i = 0; i < QUERIES; ++i) {
            if (CAPPED) {
                score[i] = cap * tanh_of(score[i] / cap);
            }
            uint own = tile.z + i / TILE_HEADS;
            bool mine = seen && token <= own && (window == 0 || token + window > own);
            score[i] = mine ? score[i] : -1e30;
            float top = subgroupMax(score[i]);
            if (subgroupElect()) {
                most[i * 32 + gl_SubgroupID] = top;
            }
        }
        barrier();
        [[unroll]] for (uint i = 0; i < QUERIES; ++i) {
            float top = largest[i];
            for (uint s = 0; s < gl_NumSubgroups; ++s) {
                top = max(top, most[i * 32 + s]);
            }
            float shrink = exp(largest[i] - top);
            largest[i] = top;
            sum[i] *= shrink;
            acc[2 * i] *= shrink;
            acc[2 * i + 1] *= shrink;
            // Not by the order of numbers, so that a score of NaN stays one.
            weight[i * WIDTH + gl_LocalInvocationIndex] = score[i] == -1e30 ? 0.0 : exp(score[i] - top);
        }
        barrier();
        uint from = max(chunk * WIDTH, first) - chunk * WIDTH;
        uint to = min(chunk * WIDTH + WIDTH - 1, last) - chunk * WIDTH;
        if (group < GROUPS) {
            for (uint t = from + group; t <= to; t += AHEAD * GROUPS) {
                uvec4 v[AHEAD], rest[AHEAD];
                [[unroll]] for (uint u = 0; u < AHEAD; ++u) {
                    uint at = chunk * WIDTH + min(t + u * GROUPS, to);
                    uint head = tables.at[tile.w + at / BLOCK_TOKENS] * kv_heads + kv_head;
                    v[u] = cached(values, head, at % BLOCK_TOKENS, eight, rest[u]);
                }
                [[unroll]] for (uint u = 0; u < AHEAD; ++u) {
                    bool there = t + u * GROUPS <= to;
                    vec4 low, high;
                    widen(v[u], rest[u], low, high);
                    [[unroll]] for (uint i = 0; i < QUERIES; ++i) {
                        float w = there ? weight[i * WIDTH + min(t + u * GROUPS, to)] : 0.0;
                        sum[i] += w;
                        // A key that this query does not see is left out, for it may hold what is not finite.
                        acc[2 * i] += w == 0.0 ? vec4(0.0) : w * low;
                        acc[2 * i + 1] += w == 0.0 ? vec4(0.0) : w * high;
                    }
                }
            }
        }
        barrier();
    }

    [[unroll]] for (uint i = 0; i < QUERIES; ++i) {
        uint row = i / TILE_HEADS, head = i % TILE_HEADS;
        bool there = row < tile.y && head < tile_heads;
        barrier();
        gathered[2 * gl_LocalInvocationIndex] = acc[2 * i];
        gathered[2 * gl_LocalInvocationIndex + 1] = acc[2 * i + 1];
        weight[gl_LocalInvocationIndex] = sum[i];
        barrier();
        if (there && group == 0) {
            vec4 low = acc[2 * i], high = acc[2 * i + 1];
            float weights = sum[i];
            for (uint g = 1; g < GROUPS; ++g) {
                low += gathered[2 * (g * EIGHTS + eight)];
                high += gathered[2 * (g * EIGHTS + eight) + 1];
                weights += weight[g * EIGHTS + eight];
            }
            uint entry = (tile.x + row) * heads + first_head + head;
            if (SPLIT) {
                uint base = (entry * splits + gl_WorkGroupID.z) * (HEAD_DIM + 2);
                [[unroll]] for (uint k = 0; k < 4; ++k) {
                    partial.at[base + 8 * eight + k] = low[k];
                    partial.at[base + 8 * eight + 4 + k] = high[k];
                }
                if (eight == 0) {
                    partial.at[base + HEAD_DIM] = largest[i];
                    partial.at[base + HEAD_DIM + 1] = weights;
                }
            } else {
                [[unroll]] for (uint k = 0; k < 4; ++k) {
                    result.at[entry * HEAD_DIM + 8 * eight + k] = low[k] / weights;
                    result.at[entry * HEAD_DIM + 8 * eight + 4 + k] = high[k] / weights;
                }
            }
        }
    }
}
