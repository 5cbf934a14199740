// Rows of a weight as floats, times a factor: one workgroup a row. For tables that products read as well, which therefore
// lie on the device.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "memory.glsl"
#include "blocks.glsl"

layout(local_size_x = 128) in;

layout(push_constant, std430) uniform Push {
    ReadU weight;
    ReadU ids;
    WriteF result;
    // Of the weight.
    uint rows;
    uint cols;
    float factor;
    // Of the result.
    uint count;
};

void main() {
    fill_codebook();
    uint token = gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x;
    if (token >= count) {
        return;
    }
    uint row = min(ids.at[token], rows - 1), blocks = (cols + 31) / 32;
    Regions at = regions_of(rows * blocks);
    for (uint b = gl_LocalInvocationIndex; b < blocks; b += gl_WorkGroupSize.x) {
        uint i = row * blocks + b;
        Block block;
        if (!IS_FLOAT) {
            read_bytes(weight, at, i, block);
            read_scales(weight, at, i, row, b, blocks, block);
        }
        [[unroll]] for (uint j = 0; j < 8; ++j) {
            vec4 v = IS_FLOAT ? floats_at(weight, i, j) : values_of(block, j);
            [[unroll]] for (uint k = 0; k < 4; ++k) {
                uint col = 32 * b + 4 * j + k;
                if (col < cols) {
                    result.at[token * cols + col] = v[k] * factor;
                }
            }
        }
    }
}
