//! The element and block types, with their geometry.

/// An element type, or a block type of ggml: a block packs `block_len` consecutive elements of a row into
/// `block_bytes` bytes.
///
/// Geometry and numbering follow the GGUF specification (ggml `docs/gguf.md`, enum `ggml_type`).
#[allow(missing_docs, non_camel_case_types, reason = "the variants are the field's own names")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    F32,
    F16,
    BF16,
    F64,
    I8,
    I16,
    I32,
    I64,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ1_S,
    IQ1_M,
    IQ2_XXS,
    IQ2_XS,
    IQ2_S,
    IQ3_XXS,
    IQ3_S,
    IQ4_NL,
    IQ4_XS,
    TQ1_0,
    TQ2_0,
    MXFP4,
}

/// (type, number in a GGUF file, name, elements a block, bytes a block)
const TABLE: &[(DType, u32, &str, usize, usize)] = &[
    (DType::F32, 0, "F32", 1, 4),
    (DType::F16, 1, "F16", 1, 2),
    (DType::Q4_0, 2, "Q4_0", 32, 18),
    (DType::Q4_1, 3, "Q4_1", 32, 20),
    (DType::Q5_0, 6, "Q5_0", 32, 22),
    (DType::Q5_1, 7, "Q5_1", 32, 24),
    (DType::Q8_0, 8, "Q8_0", 32, 34),
    (DType::Q2_K, 10, "Q2_K", 256, 84),
    (DType::Q3_K, 11, "Q3_K", 256, 110),
    (DType::Q4_K, 12, "Q4_K", 256, 144),
    (DType::Q5_K, 13, "Q5_K", 256, 176),
    (DType::Q6_K, 14, "Q6_K", 256, 210),
    (DType::IQ2_XXS, 16, "IQ2_XXS", 256, 66),
    (DType::IQ2_XS, 17, "IQ2_XS", 256, 74),
    (DType::IQ3_XXS, 18, "IQ3_XXS", 256, 98),
    (DType::IQ1_S, 19, "IQ1_S", 256, 50),
    (DType::IQ4_NL, 20, "IQ4_NL", 32, 18),
    (DType::IQ3_S, 21, "IQ3_S", 256, 110),
    (DType::IQ2_S, 22, "IQ2_S", 256, 82),
    (DType::IQ4_XS, 23, "IQ4_XS", 256, 136),
    (DType::I8, 24, "I8", 1, 1),
    (DType::I16, 25, "I16", 1, 2),
    (DType::I32, 26, "I32", 1, 4),
    (DType::I64, 27, "I64", 1, 8),
    (DType::F64, 28, "F64", 1, 8),
    (DType::IQ1_M, 29, "IQ1_M", 256, 56),
    (DType::BF16, 30, "BF16", 1, 2),
    (DType::TQ1_0, 34, "TQ1_0", 256, 54),
    (DType::TQ2_0, 35, "TQ2_0", 256, 66),
    (DType::MXFP4, 39, "MXFP4", 32, 17),
];

impl DType {
    /// Every type, in the order of its GGUF number.
    pub fn all() -> impl Iterator<Item = DType> {
        TABLE.iter().map(|row| row.0)
    }

    /// The type with this number in a GGUF file; `None` where the number is unknown.
    pub fn from_ggml(number: u32) -> Option<DType> {
        TABLE.iter().find(|row| row.1 == number).map(|row| row.0)
    }

    fn row(self) -> &'static (DType, u32, &'static str, usize, usize) {
        TABLE.iter().find(|row| row.0 == self).expect("every variant has a row: see the test")
    }

    /// The number of this type in a GGUF file.
    pub fn ggml(self) -> u32 {
        self.row().1
    }

    /// The name others know this type by, such as `Q4_K`.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Elements a block; 1 for plain types.
    pub fn block_len(self) -> usize {
        self.row().3
    }

    /// Bytes a block.
    pub fn block_bytes(self) -> usize {
        self.row().4
    }

    /// Whether several elements share a block.
    pub fn is_block(self) -> bool {
        self.block_len() > 1
    }

    /// Whether this is a type that weights come in, as against integers that index or count.
    pub fn is_weight(self) -> bool {
        !matches!(self, DType::F64 | DType::I8 | DType::I16 | DType::I32 | DType::I64)
    }

    /// Bytes of a row of `len` elements; `None` where blocks do not divide it or the product overflows.
    pub fn row_bytes(self, len: usize) -> Option<usize> {
        let (block_len, block_bytes) = (self.block_len(), self.block_bytes());
        if !len.is_multiple_of(block_len) {
            return None;
        }
        (len / block_len).checked_mul(block_bytes)
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip_and_every_variant_has_a_row() {
        for dtype in DType::all() {
            assert_eq!(DType::from_ggml(dtype.ggml()), Some(dtype));
            assert!(dtype.row_bytes(dtype.block_len()).is_some());
        }
        assert_eq!(DType::all().count(), 30);
        assert_eq!(DType::from_ggml(4), None);
        assert_eq!(DType::Q6_K.row_bytes(100), None);
        assert_eq!(DType::F32.row_bytes(usize::MAX), None);
    }
}
