// Where the elements of a matrix lie: of each invocation the elements it holds of a left and of a right one, as numbers
// 16 * row + column.
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#include "memory.glsl"

layout(local_size_x = 32) in;

layout(push_constant, std430) uniform Push {
    // Left, then right: [invocation][8].
    WriteU result;
};

const uint SIDE = 16, OWN = 8;

shared uvec4 staged[SIDE * SIDE / 8];

void main() {
    uint lane = gl_LocalInvocationIndex;
    [[unroll]] for (uint k = 0; k < 4; ++k) {
        uint first = 8 * lane + 2 * k;
        staged[lane][k] = packHalf2x16(vec2(first, first + 1));
    }
    barrier();
    coopmat<float16_t, gl_ScopeSubgroup, SIDE, SIDE, gl_MatrixUseA> a;
    coopmat<float16_t, gl_ScopeSubgroup, SIDE, SIDE, gl_MatrixUseB> b;
    coopMatLoad(a, staged, 0, SIDE / 8, gl_CooperativeMatrixLayoutRowMajor);
    coopMatLoad(b, staged, 0, SIDE / 8, gl_CooperativeMatrixLayoutRowMajor);
    // A value that no element has, where an invocation holds another number of them.
    bool fits = a.length() == OWN && b.length() == OWN;
    [[unroll]] for (uint i = 0; i < OWN; ++i) {
        result.at[lane * OWN + i] = fits ? uint(a[i]) : SIDE * SIDE;
        result.at[(32 + lane) * OWN + i] = fits ? uint(b[i]) : SIDE * SIDE;
    }
}
