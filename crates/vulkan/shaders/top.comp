// The largest logits of rows, of equal ones those of the lowest places. A workgroup takes a part of a row and finds the
// TOP-th largest by bits, from the highest down: how many are at least so large. What each part found goes to another
// pass, which takes all of a row. Logits are compared as integers, so that no bit of them counts for nothing.
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#include "memory.glsl"

layout(local_size_x_id = 0) in;

// Logits of an invocation.
layout(constant_id = 1) const uint EACH = 1;
layout(constant_id = 2) const uint TOP = 1;
// The source is what the first pass found.
layout(constant_id = 3) const bool FOUND = false;

layout(push_constant, std430) uniform Push {
    // Floats, or (place, bits).
    ReadU source;
    // (place, bits) of each part of each row, TOP of them; the place is NOWHERE beyond those there are.
    WriteU2 result;
    // Elements of a row of the source.
    uint width;
};

const uint NOWHERE = 0xffffffff;

shared uint reduced[128];
shared uint found;

uint keys[EACH], places[EACH], logits[EACH];

uint workgroup_sum(uint x) {
    x = subgroupAdd(x);
    barrier();
    if (subgroupElect()) {
        reduced[gl_SubgroupID] = x;
    }
    barrier();
    uint sum = 0;
    for (uint i = gl_SubgroupInvocationID; i < gl_NumSubgroups; i += gl_SubgroupSize) {
        sum += reduced[i];
    }
    return subgroupAdd(sum);
}

uint workgroup_max(uint x) {
    x = subgroupMax(x);
    barrier();
    if (subgroupElect()) {
        reduced[gl_SubgroupID] = x;
    }
    barrier();
    uint most = 0;
    for (uint i = gl_SubgroupInvocationID; i < gl_NumSubgroups; i += gl_SubgroupSize) {
        most = max(most, reduced[i]);
    }
    return subgroupMax(most);
}

// Larger where the logit is; 0 is less than that of any. NaN is the largest, and -0 equals 0.
uint key_of(uint bits) {
    if ((bits & 0x7fffffff) > 0x7f800000) {
        return 0xffffffff;
    }
    bits = bits == 0x80000000 ? 0 : bits;
    return bits ^ (bits >> 31 == 1 ? 0xffffffff : 0x80000000);
}

// How many have a larger key than `least`, or the same at a place before `end`.
uint count(uint least, uint end) {
    uint mine = 0;
    [[unroll]] for (uint e = 0; e < EACH; ++e) {
        mine += keys[e] > least || (keys[e] == least && places[e] < end) ? 1 : 0;
    }
    return workgroup_sum(mine);
}

void main() {
    uint row = gl_WorkGroupID.y;
    [[unroll]] for (uint e = 0; e < EACH; ++e) {
        uint i = (gl_WorkGroupID.x * EACH + e) * gl_WorkGroupSize.x + gl_LocalInvocationIndex;
        bool inside = i < width;
        uint at = row * width + min(i, width - 1);
        if (FOUND) {
            uvec2 pair = ReadU2(source).at[at];
            places[e] = pair.x;
            logits[e] = pair.y;
            inside = inside && pair.x != NOWHERE;
        } else {
            places[e] = i;
            logits[e] = source.at[at];
        }
        keys[e] = inside ? key_of(logits[e]) : 0;
    }
    // The largest key that TOP reach, and where places of equals end.
    uint least = 0, end = NOWHERE;
    if (TOP == 1) {
        [[unroll]] for (uint e = 0; e < EACH; ++e) {
            least = max(least, keys[e]);
        }
        least = workgroup_max(least);
        uint before = 0;
        [[unroll]] for (uint e = 0; e < EACH; ++e) {
            before = max(before, keys[e] == least ? NOWHERE - places[e] : 0);
        }
        end = NOWHERE - workgroup_max(before) + 1;
    } else {
        for (uint bit = 1u << 31; bit != 0; bit >>= 1) {
            least |= count((least | bit) - 1, 0) >= TOP ? bit : 0;
        }
        if (count(least, NOWHERE) > TOP) {
            end = 0;
            for (uint bit = 1u << 31; bit != 0; bit >>= 1) {
                end |= count(least, end | bit) <= TOP ? bit : 0;
            }
        }
    }
    if (gl_LocalInvocationIndex == 0) {
        found = 0;
    }
    barrier();
    uint to = (row * gl_NumWorkGroups.x + gl_WorkGroupID.x) * TOP;
    [[unroll]] for (uint e = 0; e < EACH; ++e) {
        if (keys[e] != 0 && (keys[e] > least || (keys[e] == least && places[e] < end))) {
            result.at[to + atomicAdd(found, 1)] = uvec2(places[e], logits[e]);
        }
    }
    barrier();
    for (uint i = found + gl_LocalInvocationIndex; i < TOP; i += gl_WorkGroupSize.x) {
        result.at[to + i] = uvec2(NOWHERE, 0);
    }
}
