// The activation functions and the cap, numbered as in `src/kernels.rs`.

const uint SILU = 0;
const uint GELU_TANH = 1;
const uint GELU = 2;

// Own, because the built-in one overflows on some drivers where its argument is large.
float tanh_of(float x) {
    float e = exp(-2.0 * abs(x));
    return sign(x) * (1.0 - e) / (1.0 + e);
}

// The error function, absolute error below 1.5e-7 (Abramowitz and Stegun, 7.1.26).
float erf_of(float x) {
    float m = abs(x);
    float t = 1.0 / (1.0 + 0.3275911 * m);
    float p = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    return sign(x) * (1.0 - p * exp(-m * m));
}

float activate(uint kind, float x) {
    if (kind == SILU) {
        return x / (1.0 + exp(-x));
    }
    if (kind == GELU_TANH) {
        return 0.5 * x * (1.0 + tanh_of(0.7978846 * (x + 0.044715 * x * x * x)));
    }
    return 0.5 * x * (1.0 + erf_of(x * 0.70710678));
}
