// What the products share: weights side by side that read one input, as q, k and v do, and what becomes of their sums.

layout(constant_id = 2) const uint PARTS = 1;
layout(constant_id = 3) const bool BIAS = false;
// What becomes of a sum.
layout(constant_id = 4) const uint EPILOGUE = 0;
const uint STORE = 0, RESIDUAL = 1, GATED = 2, GATED_BYTES = 3;
const bool IS_GATED = EPILOGUE >= GATED;
// The activation of the gate.
layout(constant_id = 5) const uint KIND = 0;

layout(push_constant, std430) uniform Push {
    ReadU weight[3];
    WriteF result[3];
    ReadF bias[3];
    // Activations: floats; or bytes in groups of 32; or halves.
    ReadF4 x;
    // Scales of the groups, or of the rows of halves.
    ReadU2 scales;
    ReadF residual;
    // Rows of the weights: the width of their results.
    uint rows[3];
    // Columns of the weights: elements of a row of activations.
    uint cols;
    // Rows of activations.
    uint count;
    // Workgroups of the second dimension that other pieces of a dispatch have taken.
    layout(offset = 124) uint groups_before;
};

void store(uint part, uint row, uint c, float sum) {
    if (BIAS) {
        sum += bias[part].at[row];
    }
    uint at = c * rows[part] + row;
    if (EPILOGUE == RESIDUAL) {
        sum += residual.at[at];
    }
    result[part].at[at] = sum;
}

float gated(uint row, float gate, float up) {
    if (BIAS) {
        gate += bias[0].at[row];
        up += bias[1].at[row];
    }
    return activate(KIND, gate) * up;
}

void store_gated(uint row, uint c, float gate, float up) {
    result[0].at[c * rows[0] + row] = gated(row, gate, up);
}
