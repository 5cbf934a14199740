// Products with few rows of activations. A subgroup takes ROWS rows of a weight at once; its invocations take the blocks of
// these rows in turn, so that a block is unpacked once for all rows of activations.
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_integer_dot_product : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#include "memory.glsl"
#include "activation.glsl"
#include "blocks.glsl"
#include "product.glsl"
#include "quantise.glsl"
#include "reduce.glsl"

layout(local_size_x_id = 1) in;

layout(constant_id = 6) const uint ROWS = 2;
// Rows of activations a pass.
layout(constant_id = 7) const uint COLUMNS = 1;
// Activations are bytes, and products are summed in integers.
layout(constant_id = 8) const bool INTEGER = false;
// The columns are no multiple of 32: the last block reads beyond them.
layout(constant_id = 9) const bool RAGGED = false;
// Blocks of a row an invocation loads before it uses the first, so that memory has enough to do.
layout(constant_id = 10) const uint AHEAD = 1;

// Each workgroup makes the row itself, as `prepare.comp` does: x, or x + y, or x + norm(y) * w1; its norm, times w2; bytes.
// There are as many rows as COLUMNS then, and no residual; y, w1 and the sum stand where biases would.
layout(constant_id = 11) const bool PROLOGUE = false;
layout(constant_id = 12) const uint ADDEND = 0;
const uint NOTHING = 0, PLAIN = 1, NORMED = 2;
layout(constant_id = 13) const bool KEEP_SUM = false;
layout(constant_id = 14) const float EPS1 = 0.0;
layout(constant_id = 15) const float EPS2 = 0.0;
// Columns of the weights, where there is a prologue.
layout(constant_id = 16) const uint WIDTH = 32;

// The rows, in the order of memory.
shared uvec4 row_bytes[PROLOGUE ? COLUMNS * WIDTH / 16 : 1];
shared uvec2 row_scales[PROLOGUE ? COLUMNS * WIDTH / 32 : 1];
// Words of four elements of a row that an invocation makes.
const uint OWN = (WIDTH / 4 + gl_WorkGroupSize.x - 1) / gl_WorkGroupSize.x;

const uint WEIGHTS = IS_GATED ? 2 : 1;

float sums[WEIGHTS * ROWS * COLUMNS];
// Where gate and up end in bytes: 32 rows of a workgroup, column by column.
shared float joined[EPILOGUE == GATED_BYTES ? 32 * COLUMNS : 1];

void add_block(uint base, uint blocks, ReadU w, Regions at, uint row, uint b) {
    uint i = row * blocks + b;
    if (IS_FLOAT) {
        vec4 values[8];
        [[unroll]] for (uint j = 0; j < 8; ++j) {
            values[j] = floats_at(w, i, j);
        }
        [[unroll]] for (uint c = 0; c < COLUMNS; ++c) {
            uint source = min(c, count - 1);
            float sum = 0.0;
            [[unroll]] for (uint j = 0; j < 8; ++j) {
                if (RAGGED) {
                    [[unroll]] for (uint k = 0; k < 4; ++k) {
                        uint col = 32 * b + 4 * j + k;
                        sum += col < cols ? values[j][k] * ReadF(x).at[source * cols + col] : 0.0;
                    }
                } else {
                    sum += dot(values[j], x.at[(source * blocks + b) * 8 + j]);
                }
            }
            sums[base + c] += sum;
        }
        return;
    }
    Block block;
    read_bytes(w, at, i, block);
    read_scales(w, at, i, row, b, blocks, block);
    [[unroll]] for (uint c = 0; c < COLUMNS; ++c) {
        uint group = min(c, count - 1) * blocks + b;
        if (INTEGER) {
            uvec4 low, high;
            uvec2 scale;
            if (PROLOGUE) {
                low = row_bytes[2 * group];
                high = row_bytes[2 * group + 1];
                scale = row_scales[group];
            } else {
                low = ReadU4(x).at[2 * group];
                high = ReadU4(x).at[2 * group + 1];
                scale = scales.at[group];
            }
            int first = 0, second = 0;
            [[unroll]] for (uint j = 0; j < 4; ++j) {
                first += dotPacked4x8EXT(int(block.q[j]), int(low[j]));
                second += dotPacked4x8EXT(int(block.q[4 + j]), int(high[j]));
            }
            vec2 halves = vec2(bitfieldExtract(int(scale.y), 0, 16), bitfieldExtract(int(scale.y), 16, 16));
            float sum = block.scale[0] * float(first) + block.scale[1] * float(second);
            sum += block.addend[0] * halves.x + block.addend[1] * halves.y;
            sums[base + c] += uintBitsToFloat(scale.x) * sum;
        } else {
            float sum = 0.0;
            [[unroll]] for (uint j = 0; j < 8; ++j) {
                sum += dot(values_of(block, j), x.at[group * 8 + j]);
            }
            sums[base + c] += sum;
        }
    }
}

void add_rows(uint blocks, uint part, Regions at, uint first, uint total, uint b) {
    [[unroll]] for (uint r = 0; r < ROWS; ++r) {
        uint row = min(first + r, total - 1);
        add_block(r * COLUMNS, blocks, weight[part], at, row, b);
        if (IS_GATED) {
            add_block((ROWS + r) * COLUMNS, blocks, weight[1], at, row, b);
        }
    }
}

void make_row(uint c) {
    vec4 s[OWN], w[OWN];
    [[unroll]] for (uint e = 0; e < OWN; ++e) {
        uint i = e * gl_WorkGroupSize.x + gl_LocalInvocationIndex;
        bool inside = i < WIDTH / 4;
        s[e] = inside ? x.at[c * (WIDTH / 4) + i] : vec4(0.0);
        w[e] = inside ? ReadF4(residual).at[i] : vec4(0.0);
    }
    if (ADDEND != NOTHING) {
        vec4 added[OWN];
        float square = 0.0;
        [[unroll]] for (uint e = 0; e < OWN; ++e) {
            uint i = e * gl_WorkGroupSize.x + gl_LocalInvocationIndex;
            bool inside = i < WIDTH / 4;
            added[e] = inside ? ReadF4(bias[0]).at[c * (WIDTH / 4) + i] : vec4(0.0);
            square += dot(added[e], added[e]);
            if (ADDEND == NORMED) {
                added[e] *= inside ? ReadF4(bias[1]).at[i] : vec4(0.0);
            }
        }
        float scale = ADDEND == NORMED ? 1.0 / sqrt(workgroup_sum(square) / float(WIDTH) + EPS1) : 1.0;
        [[unroll]] for (uint e = 0; e < OWN; ++e) {
            uint i = e * gl_WorkGroupSize.x + gl_LocalInvocationIndex;
            s[e] += added[e] * scale;
            if (KEEP_SUM && gl_WorkGroupID.x == 0 && i < WIDTH / 4) {
                WriteF4(bias[2]).at[c * (WIDTH / 4) + i] = s[e];
            }
        }
    }
    float square = 0.0;
    [[unroll]] for (uint e = 0; e < OWN; ++e) {
        square += dot(s[e], s[e]);
    }
    float scale = 1.0 / sqrt(workgroup_sum(square) / float(WIDTH) + EPS2);
    [[unroll]] for (uint e = 0; e < OWN; ++e) {
        uint i = e * gl_WorkGroupSize.x + gl_LocalInvocationIndex;
        // Whole groups of eight invocations are inside the row or outside.
        if (i < WIDTH / 4) {
            uint at = c * (WIDTH / 4) + i;
            uvec2 rounded;
            row_bytes[at / 4][at % 4] = round_word(s[e] * (scale * w[e]), rounded);
            if (at % 8 == 0) {
                row_scales[at / 8] = rounded;
            }
        }
    }
}

// A share is the ROWS rows that a subgroup takes at once; of gate and up, those of both.
void take_share(uint group) {
    uint part = 0;
    if (!IS_GATED) {
        [[unroll]] for (uint p = 0; p + 1 < PARTS; ++p) {
            uint groups = (rows[p] + ROWS - 1) / ROWS;
            if (part == p && group >= groups) {
                group -= groups;
                part = p + 1;
            }
        }
    }
    uint first = group * ROWS, total = rows[part];
    uint blocks = (cols + 31) / 32;
    Regions at = regions_of(total * blocks);
    [[unroll]] for (uint i = 0; i < WEIGHTS * ROWS * COLUMNS; ++i) {
        sums[i] = 0.0;
    }
    uint b = gl_SubgroupInvocationID;
    // Without a loop that is not needed kernels compile in half the time.
    for (; AHEAD > 1 && b + (AHEAD - 1) * gl_SubgroupSize < blocks; b += AHEAD * gl_SubgroupSize) {
        [[unroll]] for (uint u = 0; u < AHEAD; ++u) {
            add_rows(blocks, part, at, first, total, b + u * gl_SubgroupSize);
        }
    }
    for (; b < blocks; b += gl_SubgroupSize) {
        add_rows(blocks, part, at, first, total, b);
    }
    [[unroll]] for (uint r = 0; r < ROWS; ++r) {
        [[unroll]] for (uint c = 0; c < COLUMNS; ++c) {
            float sum = subgroupAdd(sums[r * COLUMNS + c]);
            float up = IS_GATED ? subgroupAdd(sums[((WEIGHTS - 1) * ROWS + r) * COLUMNS + c]) : 0.0;
            bool mine = (r * COLUMNS + c) % gl_SubgroupSize == gl_SubgroupInvocationID;
            if (mine && EPILOGUE == GATED_BYTES) {
                joined[c * 32 + gl_SubgroupID * ROWS + r] = gated(first + r, sum, up);
            } else if (mine && first + r < total && c < count) {
                if (IS_GATED) {
                    store_gated(first + r, c, sum, up);
                } else {
                    store(part, first + r, c, sum);
                }
            }
        }
    }
    if (EPILOGUE == GATED_BYTES) {
        barrier();
        // Eight invocations a group of 32.
        uint c = gl_LocalInvocationIndex / 8, word = gl_LocalInvocationIndex % 8;
        if (c < COLUMNS && c < count) {
            vec4 v;
            [[unroll]] for (uint k = 0; k < 4; ++k) {
                v[k] = joined[c * 32 + 4 * word + k];
            }
            uint at = c * (rows[0] / 4) + (first & ~31u) / 4 + word;
            store_word(WriteU(result[0]), WriteU2(result[1]), at, v);
        }
        barrier();
    }
}

void main() {
    fill_codebook();
    if (PROLOGUE) {
        [[unroll]] for (uint c = 0; c < COLUMNS; ++c) {
            make_row(c);
        }
        barrier();
    }
    uint shares = 0;
    [[unroll]] for (uint p = 0; p < (IS_GATED ? 1 : PARTS); ++p) {
        shares += (rows[p] + ROWS - 1) / ROWS;
    }
    for (uint group = gl_WorkGroupID.x * gl_NumSubgroups + gl_SubgroupID; group < shares;
         group += gl_NumWorkGroups.x * gl_NumSubgroups) {
        take_share(group);
    }
}
