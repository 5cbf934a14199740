// Activations rounded to 8 bits in groups of 32, for products in integers.
//
// A group is 8 words of four bytes, and beside it its scale and the sums of its two halves, as 16-bit numbers. Eight
// neighbouring invocations of a subgroup round a group together.

#extension GL_KHR_shader_subgroup_shuffle : require

// Rounds four values: their bytes, and for the whole group its scale and sums. To be called by whole groups, of which an
// invocation has word `index % 8`. What is not finite makes the scale, and so the products, NaN.
uint round_word(vec4 values, out uvec2 scale) {
    vec4 m = abs(values);
    float largest = max(max(m.x, m.y), max(m.z, m.w));
    uint bad = any(isnan(m)) || any(isinf(m)) ? 1 : 0;
    [[unroll]] for (uint step = 1; step < 8; step *= 2) {
        largest = max(largest, subgroupShuffleXor(largest, step));
        bad |= subgroupShuffleXor(bad, step);
    }
    float inverse = largest > 0.0 ? 127.0 / largest : 0.0;
    ivec4 q = bad == 0 ? ivec4(clamp(roundEven(values * inverse), -127.0, 127.0)) : ivec4(1);
    int sum = q.x + q.y + q.z + q.w;
    sum += subgroupShuffleXor(sum, 1);
    sum += subgroupShuffleXor(sum, 2);
    // Of the first invocation of a group it is that of the second half.
    int other = subgroupShuffleXor(sum, 4);
    q &= 0xff;
    float factor = bad == 0 ? largest / 127.0 : uintBitsToFloat(0x7fc00000u);
    scale = uvec2(floatBitsToUint(factor), uint(sum & 0xffff | other << 16));
    return uint(q.x | q.y << 8 | q.z << 16 | q.w << 24);
}

// Rounds and stores word `index % 8` of group `index / 8`.
void store_word(WriteU quants, WriteU2 scales, uint index, vec4 values) {
    uvec2 scale;
    quants.at[index] = round_word(values, scale);
    if ((index & 7) == 0) {
        scales.at[index / 8] = scale;
    }
}
