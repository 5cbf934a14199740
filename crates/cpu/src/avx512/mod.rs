//! Kernels written for AVX-512 with VNNI. Plain loops that the compiler vectorises well stand elsewhere.

pub(crate) mod activations;
pub(crate) mod attention;
pub(crate) mod linear;
pub(crate) mod output;
