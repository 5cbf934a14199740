// Rows of activations as `gemm_fragments.comp` reads them.

// Where four elements of a row of `width` go, `word` of them after its begin, in pairs of words: an invocation takes blocks
// of two rows, eight apart, and four invocations take four blocks side by side.
uint fragment(uint row, uint word, uint width) {
    uint block = word / 8, j = word % 8;
    uint load = (row / 16 * (width / 128) + block / 4) * 8 + row % 16 / 8 * 4 + j / 2;
    return (load * 32 + row % 8 * 4 + block % 4) * 2 + j % 2;
}

// Four elements, in the order of `halves.glsl`.
uvec2 fragment_halves(vec4 v) {
    return uvec2(packHalf2x16(v.xz), packHalf2x16(v.yw));
}
