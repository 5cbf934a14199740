// Sums and maxima over a workgroup, whatever its number of subgroups. Every invocation has the result.

#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require

shared float reduced[64];

float workgroup_sum(float x) {
    x = subgroupAdd(x);
    barrier();
    if (subgroupElect()) {
        reduced[gl_SubgroupID] = x;
    }
    barrier();
    float sum = 0.0;
    for (uint i = gl_SubgroupInvocationID; i < gl_NumSubgroups; i += gl_SubgroupSize) {
        sum += reduced[i];
    }
    return subgroupAdd(sum);
}

float workgroup_max(float x) {
    x = subgroupMax(x);
    barrier();
    if (subgroupElect()) {
        reduced[gl_SubgroupID] = x;
    }
    barrier();
    float most = reduced[0];
    for (uint i = gl_SubgroupInvocationID; i < gl_NumSubgroups; i += gl_SubgroupSize) {
        most = max(most, reduced[i]);
    }
    return subgroupMax(most);
}
