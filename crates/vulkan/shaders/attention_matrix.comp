// Attention of prompts on matrix units: halves in, floats summed. A workgroup takes a tile, up to SUBGROUPS * ROWS
// queries (some tokens of a sequence, times some of the heads that share a KV head), and of the keys they see a share. A
// subgroup has ROWS queries of its own; a block of the cache at a time goes through shared memory for all of them. Sums
// are carried from block to block under a running maximum (Milakov and Gimelshein 2018, arXiv:1805.02867).
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_shuffle : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#include "memory.glsl"
#include "activation.glsl"

layout(local_size_x_id = 0) in;

layout(constant_id = 1) const uint HEAD_DIM = 64;
// Matrices of 16 queries that a subgroup has.
layout(constant_id = 2) const uint MATRICES = 1;
// Query heads of a tile, all of one KV head.
layout(constant_id = 3) const uint TILE_HEADS = 1;
// Query heads that share a KV head.
layout(constant_id = 4) const uint GROUP = 1;
// Elements of the cache: halves or bytes.
layout(constant_id = 5) const uint ELEMENT = 1;
layout(constant_id = 6) const bool CAPPED = false;

#include "cache.glsl"

const uint SIDE = 16;
const uint SUBGROUPS = 4;
const uint WIDTH = gl_WorkGroupSize.x;
const uint LANES = WIDTH / SUBGROUPS;
const uint ROWS = SIDE * MATRICES;
// A block of the cache.
const uint KEYS = BLOCK_TOKENS;
const uint WORDS = HEAD_DIM / 8;
const uint DEPTH = HEAD_DIM / SIDE;
// Words of eight halves, or of four floats, from row to row in shared memory: one more than a row has, against bank
// conflicts.
const uint PITCH = WORDS + 1;
const uint SCORES_PITCH = KEYS / 4 + 1;
const uint EACH = (KEYS * WORDS + WIDTH - 1) / WIDTH;
// Invocations that share a row of scores, and scores of each.
const uint SHARERS = LANES / SIDE;
const uint OWN = KEYS / SHARERS;

layout(push_constant, std430) uniform Push {
    ReadF4 q;
    ReadU4 keys;
    ReadU4 values;
    WriteF result;
    // (first row, rows, token of the first row, where its block table begins)
    ReadU4 tiles;
    ReadU tables;
    // Where the keys of a tile are divided among workgroups, by query and share: HEAD_DIM sums, the maximum, and the sum
    // of the weights.
    WriteF partial;
    uint heads;
    uint kv_heads;
    // Tokens a query sees, itself included; 0 where it sees all.
    uint window;
    // Workgroups that the keys of a tile are divided among.
    uint splits;
    float scale;
    float cap;
    // Workgroups of the second dimension that other pieces of a dispatch have taken.
    layout(offset = 124) uint groups_before;
};

// Keys, then values; before them the queries.
shared uvec4 staged[2 * KEYS * PITCH];
// Of each subgroup: scores as floats, then their weights as halves; at the end a matrix of the result.
shared uvec4 scores[SUBGROUPS * ROWS * SCORES_PITCH];
// By query, what multiplies its sums; at the end its maximum, and the sum of its weights.
shared float factors[SUBGROUPS * ROWS];
shared float weights[SUBGROUPS * ROWS];

coopmat<float16_t, gl_ScopeSubgroup, SIDE, SIDE, gl_MatrixUseA> query[MATRICES * DEPTH];
coopmat<float, gl_ScopeSubgroup, SIDE, SIDE, gl_MatrixUseAccumulator> sums[MATRICES * DEPTH];
float largest[MATRICES], sum[MATRICES];

// Query `i` of the tile is token i / TILE_HEADS, head i % TILE_HEADS; its number among all queries of the step.
uint entry_of(uvec4 tile, uint first_head, uint i) {
    return (tile.x + i / TILE_HEADS) * heads + first_head + i % TILE_HEADS;
}

void load_queries(uvec4 tile, uint first_head, uint tile_heads) {
    [[unroll]] for (uint m = 0; m < MATRICES; ++m) {
        barrier();
        for (uint i = gl_LocalInvocationIndex; i < SUBGROUPS * SIDE * WORDS; i += WIDTH) {
            uint row = i / WORDS, w = i % WORDS;
            uint one = (row / SIDE * MATRICES + m) * SIDE + row % SIDE;
            vec4 low = vec4(0.0), high = vec4(0.0);
            if (one / TILE_HEADS < tile.y && one % TILE_HEADS < tile_heads) {
                uint at = entry_of(tile, first_head, one) * (HEAD_DIM / 4) + 2 * w;
                low = q.at[at] * scale;
                high = q.at[at + 1] * scale;
            }
            staged[row * PITCH + w] = uvec4(packHalf2x16(low.xy), packHalf2x16(low.zw), packHalf2x16(high.xy),
                packHalf2x16(high.zw));
        }
        barrier();
        [[unroll]] for (uint d = 0; d < DEPTH; ++d) {
            coopMatLoad(query[m * DEPTH + d], staged, gl_SubgroupID * SIDE * PITCH + 2 * d, PITCH,
                gl_CooperativeMatrixLayoutRowMajor);
        }
    }
}

// A word of the cache as halves.
uvec4 in_halves(uvec4 word) {
    if (ELEMENT == CACHE_HALVES) {
        return word;
    }
    vec4 low, high;
    widen(word, uvec4(0), low, high);
    return uvec4(packHalf2x16(low.xy), packHalf2x16(low.zw), packHalf2x16(high.xy), packHalf2x16(high.zw));
}

// A block of keys and values into shared memory. Values that the tile does not see are zero there, for they may hold
// what is not finite; its scores of such keys count for nothing.
void load_block(uint block, uint kv_head, uint token, uint first, uint last) {
    uint head = block * kv_heads + kv_head;
    uvec4 k[EACH], v[EACH], none;
    [[unroll]] for (uint u = 0; u < EACH; ++u) {
        uint i = min(u * WIDTH + gl_LocalInvocationIndex, KEYS * WORDS - 1);
        k[u] = cached(keys, head, i / WORDS, i % WORDS, none);
        v[u] = cached(values, head, i / WORDS, i % WORDS, none);
    }
    barrier();
    [[unroll]] for (uint u = 0; u < EACH; ++u) {
        uint i = u * WIDTH + gl_LocalInvocationIndex;
        if (EACH * WIDTH == KEYS * WORDS || i < KEYS * WORDS) {
            uint key = token + i / WORDS;
            uint to = i / WORDS * PITCH + i % WORDS;
            staged[to] = in_halves(k[u]);
            staged[KEYS * PITCH + to] = key >= first && key <= last ? in_halves(v[u]) : uvec4(0);
        }
    }
    barrier();
}

// Scores of the subgroup's queries and the keys in shared memory, to shared memory.
void make_scores(uint base) {
    coopmat<float, gl_ScopeSubgroup, SIDE, SIDE, gl_MatrixUseAccumulator> products[MATRICES * 2];
    [[unroll]] for (uint i = 0; i < MATRICES * 2; ++i) {
        products[i] = coopmat<float, gl_ScopeSubgroup, SIDE, SIDE, gl_MatrixUseAccumulator>(0.0);
    }
    [[unroll]] for (uint d = 0; d < DEPTH; ++d) {
        [[unroll]] for (uint j = 0; j < 2; ++j) {
            coopmat<float16_t, gl_ScopeSubgroup, SIDE, SIDE, gl_MatrixUseB> key;
            coopMatLoad(key, staged, j * SIDE * PITCH + 2 * d, PITCH, gl_CooperativeMatrixLayoutColumnMajor);
            [[unroll]] for (uint m = 0; m < MATRICES; ++m) {
                products[2 * m + j] = coopMatMulAdd(query[m * DEPTH + d], key, products[2 * m + j]);
            }
        }
    }
    [[unroll]] for (uint i = 0; i < MATRICES * 2; ++i) {
        coopMatStore(products[i], scores, base + i / 2 * SIDE * SCORES_PITCH + i % 2 * (SIDE / 4), SCORES_PITCH,
            gl_CooperativeMatrixLayoutRowMajor);
    }
    subgroupBarrier();
}

float over_row(float x, bool is_sum) {
    [[unroll]] for (uint step = 1; step < SHARERS; step *= 2) {
        float other = subgroupShuffleXor(x, step);
        x = is_sum ? x + other : max(x, other);
    }
    return x;
}

// From scores to weights, in their place, and by what the sums so far are to be multiplied.
void weigh(uint base, uvec4 tile, uint token) {
    uint row = gl_SubgroupInvocationID / SHARERS, part = gl_SubgroupInvocationID % SHARERS;
    [[unroll]] for (uint m = 0; m < MATRICES; ++m) {
        uint one = gl_SubgroupID * ROWS + m * SIDE + row;
        uint own = tile.z + one / TILE_HEADS;
        uint at = base + (m * SIDE + row) * SCORES_PITCH;
        float score[OWN];
        float top = largest[m];
        [[unroll]] for (uint k = 0; k < OWN; ++k) {
            uint key = token + part * OWN + k;
            float s = uintBitsToFloat(scores[at + (part * OWN + k) / 4][k % 4]);
            s = CAPPED ? cap * tanh_of(s / cap) : s;
            bool mine = key <= own && (window == 0 || key + window > own);
            score[k] = mine ? s : -1e30;
            top = max(top, score[k]);
        }
        top = over_row(top, false);
        float shrink = exp(largest[m] - top);
        float total = 0.0;
        uint halves[OWN / 2];
        [[unroll]] for (uint k = 0; k < OWN; k += 2) {
            // Not by the order of numbers, so that a score of NaN stays one.
            vec2 w = vec2(score[k] == -1e30 ? 0.0 : exp(score[k] - top),
                score[k + 1] == -1e30 ? 0.0 : exp(score[k + 1] - top));
            halves[k / 2] = packHalf2x16(w);
            w = unpackHalf2x16(halves[k / 2]);
            total += w.x + w.y;
        }
        largest[m] = top;
        sum[m] = sum[m] * shrink + over_row(total, true);
        subgroupBarrier();
        [[unroll]] for (uint k = 0; k < OWN / 8; ++k) {
            scores[at + part * (OWN / 8) + k] =
                uvec4(halves[4 * k], halves[4 * k + 1], halves[4 * k + 2], halves[4 * k + 3]);
        }
        if (part == 0) {
            factors[one] = shrink;
        }
    }
    subgroupBarrier();
}

// Adds the values in shared memory, weighted.
void add_values(uint base) {
    coopmat<float16_t, gl_ScopeSubgroup, SIDE, SIDE, gl_MatrixUseA> weight[MATRICES * 2];
    [[unroll]] for (uint m = 0; m < MATRICES; ++m) {
        coopmat<float, gl_ScopeSubgroup, SIDE, SIDE, gl_MatrixUseAccumulator> factor;
        // All columns are the same.
        coopMatLoad(factor, factors, gl_SubgroupID * ROWS + m * SIDE, 0, gl_CooperativeMatrixLayoutColumnMajor);
        [[unroll]] for (uint d = 0; d < DEPTH; ++d) {
            sums[m * DEPTH + d] = sums[m * DEPTH + d] * factor;
        }
        [[unroll]] for (uint j = 0; j < 2; ++j) {
            coopMatLoad(weight[2 * m + j], scores, base + m * SIDE * SCORES_PITCH + 2 * j, SCORES_PITCH,
                gl_CooperativeMatrixLayoutRowMajor);
        }
    }
    [[unroll]] for (uint d = 0; d < DEPTH; ++d) {
        [[unroll]] for (uint j = 0; j < 2; ++j) {
            coopmat<float16_t, gl_ScopeSubgroup, SIDE, SIDE, gl_MatrixUseB> value;
            coopMatLoad(value, staged, (KEYS + j * SIDE) * PITCH + 2 * d, PITCH, gl_CooperativeMatrixLayoutRowMajor);
            [[unroll]] for (uint m = 0; m < MATRICES; ++m) {
                sums[m * DEPTH + d] = coopMatMulAdd(weight[2 * m + j], value, sums[m * DEPTH + d]);
            }
        }
    }
}

// Four elements of query `one`, from element `d` on.
void keep(uint entry, uint one, uint d, vec4 v) {
    if (splits > 1) {
        uint at = (entry * splits + gl_WorkGroupID.z) * (HEAD_DIM + 2) + d;
        [[unroll]] for (uint k = 0; k < 4; ++k) {
            partial.at[at + k] = v[k];
        }
    } else {
        WriteF4(result).at[(entry * HEAD_DIM + d) / 4] = v / weights[one];
    }
}

void keep_all(uint base, uvec4 tile, uint first_head, uint tile_heads) {
    [[unroll]] for (uint m = 0; m < MATRICES; ++m) {
        if (gl_SubgroupInvocationID % SHARERS == 0) {
            uint one = gl_SubgroupID * ROWS + m * SIDE + gl_SubgroupInvocationID / SHARERS;
            factors[one] = largest[m];
            weights[one] = sum[m];
        }
    }
    subgroupBarrier();
    [[unroll]] for (uint m = 0; m < MATRICES; ++m) {
        [[unroll]] for (uint d = 0; d < DEPTH; ++d) {
            coopMatStore(sums[m * DEPTH + d], scores, base, SIDE / 4, gl_CooperativeMatrixLayoutRowMajor);
            subgroupBarrier();
            [[unroll]] for (uint i = 0; i < SIDE * SIDE / 4; i += LANES) {
                uint word = i + gl_SubgroupInvocationID;
                uint one = gl_SubgroupID * ROWS + m * SIDE + word / 4;
                if (one / TILE_HEADS < tile.y && one % TILE_HEADS < tile_heads) {
                    uint entry = entry_of(tile, first_head, one);
                    keep(entry, one, d * SIDE + word % 4 * 4, uintBitsToFloat(scores[base + word]));
                    if (splits > 1 && d == 0 && word % 4 == 0) {
                        uint at = (entry * splits + gl_WorkGroupID.z) * (HEAD_DIM + 2) + HEAD_DIM;
                        partial.at[at] = factors[one];
                        partial.at[at + 1] = weights[one];
                    }
                }
            }
            subgroupBarrier();
        }
    }
}

void main() {
    // Later tokens see more keys: they begin first.
    uvec4 tile = tiles.at[gl_NumWorkGroups.x - 1 - gl_WorkGroupID.x];
    uint tiles_a_kv_head = (GROUP + TILE_HEADS - 1) / TILE_HEADS;
    uint kv_head = (gl_WorkGroupID.y + groups_before) / tiles_a_kv_head;
    uint first_head = (gl_WorkGroupID.y + groups_before) % tiles_a_kv_head * TILE_HEADS;
    uint tile_heads = min(TILE_HEADS, GROUP - first_head);
    first_head += kv_head * GROUP;
    uint last = tile.z + tile.y - 1;
    uint first = window != 0 && tile.z + 1 > window ? tile.z + 1 - window : 0;
    uint blocks = last / KEYS + 1 - first / KEYS;
    uint share = (blocks + splits - 1) / splits;
    uint begin = first / KEYS + gl_WorkGroupID.z * share;
    uint end = min(begin + share, last / KEYS + 1);
    uint base = gl_SubgroupID * ROWS * SCORES_PITCH;

    load_queries(tile, first_head, tile_heads);
    [[unroll]] for (uint m = 0; m < MATRICES; ++m) {
        largest[m] = -1e30;
        sum[m] = 0.0;
        [[unroll]] for (uint d = 0; d < DEPTH; ++d) {
            sums[m * DEPTH + d] = coopmat<float, gl_ScopeSubgroup, SIDE, SIDE, gl_MatrixUseAccumulator>(0.0);
        }
    }
    for (uint b = begin; b < end; ++b) {
        load_block(tables.at[tile.w + b], kv_head, b * KEYS, first, last);
        make_scores(base);
        weigh(base, tile, b * KEYS);
        add_values(base);
    }
    keep_all(base, tile, first_head, tile_heads);
}
