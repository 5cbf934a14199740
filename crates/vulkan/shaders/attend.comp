// A token of attention in decoding, from what the products made of it to what the next product reads: norms of heads,
// rotation, the cache, attention over the paged cache, and the join of its shares. One row a sequence.
//
// A workgroup takes the query heads of a sequence that share a KV head, up to QUERIES, and a share of the keys they see.
// A key is read by neighbouring invocations, eight elements each; the subgroups of the workgroup take different keys and
// carry sums of their own under a running maximum (Milakov and Gimelshein 2018, arXiv:1805.02867). The key and the value
// of the row itself are not read from the cache: the workgroup with the last share makes them and writes them there.
// Where there are several shares, the workgroup that ends last joins them.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "memory.glsl"
#include "fragments.glsl"
#include "activation.glsl"
#include "rope.glsl"
#include "quantise.glsl"
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require

layout(local_size_x_id = 0) in;

layout(constant_id = 1) const uint HEAD_DIM = 64;
layout(constant_id = 2) const uint QUERIES = 1;
// Query heads that share a KV head.
layout(constant_id = 3) const uint GROUP = 1;
layout(constant_id = 4) const uint SUBGROUPS = 4;
// Elements of the cache.
layout(constant_id = 5) const uint ELEMENT = 1;
layout(constant_id = 6) const bool CAPPED = false;
// Keys that an invocation loads before it uses the first.
layout(constant_id = 7) const uint AHEAD = 1;
layout(constant_id = 8) const bool SPLIT = false;
// Bits for queries and keys: whether their heads have norms, and whether they turn.
layout(constant_id = 9) const uint NORM = 0;
layout(constant_id = 10) const uint ROPE = 0;
layout(constant_id = 11) const bool NEIGHBOURS = false;
// Frequencies: pairs that turn.
layout(constant_id = 12) const uint PAIRS = 0;
layout(constant_id = 13) const float EPS = 0.0;
layout(constant_id = 14) const float MAGNITUDE = 1.0;
layout(constant_id = 15) const float SCALE = 1.0;
layout(constant_id = 16) const float CAP = 1.0;
// The result: floats, bytes in groups of 32, or halves in the order of fragments. Values of the cache fit in halves without
// a scale of their own, and the result is between the least and the largest of them, so it has none either.
layout(constant_id = 17) const uint FORM = 1;
const uint FLOATS = 1, BYTES = 2, FRAGMENTS = 8;

#include "cache.glsl"

const uint LANES = gl_WorkGroupSize.x / SUBGROUPS;
// Words of eight elements of a head, invocations that read a key side by side, and words each of them reads.
const uint WORDS = HEAD_DIM / 8;
const uint SIDE_WANTED = WORDS > 16 ? 32 : WORDS > 8 ? 16 : WORDS > 4 ? 8 : 4;
const uint SIDE = SIDE_WANTED < LANES ? SIDE_WANTED : LANES;
const uint EACH = (WORDS + SIDE - 1) / SIDE;
const uint KEYS = LANES / SIDE;

layout(buffer_reference, std430, buffer_reference_align = 16) coherent buffer SharedF4 { vec4 at[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) coherent buffer SharedU { uint at[]; };

layout(push_constant, std430) uniform Push {
    // Queries, keys and values as the products made them.
    ReadF source[3];
    // Norms of queries and keys.
    ReadF weight[2];
    ReadF frequencies;
    ReadU positions;
    WriteU keys;
    WriteU values;
    // (row, 1, token of the row, where its block table begins)
    ReadU4 tiles;
    ReadU tables;
    // How many shares of a tile are done; `PARTIAL` words on, share by share and query by query, in words of four: HEAD_DIM
    // sums, and a word with the maximum and the sum of the weights.
    SharedU partial;
    // Floats, or bytes or halves with their scales.
    WriteU result;
    WriteU2 scales;
    uint kv_heads;
    // Tokens a query sees, itself included; 0 where it sees all.
    uint window;
    uint splits;
};

const uint PARTIAL = 256;
// Shares of a tile at most.
const uint SHARES = 32;
const uint FOURS = HEAD_DIM / 4;
// Shares loaded before the first is used.
const uint TOGETHER = AHEAD * 2;

// The heads of the row: queries, then key and value; later the sums of subgroups, and the result.
shared float row[(QUERIES + 2) * HEAD_DIM];
shared vec4 gathered[SUBGROUPS * FOURS];
shared vec2 stats[SUBGROUPS];
shared vec2 share_stats[SPLIT ? QUERIES * SHARES : 1];
shared uint finished;

vec4 query[QUERIES * EACH * 2];
vec4 acc[QUERIES * EACH * 2];
float largest[QUERIES], sum[QUERIES];
const uint BOTH = ELEMENT == CACHE_FLOATS ? 2 : 1;
uvec4 loaded_keys[AHEAD * EACH * BOTH];
uvec4 loaded_values[AHEAD * EACH * BOTH];

void row4(uint at, vec4 v) {
    [[unroll]] for (uint k = 0; k < 4; ++k) {
        row[4 * at + k] = v[k];
    }
}

// A head into shared memory, by one subgroup.
void make_head(uint part, uint base, uint to, float position) {
    float square = 0.0;
    for (uint i = gl_SubgroupInvocationID; i < HEAD_DIM; i += LANES) {
        float v = source[part].at[base + i];
        row[to + i] = v;
        square += v * v;
    }
    if (((NORM >> part) & 1) != 0) {
        float inverse = 1.0 / sqrt(subgroupAdd(square) / float(HEAD_DIM) + EPS);
        for (uint i = gl_SubgroupInvocationID; i < HEAD_DIM; i += LANES) {
            row[to + i] *= inverse * weight[min(part, 1)].at[i];
        }
    }
    subgroupBarrier();
    if (((ROPE >> part) & 1) != 0) {
        for (uint i = gl_SubgroupInvocationID; i < PAIRS; i += LANES) {
            vec2 cs = cos_sin(position * frequencies.at[i]) * MAGNITUDE;
            uint a = NEIGHBOURS ? 2 * i : i;
            uint b = NEIGHBOURS ? 2 * i + 1 : i + PAIRS;
            float x = row[to + a], y = row[to + b];
            row[to + a] = x * cs.x - y * cs.y;
            row[to + b] = x * cs.y + y * cs.x;
        }
        subgroupBarrier();
    }
}

// Eight elements of a row of shared memory, from word `w` on; as the cache would hold them where it holds halves.
void from_row(uint at, uint w, bool rounded, out vec4 low, out vec4 high) {
    [[unroll]] for (uint k = 0; k < 4; ++k) {
        low[k] = w < WORDS ? row[at + 8 * w + k] : 0.0;
        high[k] = w < WORDS ? row[at + 8 * w + 4 + k] : 0.0;
    }
    if (rounded && ELEMENT == CACHE_HALVES) {
        low = vec4(unpackHalf2x16(packHalf2x16(low.xy)), unpackHalf2x16(packHalf2x16(low.zw)));
        high = vec4(unpackHalf2x16(packHalf2x16(high.xy)), unpackHalf2x16(packHalf2x16(high.zw)));
    }
}

float over_side(float x) {
    [[unroll]] for (uint step = 1; step < SIDE; step *= 2) {
        x += subgroupShuffleXor(x, step);
    }
    return x;
}

float capped(float score) {
    return CAPPED ? CAP * tanh_of(score / CAP) : score;
}

// Loads keys `from + u * stride`, for u below AHEAD, and their values; the last before `end` in place of those beyond.
void load(uint from, uint stride, uint end, uint kv_head, uint table) {
    uint lane = gl_SubgroupInvocationID % SIDE;
    [[unroll]] for (uint u = 0; u < AHEAD; ++u) {
        uint token = min(from + u * stride, end - 1);
        uint head = tables.at[table + token / BLOCK_TOKENS] * kv_heads + kv_head;
        [[unroll]] for (uint e = 0; e < EACH; ++e) {
            uint w = min(lane + e * SIDE, WORDS - 1), at = (u * EACH + e) * BOTH;
            uvec4 rest;
            loaded_keys[at] = cached(ReadU4(keys), head, token % BLOCK_TOKENS, w, rest);
            if (BOTH == 2) {
                loaded_keys[at + 1] = rest;
            }
            loaded_values[at] = cached(ReadU4(values), head, token % BLOCK_TOKENS, w, rest);
            if (BOTH == 2) {
                loaded_values[at + 1] = rest;
            }
        }
    }
}

// Attends to what was loaded, as far as it comes before `end`.
void attend(uint from, uint stride, uint end) {
    uint lane = gl_SubgroupInvocationID % SIDE;
    [[unroll]] for (uint i = 0; i < QUERIES; ++i) {
        float scores[AHEAD];
        float top = largest[i];
        [[unroll]] for (uint u = 0; u < AHEAD; ++u) {
            float score = 0.0;
            [[unroll]] for (uint e = 0; e < EACH; ++e) {
                vec4 low, high;
                uint at = (u * EACH + e) * BOTH;
                widen(loaded_keys[at], loaded_keys[at + BOTH - 1], low, high);
                // Queries are zero beyond the head, but what lies there may be no number.
                float product = dot(query[(i * EACH + e) * 2], low) + dot(query[(i * EACH + e) * 2 + 1], high);
                score += EACH * SIDE == WORDS || lane + e * SIDE < WORDS ? product : 0.0;
            }
            scores[u] = capped(over_side(score));
            top = from + u * stride < end ? max(top, scores[u]) : top;
        }
        float shrink = exp(largest[i] - top);
        largest[i] = top;
        sum[i] *= shrink;
        [[unroll]] for (uint e = 0; e < EACH * 2; ++e) {
            acc[i * EACH * 2 + e] *= shrink;
        }
        [[unroll]] for (uint u = 0; u < AHEAD; ++u) {
            if (from + u * stride < end) {
                float weight_of = exp(scores[u] - top);
                sum[i] += weight_of;
                [[unroll]] for (uint e = 0; e < EACH; ++e) {
                    vec4 low, high;
                    uint at = (u * EACH + e) * BOTH;
                    widen(loaded_values[at], loaded_values[at + BOTH - 1], low, high);
                    acc[(i * EACH + e) * 2] += weight_of * low;
                    acc[(i * EACH + e) * 2 + 1] += weight_of * high;
                }
            }
        }
    }
}

// The row's own key and value, which lie in shared memory.
void attend_own(uint key_at, uint value_at) {
    uint lane = gl_SubgroupInvocationID % SIDE;
    [[unroll]] for (uint i = 0; i < QUERIES; ++i) {
        float score = 0.0;
        [[unroll]] for (uint e = 0; e < EACH; ++e) {
            vec4 low, high;
            from_row(key_at, lane + e * SIDE, true, low, high);
            score += dot(query[(i * EACH + e) * 2], low) + dot(query[(i * EACH + e) * 2 + 1], high);
        }
        score = capped(over_side(score));
        // One group of invocations of the subgroup counts it.
        if (gl_SubgroupInvocationID < SIDE) {
            float top = max(largest[i], score);
            float shrink = exp(largest[i] - top), weight_of = exp(score - top);
            largest[i] = top;
            sum[i] = sum[i] * shrink + weight_of;
            [[unroll]] for (uint e = 0; e < EACH; ++e) {
                vec4 low, high;
                from_row(value_at, lane + e * SIDE, true, low, high);
                acc[(i * EACH + e) * 2] = acc[(i * EACH + e) * 2] * shrink + weight_of * low;
                acc[(i * EACH + e) * 2 + 1] = acc[(i * EACH + e) * 2 + 1] * shrink + weight_of * high;
            }
        }
    }
}

// A head of the row into the cache, where this workgroup is the one that `writes` it. Where that holds bytes, the row is
// afterwards as they have it.
void keep(WriteU cache, uint at, uint head, uint token, bool writes) {
    if (ELEMENT == CACHE_BYTES) {
        // Whole groups, though the last may be shorter.
        for (uint w = gl_SubgroupInvocationID; w < SCALES * 8; w += LANES) {
            bool there = 4 * w < HEAD_DIM;
            vec4 v = vec4(0.0);
            if (there) {
                v = vec4(row[at + 4 * w], row[at + 4 * w + 1], row[at + 4 * w + 2], row[at + 4 * w + 3]);
            }
            uint scale;
            uint bytes = round_group(v, scale);
            if (there) {
                if (writes) {
                    store_group(cache, head, token, w, bytes, scale);
                }
                row4(at / 4 + w, unpackHalf2x16(scale).x * of_bytes(bytes));
            }
        }
    } else if (writes) {
        uint base = (head * BLOCK_TOKENS + token) * HEAD_DIM;
        for (uint i = gl_SubgroupInvocationID; i < (ELEMENT == CACHE_HALVES ? HEAD_DIM / 2 : HEAD_DIM); i += LANES) {
            if (ELEMENT == CACHE_HALVES) {
                cache.at[base / 2 + i] = packHalf2x16(vec2(row[at + 2 * i], row[at + 2 * i + 1]));
            } else {
                cache.at[base + i] = floatBitsToUint(row[at + i]);
            }
        }
    }
}

void main() {
    uvec4 tile = tiles.at[gl_WorkGroupID.x];
    uint tiles_a_kv_head = (GROUP + QUERIES - 1) / QUERIES;
    uint kv_head = gl_WorkGroupID.y / tiles_a_kv_head;
    uint first_head = gl_WorkGroupID.y % tiles_a_kv_head * QUERIES;
    uint there = min(QUERIES, GROUP - first_head);
    bool writes = first_head == 0;
    first_head += kv_head * GROUP;
    uint heads = kv_heads * GROUP, last = tile.z;
    bool owns = gl_WorkGroupID.z + 1 == splits;

    // The keys before the row's own, divided among the shares.
    uint first = window != 0 && last + 1 > window ? last + 1 - window : 0;
    uint share = (last - first + splits - 1) / splits;
    uint begin = first + gl_WorkGroupID.z * share, end = min(begin + share, last);
    uint stride = SUBGROUPS * KEYS;
    uint from = begin + gl_SubgroupID * KEYS, key = gl_SubgroupInvocationID / SIDE;
    if (from < end) {
        // On their way while the heads are made.
        load(from + key, stride, end, kv_head, tile.w);
    }

    float position = float(positions.at[tile.x]);
    for (uint i = gl_SubgroupID; i < QUERIES + 2; i += SUBGROUPS) {
        if (i < QUERIES) {
            make_head(0, (tile.x * heads + first_head + min(i, there - 1)) * HEAD_DIM, i * HEAD_DIM, position);
        } else if (owns) {
            make_head(i - QUERIES + 1, (tile.x * kv_heads + kv_head) * HEAD_DIM, i * HEAD_DIM, position);
            uint head = tables.at[tile.w + last / BLOCK_TOKENS] * kv_heads + kv_head;
            if (i == QUERIES) {
                keep(keys, i * HEAD_DIM, head, last % BLOCK_TOKENS, writes);
            } else {
                keep(values, i * HEAD_DIM, head, last % BLOCK_TOKENS, writes);
            }
        }
    }
    barrier();
    uint lane = gl_SubgroupInvocationID % SIDE;
    [[unroll]] for (uint i = 0; i < QUERIES; ++i) {
        largest[i] = -1e30;
        sum[i] = 0.0;
        [[unroll]] for (uint e = 0; e < EACH; ++e) {
            vec4 low, high;
            from_row(i * HEAD_DIM, lane + e * SIDE, false, low, high);
            query[(i * EACH + e) * 2] = low * SCALE;
            query[(i * EACH + e) * 2 + 1] = high * SCALE;
            acc[(i * EACH + e) * 2] = vec4(0.0);
            acc[(i * EACH + e) * 2 + 1] = vec4(0.0);
        }
    }
    for (; from < end; from += AHEAD * stride) {
        attend(from + key, stride, end);
        if (from + AHEAD * stride < end) {
            load(from + AHEAD * stride + key, stride, end, kv_head, tile.w);
        }
    }
    if (owns && gl_SubgroupID == 0) {
        attend_own(QUERIES * HEAD_DIM, (QUERIES + 1) * HEAD_DIM);
    }
    // Groups of invocations of the subgroup join, and then subgroups, query by query.
    uint tile_index = gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x;
    SharedF4 shares = SharedF4(partial);
    [[unroll]] for (uint i = 0; i < QUERIES; ++i) {
        [[unroll]] for (uint step = SIDE; step < LANES; step *= 2) {
            float top = max(largest[i], subgroupShuffleXor(largest[i], step));
            float shrink = exp(largest[i] - top);
            largest[i] = top;
            sum[i] *= shrink;
            sum[i] += subgroupShuffleXor(sum[i], step);
            [[unroll]] for (uint e = 0; e < EACH * 2; ++e) {
                vec4 own = acc[i * EACH * 2 + e] * shrink;
                acc[i * EACH * 2 + e] = own + subgroupShuffleXor(own, step);
            }
        }
        barrier();
        if (gl_SubgroupInvocationID < SIDE) {
            [[unroll]] for (uint e = 0; e < EACH; ++e) {
                uint w = lane + e * SIDE;
                if (EACH * SIDE == WORDS || w < WORDS) {
                    gathered[gl_SubgroupID * FOURS + 2 * w] = acc[(i * EACH + e) * 2];
                    gathered[gl_SubgroupID * FOURS + 2 * w + 1] = acc[(i * EACH + e) * 2 + 1];
                }
            }
            if (lane == 0) {
                stats[gl_SubgroupID] = vec2(largest[i], sum[i]);
            }
        }
        barrier();
        float top = stats[0].x;
        [[unroll]] for (uint s = 1; s < SUBGROUPS; ++s) {
            top = max(top, stats[s].x);
        }
        float shrinks[SUBGROUPS];
        float weights = 0.0;
        [[unroll]] for (uint s = 0; s < SUBGROUPS; ++s) {
            shrinks[s] = exp(stats[s].x - top);
            weights += shrinks[s] * stats[s].y;
        }
        uint base = PARTIAL + ((tile_index * splits + gl_WorkGroupID.z) * QUERIES + i) * (FOURS + 1);
        for (uint f = gl_LocalInvocationIndex; f < FOURS; f += gl_WorkGroupSize.x) {
            vec4 total = vec4(0.0);
            [[unroll]] for (uint s = 0; s < SUBGROUPS; ++s) {
                total += shrinks[s] * gathered[s * FOURS + f];
            }
            if (SPLIT) {
                shares.at[base + f] = total;
            } else {
                row4(i * FOURS + f, total / weights);
            }
        }
        if (SPLIT && gl_LocalInvocationIndex == 0) {
            shares.at[base + FOURS] = vec4(top, weights, 0.0, 0.0);
        }
    }
    if (SPLIT) {
        memoryBarrierBuffer();
        barrier();
        if (gl_LocalInvocationIndex == 0) {
            finished = atomicAdd(partial.at[tile_index], 1);
        }
        barrier();
        if (finished + 1 != splits) {
            return;
        }
        memoryBarrierBuffer();
        if (gl_LocalInvocationIndex == 0) {
            // For the next dispatch.
            partial.at[tile_index] = 0;
        }
        uint base = PARTIAL + tile_index * splits * QUERIES * (FOURS + 1);
        for (uint at = gl_LocalInvocationIndex; at < splits * QUERIES; at += gl_WorkGroupSize.x) {
            share_stats[at] = shares.at[base + at * (FOURS + 1) + FOURS].xy;
        }
        barrier();
        for (uint at = gl_LocalInvocationIndex; at < QUERIES * FOURS; at += gl_WorkGroupSize.x) {
            uint i = at / FOURS;
            float top = -1e30;
            for (uint s = 0; s < splits; ++s) {
                top = max(top, share_stats[s * QUERIES + i].x);
            }
            vec4 total = vec4(0.0);
            float weights = 0.0;
            for (uint s = 0; s < splits; s += TOGETHER) {
                vec4 own[TOGETHER];
                [[unroll]] for (uint u = 0; u < TOGETHER; ++u) {
                    uint share_of = min(s + u, splits - 1);
                    own[u] = shares.at[base + (share_of * QUERIES + i) * (FOURS + 1) + at % FOURS];
                }
                [[unroll]] for (uint u = 0; u < TOGETHER; ++u) {
                    if (s + u < splits) {
                        vec2 stat = share_stats[(s + u) * QUERIES + i];
                        float shrink = exp(stat.x - top);
                        total += shrink * own[u];
                        weights += shrink * stat.y;
                    }
                }
            }
            row4(at, total / weights);
        }
    }
    barrier();
    uint out_base = (tile.x * heads + first_head) * HEAD_DIM;
    if (FORM == FRAGMENTS) {
        for (uint w = gl_LocalInvocationIndex; w < there * HEAD_DIM / 4; w += gl_WorkGroupSize.x) {
            vec4 v = vec4(row[4 * w], row[4 * w + 1], row[4 * w + 2], row[4 * w + 3]);
            uint word = first_head * (HEAD_DIM / 4) + w;
            WriteU2(result).at[fragment(tile.x, word, heads * HEAD_DIM)] = fragment_halves(v);
        }
        if (gl_WorkGroupID.y == 0 && gl_LocalInvocationIndex == 0) {
            scales.at[tile.x] = uvec2(floatBitsToUint(1.0), 0);
        }
    } else if (FORM == BYTES) {
        // Whole groups of eight invocations are inside or outside: a head is whole groups of 32 elements.
        for (uint w = gl_LocalInvocationIndex; w < there * HEAD_DIM / 4; w += gl_WorkGroupSize.x) {
            vec4 v = vec4(row[4 * w], row[4 * w + 1], row[4 * w + 2], row[4 * w + 3]);
            store_word(result, scales, out_base / 4 + w, v);
        }
    } else {
        for (uint d = gl_LocalInvocationIndex; d < there * HEAD_DIM; d += gl_WorkGroupSize.x) {
            result.at[out_base + d] = floatBitsToUint(row[d]);
        }
    }
}
