//! The compiled shaders. Sources lie in `shaders/`, SPIR-V in `spirv/`, made by `cargo xtask`.

macro_rules! shaders {
    ($($(#[$doc:meta])* $name:ident $file:literal),+ $(,)?) => {
        /// A shader.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(crate) enum Shader {
            $($(#[$doc])* $name),+
        }

        impl Shader {
            fn bytes(self) -> &'static [u8] {
                match self {
                    $(Shader::$name => include_bytes!(concat!("../spirv/", $file, ".spv"))),+
                }
            }

            /// All of them.
            const ALL: &[Shader] = &[$(Shader::$name),+];

            /// Their number.
            pub(crate) const COUNT: usize = Shader::ALL.len();

            /// The name of its source.
            pub(crate) fn name(self) -> &'static str {
                match self {
                    $(Shader::$name => $file),+
                }
            }
        }
    };
}

shaders! {
    /// Products with few rows of activations.
    Gemv "gemv",
    /// Products with many rows, in floats.
    Gemm "gemm",
    /// Products with some tens of rows, on matrix units.
    GemmFew "gemm_few",
    /// The same, where the elements of matrices lie in known places.
    GemmFragments "gemm_fragments",
    /// Which places those are.
    Fragments "fragments",
    /// Products with many rows, on matrix units.
    GemmMatrix "gemm_matrix",
    /// Norms, sums, and the forms that products read.
    Prepare "prepare",
    /// Norm, rotation and cache of heads.
    Heads "heads",
    /// Attention.
    Attention "attention",
    /// Attention of prompts, on matrix units.
    AttentionMatrix "attention_matrix",
    /// Attention of one row a sequence, with all between its products.
    Attend "attend",
    /// Joins shares of attention.
    Merge "merge",
    /// Operations by element.
    Elementwise "elementwise",
    /// Rows of a weight.
    Embed "embed",
    /// The largest logits.
    Top "top",
    /// Reading memory, for its bandwidth.
    Stream "stream",
}

impl Shader {
    /// Whether it computes on matrix units.
    pub(crate) fn is_matrix(self) -> bool {
        matches!(self, Shader::GemmFew | Shader::GemmFragments | Shader::GemmMatrix | Shader::AttentionMatrix)
    }

    /// Its SPIR-V.
    pub(crate) fn words(self) -> Vec<u32> {
        self.bytes().as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
    }
}

/// Of all shaders (FNV-1a): results that were checked are those of these.
pub(crate) fn digest() -> u64 {
    let bytes = Shader::ALL.iter().flat_map(|shader| shader.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}
