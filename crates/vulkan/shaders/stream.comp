// Reads memory and does nothing with it that takes time: for measuring the bandwidth. Each workgroup reads its share
// of `count` groups of 16 bytes.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "memory.glsl"

layout(local_size_x = 256) in;

layout(push_constant, std430) uniform Push {
    ReadU4 source;
    WriteU result;
    uint count;
};

void main() {
    uint all = gl_NumWorkGroups.x * gl_WorkGroupSize.x;
    uvec4 sum = uvec4(0);
    uint i = gl_GlobalInvocationID.x;
    for (; i + 3 * all < count; i += 4 * all) {
        uvec4 a = source.at[i], b = source.at[i + all], c = source.at[i + 2 * all], d = source.at[i + 3 * all];
        sum ^= a ^ b ^ c ^ d;
    }
    // Never true of what is read, which the compiler cannot know.
    if (sum == uvec4(0x9e3779b9, 0x7f4a7c15, 0xf39cc060, 0x5cedc834)) {
        result.at[0] = sum.x;
    }
}
