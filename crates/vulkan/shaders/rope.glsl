// Cosine and sine of an angle of any size to about 1e-7. The built-in functions promise 2^-11, near zero only.

// Bits 0 to 160 behind the point of 1 / (2 pi).
const uint TURNS[5] = uint[5](0x28be60dbu, 0x9391054au, 0x7f09d5f4u, 0x7d4d3770u, 0x36d8a566u);

// Bits `at .. at + 32` behind the point; zeros before it.
uint turn_bits(int at) {
    if (at <= -32) {
        return 0;
    }
    if (at < 0) {
        return TURNS[0] >> uint(-at);
    }
    uint word = min(uint(at) / 32, 3), shift = uint(at) & 31;
    uint low = TURNS[word] << shift;
    return shift == 0 ? low : low | TURNS[word + 1] >> (32 - shift);
}

// Angle over 2 pi less its whole turns, in units of 2^-32. The angle is positive and below 2^60.
uint fraction_of_turn(float angle) {
    uint bits = floatBitsToUint(angle);
    int exponent = int(bits >> 23) - 150;
    uint mantissa = (bits & 0x7fffff) | 0x800000;
    // mantissa * 2^exponent * (1 / 2 pi): whole turns drop out with the bits above the point.
    uint high = turn_bits(exponent), low = turn_bits(exponent + 32);
    uint carry, unused;
    umulExtended(mantissa, low, carry, unused);
    return mantissa * high + carry;
}

// (cosine, sine) of an angle that is not negative.
vec2 cos_sin(float angle) {
    float r;
    uint quadrant = 0;
    if (angle < 0.785) {
        r = angle;
    } else {
        uint fraction = fraction_of_turn(angle);
        quadrant = (fraction + 0x20000000u) >> 30;
        r = float(int(fraction - (quadrant << 30))) * (6.283185307179586 / 4294967296.0);
    }
    float r2 = r * r;
    float s = r + r * r2 * (-1.0 / 6.0 + r2 * (1.0 / 120.0 + r2 * (-1.0 / 5040.0 + r2 * (1.0 / 362880.0))));
    float c = 1.0 + r2 * (-0.5 + r2 * (1.0 / 24.0 + r2 * (-1.0 / 720.0 + r2 * (1.0 / 40320.0))));
    if (quadrant == 0) {
        return vec2(c, s);
    }
    if (quadrant == 1) {
        return vec2(-s, c);
    }
    if (quadrant == 2) {
        return vec2(-c, -s);
    }
    return vec2(s, -c);
}
