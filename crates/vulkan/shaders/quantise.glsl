// Activations rounded to 8 bits in groups of 32, for products in integers.
//
// A group is 8 words of four bytes, and beside it its scale and the sums of its two halves, as 16-bit numbers.

// Rounds 32 values; `index` counts groups. Away from what is not finite: a scale of infinity or NaN carries it on.
void store_group(WriteU quants, WriteU2 scales, uint index, vec4 values[8]) {
    float largest = 0.0;
    bool finite = true;
    [[unroll]] for (uint j = 0; j < 8; ++j) {
        vec4 m = abs(values[j]);
        largest = max(largest, max(max(m.x, m.y), max(m.z, m.w)));
        finite = finite && !any(isnan(m)) && !any(isinf(m));
    }
    float scale = largest / 127.0;
    float inverse = largest > 0.0 ? 127.0 / largest : 0.0;
    ivec2 sums = ivec2(0);
    [[unroll]] for (uint j = 0; j < 8; ++j) {
        ivec4 q = finite ? ivec4(clamp(roundEven(values[j] * inverse), -127.0, 127.0)) : ivec4(1);
        sums[j / 4] += q.x + q.y + q.z + q.w;
        q &= 0xff;
        quants.at[8 * index + j] = uint(q.x | q.y << 8 | q.z << 16 | q.w << 24);
    }
    scales.at[index] = uvec2(finite ? floatBitsToUint(scale) : 0x7fc00000u, uint(sums.x & 0xffff | sums.y << 16));
}
