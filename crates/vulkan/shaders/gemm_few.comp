// Products with few rows of activations, up to some tens, on matrix units: each block of the weight is read once and
// unpacked once. A workgroup takes TILES matrices of 16 rows of the weight (of gate and up as many each); its subgroups
// divide the columns among themselves, STEP blocks at a time in turn, and their sums are joined at the end.
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

layout(constant_id = 6) const uint TILES = 1;
// Matrices of 16 rows of activations.
layout(constant_id = 7) const uint COLUMNS = 1;
layout(constant_id = 8) const uint SUBGROUPS = 8;
// Blocks of a row that a subgroup takes at a time; a divisor of the blocks of a row.
layout(constant_id = 10) const uint STEP = 2;

const uint SIDE = 16;
const uint INVOCATIONS = gl_WorkGroupSize.x;
const uint LANES = INVOCATIONS / SUBGROUPS;
const uint WEIGHTS = IS_GATED ? 2 : 1;
const uint MATRICES = WEIGHTS * TILES;
// Words of eight halves of a row of a matrix in shared memory, one more than it has, against bank conflicts.
const uint PITCH = STEP * 4 + 1;
// Blocks of a matrix that an invocation unpacks.
const uint EACH = (SIDE * STEP + LANES - 1) / LANES;
// Of each subgroup: a matrix of halves, and at the end one of sums.
const uint STAGED = SIDE * PITCH > SIDE * SIDE / 4 ? SIDE * PITCH : SIDE * SIDE / 4;
const uint PRIVATE = STAGED + COLUMNS * SIDE * PITCH;
// Words of eight halves of the activations that an invocation carries.
const uint RIGHT_EACH = (COLUMNS * SIDE * STEP * 4 + LANES - 1) / LANES;

// Matrices of activations that stay in registers through a step, where they are few.
const uint HOISTED = COLUMNS <= 2 ? 2 * STEP * COLUMNS : 1;

shared uvec4 staged[SUBGROUPS * PRIVATE];

uint first, total, part;

struct Whole {
    Raw half0;
    Raw half1;
};

Whole load_block(ReadU w, Regions at, uint row, uint b, uint blocks) {
    uint i = row * blocks + b;
    Whole whole;
    whole.half0 = load_half(w, at, i, row, b, blocks, 0);
    whole.half1 = whole.half0;
    if (IS_FLOAT || TYPE == Q8_0) {
        whole.half1 = load_half(w, at, i, row, b, blocks, 1);
    } else if (!HAS_TWO_BITS) {
        uvec4 words = ReadU4(w).at[i];
        whole.half0.a.xy = words.xy;
        whole.half1.a.xy = words.zw;
    }
    return whole;
}

// The blocks at work, and those on their way from memory.
Whole current[MATRICES * EACH];
Whole next[MATRICES * EACH];
uvec4 next_right[RIGHT_EACH];

void load(Regions at, uint blocks, uint step) {
    [[unroll]] for (uint m = 0; m < MATRICES; ++m) {
        [[unroll]] for (uint u = 0; u < EACH; ++u) {
            uint i = min(u * LANES + gl_SubgroupInvocationID, SIDE * STEP - 1);
            uint row = min(first + m / WEIGHTS * SIDE + i / STEP, total - 1);
            ReadU w = IS_GATED && m % WEIGHTS == 1 ? weight[1] : weight[part];
            next[m * EACH + u] = load_block(w, at, row, step * STEP + i % STEP, blocks);
        }
    }
    [[unroll]] for (uint u = 0; u < RIGHT_EACH; ++u) {
        uint i = min(u * LANES + gl_SubgroupInvocationID, COLUMNS * SIDE * STEP * 4 - 1);
        uint c = min(i / (STEP * 4), count - 1);
        next_right[u] = ReadU4(x).at[(c * blocks + step * STEP) * 4 + i % (STEP * 4)];
    }
}

// The rows of activations into this subgroup's share of shared memory.
void stage_right(uint base) {
    [[unroll]] for (uint u = 0; u < RIGHT_EACH; ++u) {
        uint i = u * LANES + gl_SubgroupInvocationID;
        if (RIGHT_EACH * LANES == COLUMNS * SIDE * STEP * 4 || i < COLUMNS * SIDE * STEP * 4) {
            staged[base + STAGED + i / (STEP * 4) * PITCH + i % (STEP * 4)] = next_right[u];
        }
    }
}

// One matrix of the weight into this subgroup's share of shared memory.
void unpack(uint m, uint base) {
    [[unroll]] for (uint u = 0; u < EACH; ++u) {
        uint i = u * LANES + gl_SubgroupInvocationID;
        uvec4 a, b, c, d;
        unpack_half(current[m * EACH + u].half0, 0, a, c);
        unpack_half(current[m * EACH + u].half1, 1, b, d);
        if (EACH * LANES == SIDE * STEP || i < SIDE * STEP) {
            uint to = base + i / STEP * PITCH + i % STEP * 4;
            staged[to] = a;
            staged[to + 1] = b;
            staged[to + 2] = c;
            staged[to + 3] = d;
        }
    }
}

// The sum over subgroups of element `e` of the matrices they have staged.
float joined(uint e) {
    float sum = 0.0;
    [[unroll]] for (uint s = 0; s < SUBGROUPS; ++s) {
        sum += uintBitsToFloat(staged[s * PRIVATE + e / 4][e % 4]);
    }
    return sum;
}

void main() {
    fill_codebook();
    uint tile = gl_WorkGroupID.x;
    part = 0;
    if (!IS_GATED) {
        [[unroll]] for (uint p = 0; p + 1 < PARTS; ++p) {
            uint tiles = (rows[p] + TILES * SIDE - 1) / (TILES * SIDE);
            if (part == p && tile >= tiles) {
                tile -= tiles;
                part = p + 1;
            }
        }
    }
    total = rows[part];
    first = tile * TILES * SIDE;
    uint blocks = cols / 32, steps = blocks / STEP;
    Regions at = regions_of(total * blocks);
    uint base = gl_SubgroupID * PRIVATE;

    coopmat<float, gl_ScopeSubgroup, SIDE, SIDE, gl_MatrixUseAccumulator> sums[MATRICES * COLUMNS];
    [[unroll]] for (uint i = 0; i < MATRICES * COLUMNS; ++i) {
        sums[i] = coopmat<float, gl_ScopeSubgroup, SIDE, SIDE, gl_MatrixUseAccumulator>(0.0);
    }
    uint step = gl_SubgroupID;
    load(at, blocks, min(step, steps - 1));
    for (; step < steps; step += SUBGROUPS) {
        [[unroll]] for (uint i = 0; i < MATRICES * EACH; ++i) {
            current[i] = next[i];
        }
        stage_right(base);
        load(at, blocks, min(step + SUBGROUPS, steps - 1));
        subgroupBarrier();
        coopmat<float16_t, gl_ScopeSubgroup, SIDE, SIDE, gl_MatrixUseB> columns[HOISTED];
        [[unroll]] for (uint i = 0; i < (HOISTED > 1 ? HOISTED : 0); ++i) {
            coopMatLoad(columns[i], staged, base + STAGED + i % COLUMNS * SIDE * PITCH + 2 * (i / COLUMNS), PITCH,
                gl_CooperativeMatrixLayoutColumnMajor);
        }
        [[unroll]] for (uint m = 0; m < MATRICES; ++m) {
            unpack(m, base);
            subgroupBarrier();
            [[unroll]] for (uint k = 0; k < 2 * STEP; ++k) {
                coopmat<float16_t, gl_ScopeSubgroup, SIDE, SIDE, gl_MatrixUseA> a;
                coopMatLoad(a, staged, base + 2 * k, PITCH, gl_CooperativeMatrixLayoutRowMajor);
                [[unroll]] for (uint j = 0; j < COLUMNS; ++j) {
                    if (HOISTED > 1) {
                        sums[m * COLUMNS + j] = coopMatMulAdd(a, columns[k * COLUMNS + j], sums[m * COLUMNS + j]);
                    } else {
                        coopmat<float16_t, gl_ScopeSubgroup, SIDE, SIDE, gl_MatrixUseB> column;
                        coopMatLoad(column, staged, base + STAGED + j * SIDE * PITCH + 2 * k, PITCH,
                            gl_CooperativeMatrixLayoutColumnMajor);
                        sums[m * COLUMNS + j] = coopMatMulAdd(a, column, sums[m * COLUMNS + j]);
                    }
                }
            }
            subgroupBarrier();
        }
    }
    const uint OWN = (SIDE * SIDE + INVOCATIONS - 1) / INVOCATIONS;
    [[unroll]] for (uint t = 0; t < TILES; ++t) {
        [[unroll]] for (uint j = 0; j < COLUMNS; ++j) {
            float gate[OWN];
            [[unroll]] for (uint which = 0; which < WEIGHTS; ++which) {
                barrier();
                coopMatStore(sums[(t * WEIGHTS + which) * COLUMNS + j], staged, base, SIDE / 4,
                    gl_CooperativeMatrixLayoutColumnMajor);
                barrier();
                [[unroll]] for (uint u = 0; u < OWN; ++u) {
                    uint e = u * INVOCATIONS + gl_LocalInvocationIndex;
                    uint row = first + t * SIDE + e % SIDE, c = j * SIDE + e / SIDE;
                    if (e < SIDE * SIDE && row < total && c < count) {
                        float sum = joined(e) * uintBitsToFloat(scales.at[c].x);
                        if (!IS_GATED) {
                            store(part, row, c, sum);
                        } else if (which == 0) {
                            gate[u] = sum;
                        } else {
                            store_gated(row, c, gate[u], sum);
                        }
                    }
                }
            }
        }
    }
}
