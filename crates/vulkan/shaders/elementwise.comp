// Operations element by element, and the rows that are wanted.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "memory.glsl"
#include "activation.glsl"

layout(local_size_x = 256) in;

layout(constant_id = 0) const uint OP = 0;
const uint ADD = 0, MUL = 1, ACTIVATE = 2, SCALE = 3, SOFT_CAP = 4, SELECT = 5, GATED = 6;
layout(constant_id = 1) const uint KIND = 0;

layout(push_constant, std430) uniform Push {
    ReadF a;
    // The second operand; the rows to select.
    ReadF b;
    WriteF result;
    uint count;
    // Elements a row.
    uint width;
    float factor;
};

void main() {
    uint all = gl_NumWorkGroups.x * gl_WorkGroupSize.x;
    for (uint i = gl_GlobalInvocationID.x; i < count; i += all) {
        if (OP == SELECT) {
            uint row = floatBitsToUint(b.at[i / width]);
            result.at[i] = a.at[row * width + i % width];
            continue;
        }
        float x = a.at[i];
        float y;
        if (OP == ADD) {
            y = x + b.at[i];
        } else if (OP == MUL) {
            y = x * b.at[i];
        } else if (OP == ACTIVATE) {
            y = activate(KIND, x);
        } else if (OP == SCALE) {
            y = x * factor;
        } else if (OP == SOFT_CAP) {
            y = factor * tanh_of(x / factor);
        } else {
            y = activate(KIND, x) * b.at[i];
        }
        result.at[i] = y;
    }
}
