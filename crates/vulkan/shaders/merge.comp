// Joins the shares of attention: one workgroup a head of a token.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "memory.glsl"

layout(local_size_x = 64) in;

layout(constant_id = 0) const uint HEAD_DIM = 64;

layout(push_constant, std430) uniform Push {
    ReadF partial;
    WriteF result;
    uint splits;
};

void main() {
    uint base = gl_WorkGroupID.x * splits * (HEAD_DIM + 2);
    float top = -1e30;
    for (uint s = 0; s < splits; ++s) {
        top = max(top, partial.at[base + s * (HEAD_DIM + 2) + HEAD_DIM]);
    }
    float weights = 0.0;
    for (uint s = 0; s < splits; ++s) {
        uint at = base + s * (HEAD_DIM + 2) + HEAD_DIM;
        weights += exp(partial.at[at] - top) * partial.at[at + 1];
    }
    for (uint i = gl_LocalInvocationIndex; i < HEAD_DIM; i += gl_WorkGroupSize.x) {
        float sum = 0.0;
        for (uint s = 0; s < splits; ++s) {
            uint at = base + s * (HEAD_DIM + 2);
            sum += exp(partial.at[at + HEAD_DIM] - top) * partial.at[at + i];
        }
        result.at[gl_WorkGroupID.x * HEAD_DIM + i] = sum / weights;
    }
}
