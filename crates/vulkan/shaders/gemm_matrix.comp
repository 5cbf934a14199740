// Products with many rows of activations on matrix units: halves in, floats summed. A tile is TILE_M rows of the weight
// by TILE_N rows of activations; the subgroups of the workgroup divide it into WARP_M by WARP_N, each made of matrices of
// M x N x K. A block of columns at a time goes through shared memory, two buffers in turn: while one is multiplied, the
// next is on its way from memory, and it is unpacked into the other.
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#include "memory.glsl"
#include "activation.glsl"
#include "blocks.glsl"
#include "halves.glsl"
#include "product.glsl"

layout(local_size_x_id = 1) in;

layout(constant_id = 6) const uint TILE_M = 128;
layout(constant_id = 7) const uint TILE_N = 128;
layout(constant_id = 8) const uint WARP_M = 64;
layout(constant_id = 10) const uint WARP_N = 32;
layout(constant_id = 11) const uint M = 16;
layout(constant_id = 12) const uint N = 16;
layout(constant_id = 13) const uint K = 16;

const uint DEPTH = 32;
// Words of eight halves from row to row of a tile in shared memory: one more than a block has, against bank conflicts.
const uint PITCH = DEPTH / 8 + 1;
const uint INVOCATIONS = gl_WorkGroupSize.x;
const uint LANES = INVOCATIONS / (TILE_M / WARP_M * (TILE_N / WARP_N));
const uint ROWS_OF_MATRICES = WARP_M / M;
const uint COLUMNS_OF_MATRICES = WARP_N / N;
// Of the weight half a block at a time, of the activations eight elements.
const uint LEFT_EACH = (TILE_M * 2 + INVOCATIONS - 1) / INVOCATIONS;
const uint RIGHT_EACH = (TILE_N * 4 + INVOCATIONS - 1) / INVOCATIONS;

// Sums go through it as well, at the end: a matrix for each subgroup.
shared uvec4 left[2 * TILE_M * PITCH];
shared uvec4 right[2 * TILE_N * PITCH];

uint first, first_count, total, part;

Raw next_left[LEFT_EACH];
uvec4 next_right[RIGHT_EACH];

void load(Regions at, uint blocks, uint b) {
    [[unroll]] for (uint u = 0; u < LEFT_EACH; ++u) {
        uint i = min(u * INVOCATIONS + gl_LocalInvocationIndex, TILE_M * 2 - 1);
        uint row = min(first + i / 2, total - 1);
        next_left[u] = load_half(weight[part], at, row * blocks + b, row, b, blocks, i % 2);
    }
    [[unroll]] for (uint u = 0; u < RIGHT_EACH; ++u) {
        uint i = min(u * INVOCATIONS + gl_LocalInvocationIndex, TILE_N * 4 - 1);
        uint c = min(first_count + i / 4, count - 1);
        next_right[u] = ReadU4(x).at[(c * blocks + b) * 4 + i % 4];
    }
}

void unpack(uint buffer_index) {
    [[unroll]] for (uint u = 0; u < LEFT_EACH; ++u) {
        uint i = u * INVOCATIONS + gl_LocalInvocationIndex;
        uvec4 low, high;
        unpack_half(next_left[u], i % 2, low, high);
        if (LEFT_EACH * INVOCATIONS == TILE_M * 2 || i < TILE_M * 2) {
            uint to = (buffer_index * TILE_M + i / 2) * PITCH + i % 2;
            left[to] = low;
            left[to + 2] = high;
        }
    }
    [[unroll]] for (uint u = 0; u < RIGHT_EACH; ++u) {
        uint i = u * INVOCATIONS + gl_LocalInvocationIndex;
        if (RIGHT_EACH * INVOCATIONS == TILE_N * 4 || i < TILE_N * 4) {
            right[(buffer_index * TILE_N + i / 4) * PITCH + i % 4] = next_right[u];
        }
    }
}

void main() {
    fill_codebook();
    uint tile = gl_WorkGroupID.y + groups_before;
    part = 0;
    [[unroll]] for (uint p = 0; p + 1 < PARTS; ++p) {
        uint tiles = (rows[p] + TILE_M - 1) / TILE_M;
        if (part == p && tile >= tiles) {
            tile -= tiles;
            part = p + 1;
        }
    }
    total = rows[part];
    first = tile * TILE_M;
    first_count = gl_WorkGroupID.x * TILE_N;
    uint blocks = cols / DEPTH;
    Regions at = regions_of(total * blocks);
    uint warps_n = TILE_N / WARP_N;
    uint warp_m = gl_SubgroupID / warps_n * WARP_M, warp_n = gl_SubgroupID % warps_n * WARP_N;

    coopmat<float, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator> sums[ROWS_OF_MATRICES * COLUMNS_OF_MATRICES];
    [[unroll]] for (uint i = 0; i < ROWS_OF_MATRICES * COLUMNS_OF_MATRICES; ++i) {
        sums[i] = coopmat<float, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator>(0.0);
    }
    load(at, blocks, 0);
    unpack(0);
    barrier();
    for (uint b = 0; b < blocks; ++b) {
        uint now = b & 1;
        // Loaded once more at the end rather than asked about.
        load(at, blocks, min(b + 1, blocks - 1));
        [[unroll]] for (uint k = 0; k < DEPTH; k += K) {
            coopmat<float16_t, gl_ScopeSubgroup, M, K, gl_MatrixUseA> a[ROWS_OF_MATRICES];
            [[unroll]] for (uint i = 0; i < ROWS_OF_MATRICES; ++i) {
                coopMatLoad(a[i], left, (now * TILE_M + warp_m + i * M) * PITCH + k / 8, PITCH,
                    gl_CooperativeMatrixLayoutRowMajor);
            }
            [[unroll]] for (uint j = 0; j < COLUMNS_OF_MATRICES; ++j) {
                coopmat<float16_t, gl_ScopeSubgroup, K, N, gl_MatrixUseB> column;
                coopMatLoad(column, right, (now * TILE_N + warp_n + j * N) * PITCH + k / 8, PITCH,
                    gl_CooperativeMatrixLayoutColumnMajor);
                [[unroll]] for (uint i = 0; i < ROWS_OF_MATRICES; ++i) {
                    uint s = i * COLUMNS_OF_MATRICES + j;
                    sums[s] = coopMatMulAdd(a[i], column, sums[s]);
                }
            }
        }
        unpack(now ^ 1);
        barrier();
    }
    // All loops are unrolled: sums that are indexed by what is known only at run time would lie in memory.
    uint stage = gl_SubgroupID * (M * N / 4);
    [[unroll]] for (uint i = 0; i < ROWS_OF_MATRICES; ++i) {
        [[unroll]] for (uint j = 0; j < COLUMNS_OF_MATRICES; ++j) {
            coopMatStore(sums[i * COLUMNS_OF_MATRICES + j], left, stage, M / 4, gl_CooperativeMatrixLayoutColumnMajor);
            subgroupBarrier();
            [[unroll]] for (uint u = 0; u < M * N / LANES; ++u) {
                uint e = u * LANES + gl_SubgroupInvocationID;
                uint row = first + warp_m + i * M + e % M, c = first_count + warp_n + j * N + e / M;
                if (row < total && c < count) {
                    float sum = uintBitsToFloat(left[stage + e / 4][e % 4]);
                    store(part, row, c, sum * uintBitsToFloat(scales.at[c].x));
                }
            }
            subgroupBarrier();
        }
    }
}
