//! Which type each weight of a shape has.

use tensor::DType;

/// The types of a shape's matrices. Vectors are `f32` throughout, as in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Types {
    /// Every matrix of one type.
    One(DType),
    /// `q4_k_m` and `q5_k_m`: this type for most, more bits for those that need them.
    Mix(DType),
}

/// As they are typed.
const NAMES: &[(&str, Types)] = &[
    ("f32", Types::One(DType::F32)),
    ("f16", Types::One(DType::F16)),
    ("bf16", Types::One(DType::BF16)),
    ("q4_0", Types::One(DType::Q4_0)),
    ("q4_1", Types::One(DType::Q4_1)),
    ("q5_0", Types::One(DType::Q5_0)),
    ("q5_1", Types::One(DType::Q5_1)),
    ("q8_0", Types::One(DType::Q8_0)),
    ("q2_k", Types::One(DType::Q2_K)),
    ("q3_k", Types::One(DType::Q3_K)),
    ("q4_k", Types::One(DType::Q4_K)),
    ("q5_k", Types::One(DType::Q5_K)),
    ("q6_k", Types::One(DType::Q6_K)),
    ("iq4_nl", Types::One(DType::IQ4_NL)),
    ("iq4_xs", Types::One(DType::IQ4_XS)),
    ("mxfp4", Types::One(DType::MXFP4)),
    ("q4_k_m", Types::Mix(DType::Q4_K)),
    ("q5_k_m", Types::Mix(DType::Q5_K)),
];

/// What decides about a matrix besides its name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Layers of the shape, as it is cut.
    pub(super) layers: usize,
    /// Layers of the published model: llama.cpp knows its "70B" by 80 of them.
    pub(super) own_layers: usize,
    /// Whether the head is the embedding.
    pub(super) tied: bool,
}

impl Types {
    pub(super) fn named(name: &str) -> Option<Types> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, types)| *types)
    }

    pub(super) fn names() -> impl Iterator<Item = &'static str> {
        NAMES.iter().map(|(name, _)| *name)
    }

    /// The type of the matrix with this GGUF name and rows of `cols` elements.
    ///
    /// Mixes follow `llama_tensor_get_type` of llama.cpp (`src/llama-quant.cpp`) for `LLAMA_FTYPE_MOSTLY_Q4_K_M` and
    /// `_Q5_K_M`: the head Q6_K (Q8_0 where its rows are no whole blocks); `attn_v` and `ffn_down` Q6_K in the first
    /// and last eighth of the layers and every third between; else `attn_v` of a Q4_K model of 80 layers Q5_K. From
    /// the same place is what takes the place of a type whose blocks do not divide the row.
    pub(super) fn of(self, name: &str, cols: usize, place: Place) -> DType {
        let wanted = match self {
            Types::One(dtype) => dtype,
            Types::Mix(base) => mixed(base, name, cols, place),
        };
        let fits = |dtype: DType| cols.is_multiple_of(dtype.block_len());
        let dtype = if fits(wanted) { wanted } else { instead_of(wanted) };
        if fits(dtype) { dtype } else { DType::F16 }
    }
}

fn mixed(base: DType, name: &str, cols: usize, place: Place) -> DType {
    if name == "output.weight" || (place.tied && name == "token_embd.weight") {
        return if cols.is_multiple_of(base.block_len()) { DType::Q6_K } else { DType::Q8_0 };
    }
    let mut parts = name.split('.');
    let (Some("blk"), Some(Ok(layer)), Some(kind)) = (parts.next(), parts.next().map(str::parse), parts.next()) else {
        return base;
    };
    match kind {
        "attn_v" | "ffn_down" if more_bits(layer, place.layers) => DType::Q6_K,
        "attn_v" if base == DType::Q4_K && place.own_layers == 80 => DType::Q5_K,
        _ => base,
    }
}

/// `use_more_bits` of llama.cpp.
fn more_bits(layer: usize, layers: usize) -> bool {
    layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2
}

fn instead_of(dtype: DType) -> DType {
    match dtype {
        DType::Q4_K => DType::Q5_0,
        DType::Q5_K => DType::Q5_1,
        DType::Q6_K => DType::Q8_0,
        DType::Q2_K | DType::Q3_K | DType::IQ4_XS => DType::IQ4_NL,
        _ => DType::F16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixes_give_more_bits_where_llama_cpp_does() {
        let place = |layers, tied| Place { layers, own_layers: layers, tied };
        for (types, name, cols, place, want) in [
            ("q4_k_m", "output.weight", 4096, place(32, false), DType::Q6_K),
            ("q4_k_m", "token_embd.weight", 4096, place(32, false), DType::Q4_K),
            ("q4_k_m", "token_embd.weight", 2048, place(16, true), DType::Q6_K),
            ("q4_k_m", "token_embd.weight", 640, place(18, true), DType::Q8_0),
            ("q4_k_m", "blk.0.attn_v.weight", 4096, place(32, false), DType::Q6_K),
            ("q4_k_m", "blk.3.ffn_down.weight", 4096, place(32, false), DType::Q6_K),
            ("q4_k_m", "blk.4.ffn_down.weight", 4096, place(32, false), DType::Q4_K),
            ("q4_k_m", "blk.6.ffn_down.weight", 4096, place(32, false), DType::Q6_K),
            ("q4_k_m", "blk.28.attn_v.weight", 4096, place(32, false), DType::Q6_K),
            ("q4_k_m", "blk.0.attn_q.weight", 4096, place(32, false), DType::Q4_K),
            ("q4_k_m", "blk.0.attn_q.weight", 640, place(18, true), DType::Q5_0),
            ("q4_k_m", "blk.0.attn_v.weight", 640, place(18, true), DType::Q8_0),
            ("q4_k_m", "blk.11.attn_v.weight", 8192, place(80, false), DType::Q5_K),
            ("q5_k_m", "blk.11.attn_v.weight", 8192, place(80, false), DType::Q5_K),
            ("q5_k_m", "blk.0.ffn_down.weight", 4096, place(32, false), DType::Q6_K),
            ("q5_k_m", "blk.4.ffn_up.weight", 4096, place(32, false), DType::Q5_K),
            ("q6_k", "blk.4.ffn_up.weight", 4096, place(32, false), DType::Q6_K),
            ("q6_k", "blk.4.ffn_up.weight", 896, place(24, true), DType::Q8_0),
            ("q2_k", "blk.4.ffn_up.weight", 896, place(24, true), DType::IQ4_NL),
            ("q4_0", "output.weight", 4096, place(32, false), DType::Q4_0),
            ("q4_0", "blk.0.attn_q.weight", 33, place(1, false), DType::F16),
        ] {
            let found = Types::named(types).unwrap().of(name, cols, place);
            assert_eq!(found, want, "{types} {name} of {cols} columns, {place:?}");
        }
        assert_eq!(Types::named("q9_0"), None);
    }
}
