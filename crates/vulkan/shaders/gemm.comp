// Products with many rows of activations, in floats: tiles of 64 rows of the weight by 64 rows of activations, 32
// columns at a time through shared memory. Eight by eight sums an invocation.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "memory.glsl"
#include "activation.glsl"
#include "blocks.glsl"
#include "product.glsl"

layout(local_size_x = 64) in;

layout(constant_id = 9) const bool RAGGED = false;

const uint TILE = 64;
// Columns in the order of shared memory: column by column, a tile's rows side by side, one word apart from a multiple
// of the banks.
const uint PITCH = TILE + 4;

shared float left[32 * PITCH];
shared float right[32 * PITCH];

void main() {
    fill_codebook();
    uint tile = gl_WorkGroupID.x, part = 0;
    [[unroll]] for (uint p = 0; p + 1 < PARTS; ++p) {
        uint tiles = (rows[p] + TILE - 1) / TILE;
        if (part == p && tile >= tiles) {
            tile -= tiles;
            part = p + 1;
        }
    }
    uint total = rows[part];
    uint first = tile * TILE, first_count = (gl_WorkGroupID.y + groups_before) * TILE;
    uint blocks = (cols + 31) / 32;
    Regions at = regions_of(total * blocks);
    uint lane = gl_LocalInvocationIndex;
    uint ty = lane / 8, tx = lane % 8;
    float acc[64];
    [[unroll]] for (uint i = 0; i < 64; ++i) {
        acc[i] = 0.0;
    }
    for (uint b = 0; b < blocks; ++b) {
        uint row = min(first + lane, total - 1);
        uint i = row * blocks + b;
        Block block;
        if (!IS_FLOAT) {
            read_bytes(weight[part], at, i, block);
            read_scales(weight[part], at, i, row, b, blocks, block);
        }
        uint source = min(first_count + lane, count - 1);
        [[unroll]] for (uint j = 0; j < 8; ++j) {
            vec4 values = IS_FLOAT ? floats_at(weight[part], i, j) : values_of(block, j);
            vec4 xs;
            if (RAGGED) {
                [[unroll]] for (uint k = 0; k < 4; ++k) {
                    uint col = 32 * b + 4 * j + k;
                    xs[k] = col < cols ? ReadF(x).at[source * cols + col] : 0.0;
                }
            } else {
                xs = x.at[(source * blocks + b) * 8 + j];
            }
            [[unroll]] for (uint k = 0; k < 4; ++k) {
                left[(4 * j + k) * PITCH + lane] = values[k];
                right[(4 * j + k) * PITCH + lane] = xs[k];
            }
        }
        barrier();
        for (uint k = 0; k < 32; ++k) {
            float l[8], r[8];
            [[unroll]] for (uint u = 0; u < 8; ++u) {
                l[u] = left[k * PITCH + ty + 8 * u];
                r[u] = right[k * PITCH + tx + 8 * u];
            }
            [[unroll]] for (uint u = 0; u < 8; ++u) {
                [[unroll]] for (uint v = 0; v < 8; ++v) {
                    acc[u * 8 + v] += l[u] * r[v];
                }
            }
        }
        barrier();
    }
    [[unroll]] for (uint u = 0; u < 8; ++u) {
        [[unroll]] for (uint v = 0; v < 8; ++v) {
            uint row = first + ty + 8 * u, c = first_count + tx + 8 * v;
            if (row < total && c < count) {
                store(part, row, c, acc[u * 8 + v]);
            }
        }
    }
}
