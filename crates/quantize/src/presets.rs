//! Presets: which type a tensor gets by what it is for.
//!
//! Those that others know by name give each tensor the type that llama.cpp's `llama-quantize` gives it
//! (`llama_tensor_get_type` of `llama-quant.cpp`). `balanced`, `quality` and `small` are this project's own: attention
//! in bytes, for the processor that multiplies bytes fastest, and the feed-forward blocks, most of the model, in groups
//! of few bits.

use tensor::DType;

use crate::Source;

/// A preset.
pub(crate) struct Preset {
    pub(crate) name: &'static str,
    /// `general.file_type` (`llama_ftype` in `llama.h`).
    pub(crate) file_type: u32,
    /// The type of what no rule speaks of.
    pub(crate) default: DType,
    choose: Choose,
}

/// How a preset departs from its default.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Choose {
    /// The default, and the head finer.
    Plain,
    /// The default for every matrix, the head as well.
    Flat,
    /// `_S` and `_M` mixes, and Q2_K.
    Mixed(Mixed),
    Balanced,
    Quality,
    Small,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mixed {
    Q2K,
    Q3KM,
    Q3KL,
    Q4KS,
    KM,
    Iq4,
}

const fn preset(name: &'static str, file_type: u32, default: DType, choose: Choose) -> Preset {
    Preset { name, file_type, default, choose }
}

pub(crate) const PRESETS: &[Preset] = &[
    preset("balanced", 15, DType::Q4_K, Choose::Balanced),
    preset("quality", 18, DType::Q6_K, Choose::Quality),
    preset("small", 12, DType::Q3_K, Choose::Small),
    preset("q4_0", 2, DType::Q4_0, Choose::Plain),
    preset("q4_1", 3, DType::Q4_1, Choose::Plain),
    preset("q5_0", 8, DType::Q5_0, Choose::Plain),
    preset("q5_1", 9, DType::Q5_1, Choose::Plain),
    preset("q8_0", 7, DType::Q8_0, Choose::Plain),
    preset("q2_k", 10, DType::Q2_K, Choose::Mixed(Mixed::Q2K)),
    preset("q3_k_s", 11, DType::Q3_K, Choose::Plain),
    preset("q3_k_m", 12, DType::Q3_K, Choose::Mixed(Mixed::Q3KM)),
    preset("q3_k_l", 13, DType::Q3_K, Choose::Mixed(Mixed::Q3KL)),
    preset("q4_k_s", 14, DType::Q4_K, Choose::Mixed(Mixed::Q4KS)),
    preset("q4_k_m", 15, DType::Q4_K, Choose::Mixed(Mixed::KM)),
    preset("q5_k_s", 16, DType::Q5_K, Choose::Plain),
    preset("q5_k_m", 17, DType::Q5_K, Choose::Mixed(Mixed::KM)),
    preset("q6_k", 18, DType::Q6_K, Choose::Plain),
    preset("iq4_nl", 25, DType::IQ4_NL, Choose::Mixed(Mixed::Iq4)),
    preset("iq4_xs", 30, DType::IQ4_XS, Choose::Mixed(Mixed::Iq4)),
    preset("mxfp4", 38, DType::MXFP4, Choose::Plain),
    preset("f16", 1, DType::F16, Choose::Flat),
    preset("bf16", 32, DType::BF16, Choose::Flat),
    preset("f32", 0, DType::F32, Choose::Flat),
];

/// The names of all presets.
pub fn preset_names() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|preset| preset.name)
}

/// `general.file_type` of a file most of which is of this type.
pub(crate) fn file_type(dtype: DType) -> u32 {
    PRESETS.iter().rfind(|preset| preset.default == dtype).map_or(0, |preset| preset.file_type)
}

/// What a choice depends on besides the tensor.
pub(crate) struct Context {
    /// Layers.
    layers: usize,
    /// Query heads for each key head.
    queries_a_key: u64,
    /// Whether the head is a matrix of its own.
    has_output: bool,
    /// Whether an importance matrix is used.
    has_importance: bool,
}

impl Context {
    pub(crate) fn new(source: &Source, has_importance: bool) -> Context {
        let layer = |name: &str| name.strip_prefix("blk.")?.split('.').next()?.parse::<usize>().ok();
        let layers = source.tensors.iter().filter_map(|tensor| layer(&tensor.name)).max().map_or(0, |last| last + 1);
        Context {
            layers,
            queries_a_key: source.queries_a_key(),
            has_output: source.tensors.iter().any(|tensor| tensor.name == "output.weight"),
            has_importance,
        }
    }

    /// The layers that deserve more bits: the first and the last eighth, and every third between.
    fn more_bits(&self, layer: usize) -> bool {
        let eighth = self.layers / 8;
        layer < eighth || layer >= 7 * self.layers / 8 || (layer.saturating_sub(eighth)) % 3 == 2
    }
}

impl Preset {
    pub(crate) fn find(name: &str) -> Option<&'static Preset> {
        PRESETS.iter().find(|preset| preset.name == name)
    }

    /// The type of a matrix of this name with rows of `cols` elements.
    pub(crate) fn choose(&self, name: &str, cols: usize, context: &Context) -> DType {
        let mut parts = name.split('.');
        let (layer, kind) = match (parts.next(), parts.next(), parts.next()) {
            (Some("blk"), Some(layer), Some(kind)) => (layer.parse().unwrap_or(0), kind),
            (Some(kind), ..) => (0, kind),
            _ => (0, name),
        };
        let head = kind == "output" || (kind == "token_embd" && !context.has_output);
        match self.choose {
            Choose::Flat => self.default,
            Choose::Balanced => own(kind, DType::Q8_0, DType::Q4_K, DType::Q8_0),
            Choose::Quality => own(kind, DType::Q8_0, DType::Q6_K, DType::Q8_0),
            Choose::Small => match kind {
                _ if head => DType::Q6_K,
                "attn_v" => DType::Q6_K,
                "ffn_down" => DType::Q4_K,
                _ => own(kind, DType::Q4_K, DType::Q3_K, DType::Q4_K),
            },
            Choose::Plain | Choose::Mixed(_) if head => match self.default {
                DType::Q8_0 | DType::MXFP4 => DType::Q8_0,
                default if !cols.is_multiple_of(default.block_len()) => DType::Q8_0,
                _ => DType::Q6_K,
            },
            Choose::Plain => match self.default {
                DType::Q4_0 if self.early(kind, layer, context) => DType::Q4_1,
                DType::Q5_0 if self.early(kind, layer, context) => DType::Q5_1,
                default => default,
            },
            Choose::Mixed(mixed) => self.mixed(mixed, kind, layer, context),
        }
    }

    /// Of the early layers `down` gets a minimum, where an importance matrix guides it.
    fn early(&self, kind: &str, layer: usize, context: &Context) -> bool {
        context.has_importance && kind == "ffn_down" && layer < context.layers / 8
    }

    fn mixed(&self, mixed: Mixed, kind: &str, layer: usize, context: &Context) -> DType {
        use DType::{Q3_K, Q4_K, Q5_K, Q6_K};
        let many = context.queries_a_key >= 4;
        match (mixed, kind) {
            (Mixed::Q2K, "attn_v") => {
                if many {
                    Q4_K
                } else {
                    Q3_K
                }
            }
            (Mixed::Q2K, "ffn_down" | "attn_output") => Q3_K,
            (Mixed::Q3KM, "attn_v") => {
                if layer < 2 {
                    Q5_K
                } else {
                    Q4_K
                }
            }
            (Mixed::Q3KM, "ffn_down") => {
                if layer < context.layers / 16 {
                    Q5_K
                } else {
                    Q4_K
                }
            }
            (Mixed::Q3KM, "attn_output") => Q4_K,
            (Mixed::Q3KL, "attn_v" | "ffn_down" | "attn_output") => Q5_K,
            (Mixed::Q4KS, "attn_v") if layer < 4 => Q5_K,
            (Mixed::Q4KS, "ffn_down") if layer < context.layers / 8 => Q5_K,
            (Mixed::KM, "attn_v" | "ffn_down") if context.more_bits(layer) => Q6_K,
            (Mixed::Iq4, "attn_v") if many => Q5_K,
            (Mixed::Iq4, "ffn_down") if layer < context.layers / 8 && !context.has_importance => Q5_K,
            _ => self.default,
        }
    }
}

/// The own mixes: attention, feed-forward, embeddings and head.
fn own(kind: &str, attention: DType, feed_forward: DType, embedding: DType) -> DType {
    match kind {
        _ if kind.starts_with("attn") => attention,
        _ if kind.starts_with("ffn") => feed_forward,
        _ => embedding,
    }
}

/// What takes the place of a type whose blocks do not divide a row: one of blocks of 32 with as many bits or more
/// (llama.cpp's choice), and half precision where those do not divide it either.
pub(crate) fn fallback(dtype: DType, cols: usize) -> DType {
    let short = match dtype {
        DType::Q2_K | DType::Q3_K => DType::Q4_0,
        DType::IQ4_XS => DType::IQ4_NL,
        DType::Q4_K => DType::Q5_0,
        DType::Q5_K => DType::Q5_1,
        DType::Q6_K => DType::Q8_0,
        other => other,
    };
    if cols.is_multiple_of(dtype.block_len()) {
        dtype
    } else if cols.is_multiple_of(short.block_len()) {
        short
    } else {
        DType::F16
    }
}
