// Products with some tens of rows, on matrix units whose elements are where `src/fragments.rs` found them: an invocation
// holds elements of two rows, four columns of each. Sums over columns may go in any order, so what an invocation gives a
// matrix comes from a block of the weight that it read itself: eight matrices take 16 rows by four blocks, and nothing of
// a weight passes through shared memory. Activations lie in memory as the right matrices want them (`prepare.comp`).
//
// A workgroup takes TILES matrices of 16 rows of the weight (of gate and up as many each). Its subgroups divide the columns
// among themselves, four blocks at a time in turn, and their sums are joined at the end.
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
// Loads of activations on their way.
layout(constant_id = 10) const uint AHEAD = 4;

const uint SIDE = 16;
const uint LANES = 32;
const uint INVOCATIONS = gl_WorkGroupSize.x;
const uint WEIGHTS = IS_GATED ? 2 : 1;
const uint MATRICES = WEIGHTS * TILES;
// Words of four floats of a matrix of sums.
const uint SUMS = SIDE * SIDE / 4;

shared uvec4 staged[SUBGROUPS * SUMS];

uint first, total, part;

struct Whole {
    Raw half0;
    Raw half1;
};

// Blocks of two rows of each matrix: at work, and on their way from memory.
Whole current[MATRICES * 2];
Whole next[MATRICES * 2];
// The same of activations, a step of which is loaded in UNITS: eight elements of a block, of two rows.
const uint UNITS = 4 * COLUMNS;
uvec4 right[2 * AHEAD];

void load_left(Regions at, uint blocks, uint step) {
    uint b = 4 * step + gl_SubgroupInvocationID % 4;
    [[unroll]] for (uint m = 0; m < MATRICES; ++m) {
        ReadU w = IS_GATED && m % WEIGHTS == 1 ? weight[1] : weight[part];
        [[unroll]] for (uint h = 0; h < 2; ++h) {
            uint row = min(first + m / WEIGHTS * SIDE + 8 * h + gl_SubgroupInvocationID / 4, total - 1);
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
            next[m * 2 + h] = whole;
        }
    }
}

// Unit `u` of a step, counted on into the next step: of a matrix of columns the words that a half of a block has, its
// first and its second ones, and then those of the other half.
void load_right(uint steps, uint step, uint after, uint u) {
    uint from = u < UNITS ? step : after, p = u % UNITS / COLUMNS, j = u % COLUMNS;
    uint base = (j * steps + from) * 8 + p / 2 + p % 2 * 2;
    [[unroll]] for (uint h = 0; h < 2; ++h) {
        right[u % AHEAD * 2 + h] = ReadU4(x).at[(base + 4 * h) * LANES + gl_SubgroupInvocationID];
    }
}

// The sum over subgroups of element `e` of the matrices they have staged.
float joined(uint e) {
    float sum = 0.0;
    [[unroll]] for (uint s = 0; s < SUBGROUPS; ++s) {
        sum += uintBitsToFloat(staged[s * SUMS + e / 4][e % 4]);
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
    uint blocks = cols / 32, steps = blocks / 4;
    Regions at = regions_of(total * blocks);

    coopmat<float, gl_ScopeSubgroup, SIDE, SIDE, gl_MatrixUseAccumulator> sums[MATRICES * COLUMNS];
    [[unroll]] for (uint i = 0; i < MATRICES * COLUMNS; ++i) {
        sums[i] = coopmat<float, gl_ScopeSubgroup, SIDE, SIDE, gl_MatrixUseAccumulator>(0.0);
    }
    uint step = gl_SubgroupID;
    load_left(at, blocks, min(step, steps - 1));
    [[unroll]] for (uint u = 0; u < AHEAD; ++u) {
        load_right(steps, min(step, steps - 1), 0, u);
    }
    for (; step < steps; step += SUBGROUPS) {
        [[unroll]] for (uint i = 0; i < MATRICES * 2; ++i) {
            current[i] = next[i];
        }
        uint after = min(step + SUBGROUPS, steps - 1);
        load_left(at, blocks, after);
        [[unroll]] for (uint p = 0; p < 4; ++p) {
            // Words of four elements as pairs of halves, two of them of each row.
            uvec4 left[MATRICES * 2];
            [[unroll]] for (uint i = 0; i < MATRICES * 2; ++i) {
                uvec4 words, others;
                if (p < 2) {
                    unpack_half(current[i].half0, 0, words, others);
                } else {
                    unpack_half(current[i].half1, 1, words, others);
                }
                left[i] = p % 2 == 0 ? words : others;
            }
            [[unroll]] for (uint j = 0; j < COLUMNS; ++j) {
                const uint u = p * COLUMNS + j;
                uvec4 low = right[u % AHEAD * 2], high = right[u % AHEAD * 2 + 1];
                load_right(steps, step, after, u + AHEAD);
                [[unroll]] for (uint k = 0; k < 2; ++k) {
                    uvec4 own = uvec4(k == 0 ? low.xy : low.zw, k == 0 ? high.xy : high.zw);
                    coopmat<float16_t, gl_ScopeSubgroup, SIDE, SIDE, gl_MatrixUseB> column;
                    [[unroll]] for (uint e = 0; e < 4; ++e) {
                        f16vec2 pair = unpackFloat2x16(own[e]);
                        column[2 * e] = pair.x;
                        column[2 * e + 1] = pair.y;
                    }
                    [[unroll]] for (uint m = 0; m < MATRICES; ++m) {
                        coopmat<float16_t, gl_ScopeSubgroup, SIDE, SIDE, gl_MatrixUseA> rows_of;
                        [[unroll]] for (uint e = 0; e < 4; ++e) {
                            f16vec2 pair = unpackFloat2x16(left[2 * m + e / 2][2 * k + e % 2]);
                            rows_of[2 * e] = pair.x;
                            rows_of[2 * e + 1] = pair.y;
                        }
                        sums[m * COLUMNS + j] = coopMatMulAdd(rows_of, column, sums[m * COLUMNS + j]);
                    }
                }
            }
        }
    }
    const uint OWN = (SIDE * SIDE + INVOCATIONS - 1) / INVOCATIONS;
    [[unroll]] for (uint t = 0; t < TILES; ++t) {
        [[unroll]] for (uint j = 0; j < COLUMNS; ++j) {
            float gate[OWN];
            [[unroll]] for (uint which = 0; which < WEIGHTS; ++which) {
                barrier();
                coopMatStore(sums[(t * WEIGHTS + which) * COLUMNS + j], staged, gl_SubgroupID * SUMS, SIDE / 4,
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
