// Products with many rows of activations on matrix units: halves in, floats summed. The weight is unpacked on its way
// into shared memory, two buffers in turn. A tile is TILE_M rows of the weight by TILE_N rows of activations; the
// subgroups of the workgroup divide it into WARP_M by WARP_N, each made of matrices of M x N x K.
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#include "memory.glsl"
#include "activation.glsl"
#include "blocks.glsl"
#include "product.glsl"

layout(local_size_x_id = 1) in;

layout(constant_id = 6) const uint TILE_M = 128;
layout(constant_id = 7) const uint TILE_N = 64;
layout(constant_id = 8) const uint WARP_M = 32;
layout(constant_id = 10) const uint WARP_N = 32;
layout(constant_id = 11) const uint M = 16;
layout(constant_id = 12) const uint N = 16;
layout(constant_id = 13) const uint K = 16;
layout(constant_id = 14) const uint SUBGROUPS = 8;

const uint DEPTH = 32;
// Halves from row to row of a tile in shared memory: 16 bytes more than a block, against bank conflicts.
const uint PITCH = DEPTH + 8;
const uint INVOCATIONS = gl_WorkGroupSize.x;
const uint ROWS_OF_MATRICES = WARP_M / M;
const uint COLUMNS_OF_MATRICES = WARP_N / N;
const uint LEFT = TILE_M * PITCH / 8;
const uint RIGHT = TILE_N * PITCH / 8;
// Of the weight a quarter block (8 elements) at a time, of the activations 8 elements.
const uint LEFT_EACH = (TILE_M * 4 + INVOCATIONS - 1) / INVOCATIONS;
const uint RIGHT_EACH = (TILE_N * 4 + INVOCATIONS - 1) / INVOCATIONS;

shared uvec4 left[LEFT];
shared uvec4 right[RIGHT];
shared float staged[SUBGROUPS * M * N];

uvec4 halves_of(vec4 a, vec4 b) {
    return uvec4(packHalf2x16(a.xy), packHalf2x16(a.zw), packHalf2x16(b.xy), packHalf2x16(b.zw));
}

// Elements 8 e .. 8 e + 8 of a block.
uvec4 unpack_eight(ReadU w, Regions at, uint row, uint b, uint blocks, uint e) {
    uint i = row * blocks + b;
    if (TYPE == F16) {
        return ReadU4(w).at[4 * i + e];
    }
    if (IS_FLOAT) {
        return halves_of(floats_at(w, i, 2 * e), floats_at(w, i, 2 * e + 1));
    }
    Block block;
    read_bytes(w, at, i, block);
    read_scales(w, at, i, row, b, blocks, block);
    // Chosen by arithmetic and not by an index, so that the block stays in registers.
    uint q0 = e == 0 ? block.q[0] : e == 1 ? block.q[2] : e == 2 ? block.q[4] : block.q[6];
    uint q1 = e == 0 ? block.q[1] : e == 1 ? block.q[3] : e == 2 ? block.q[5] : block.q[7];
    float scale = e < 2 ? block.scale[0] : block.scale[1];
    float addend = e < 2 ? block.addend[0] : block.addend[1];
    return halves_of(scale * bytes_of(q0) + addend, scale * bytes_of(q1) + addend);
}

void main() {
    fill_codebook();
    uint tile = gl_WorkGroupID.y, part = 0;
    [[unroll]] for (uint p = 0; p + 1 < PARTS; ++p) {
        uint tiles = (rows[p] + TILE_M - 1) / TILE_M;
        if (part == p && tile >= tiles) {
            tile -= tiles;
            part = p + 1;
        }
    }
    uint total = rows[part];
    uint first = tile * TILE_M, first_count = gl_WorkGroupID.x * TILE_N;
    uint blocks = cols / DEPTH;
    Regions at = regions_of(total * blocks);
    uint warps_n = TILE_N / WARP_N;
    uint warp_m = gl_SubgroupID / warps_n * WARP_M, warp_n = gl_SubgroupID % warps_n * WARP_N;

    coopmat<float, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator> sums[ROWS_OF_MATRICES * COLUMNS_OF_MATRICES];
    [[unroll]] for (uint i = 0; i < ROWS_OF_MATRICES * COLUMNS_OF_MATRICES; ++i) {
        sums[i] = coopmat<float, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator>(0.0);
    }
    uvec4 next_left[LEFT_EACH], next_right[RIGHT_EACH];
    for (uint b = 0; b <= blocks; ++b) {
        if (b > 0) {
            barrier();
            [[unroll]] for (uint u = 0; u < LEFT_EACH; ++u) {
                uint i = u * INVOCATIONS + gl_LocalInvocationIndex;
                if (i < TILE_M * 4) {
                    left[i / 4 * (PITCH / 8) + i % 4] = next_left[u];
                }
            }
            [[unroll]] for (uint u = 0; u < RIGHT_EACH; ++u) {
                uint i = u * INVOCATIONS + gl_LocalInvocationIndex;
                if (i < TILE_N * 4) {
                    right[i / 4 * (PITCH / 8) + i % 4] = next_right[u];
                }
            }
            barrier();
        }
        if (b < blocks) {
            [[unroll]] for (uint u = 0; u < LEFT_EACH; ++u) {
                uint i = min(u * INVOCATIONS + gl_LocalInvocationIndex, TILE_M * 4 - 1);
                next_left[u] = unpack_eight(weight[part], at, min(first + i / 4, total - 1), b, blocks, i % 4);
            }
            [[unroll]] for (uint u = 0; u < RIGHT_EACH; ++u) {
                uint i = min(u * INVOCATIONS + gl_LocalInvocationIndex, TILE_N * 4 - 1);
                uint c = min(first_count + i / 4, count - 1);
                next_right[u] = ReadU4(x).at[(c * blocks + b) * 4 + i % 4];
            }
        }
        if (b == 0) {
            continue;
        }
        [[unroll]] for (uint k = 0; k < DEPTH; k += K) {
            coopmat<float16_t, gl_ScopeSubgroup, M, K, gl_MatrixUseA> a[ROWS_OF_MATRICES];
            [[unroll]] for (uint i = 0; i < ROWS_OF_MATRICES; ++i) {
                coopMatLoad(a[i], left, (warp_m + i * M) * (PITCH / 8) + k / 8, PITCH / 8,
                    gl_CooperativeMatrixLayoutRowMajor);
            }
            [[unroll]] for (uint j = 0; j < COLUMNS_OF_MATRICES; ++j) {
                coopmat<float16_t, gl_ScopeSubgroup, K, N, gl_MatrixUseB> column;
                coopMatLoad(column, right, (warp_n + j * N) * (PITCH / 8) + k / 8, PITCH / 8,
                    gl_CooperativeMatrixLayoutColumnMajor);
                [[unroll]] for (uint i = 0; i < ROWS_OF_MATRICES; ++i) {
                    uint s = i * COLUMNS_OF_MATRICES + j;
                    sums[s] = coopMatMulAdd(a[i], column, sums[s]);
                }
            }
        }
    }
    uint stage = gl_SubgroupID * M * N;
    [[unroll]] for (uint i = 0; i < ROWS_OF_MATRICES; ++i) {
        [[unroll]] for (uint j = 0; j < COLUMNS_OF_MATRICES; ++j) {
            coopMatStore(sums[i * COLUMNS_OF_MATRICES + j], staged, stage, M, gl_CooperativeMatrixLayoutColumnMajor);
            subgroupBarrier();
            for (uint e = gl_SubgroupInvocationID; e < M * N; e += gl_SubgroupSize) {
                uint row = first + warp_m + i * M + e % M, c = first_count + warp_n + j * N + e / M;
                if (row < total && c < count) {
                    store(part, row, c, staged[stage + e] * uintBitsToFloat(scales.at[c].x));
                }
            }
            subgroupBarrier();
        }
    }
}
