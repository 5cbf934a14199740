//! The operations. Each is a row-wise map of matrices, except for the two that touch the KV cache.

use std::sync::Arc;

use crate::{
    graph::{CacheId, ValueId, WeightId},
    rope::RopeTable,
};

/// Activation functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)` (Elfwing et al. 2017, arXiv:1702.03118).
    Silu,
    /// The tanh approximation of GELU (Hendrycks and Gimpel 2016, arXiv:1606.08415).
    GeluTanh,
    /// GELU with the error function.
    Gelu,
}

impl Activation {
    /// The function itself, in `f32`.
    pub fn apply(self, x: f32) -> f32 {
        match self {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::GeluTanh => {
                const SQRT_2_OVER_PI: f32 = 0.797_884_6;
                0.5 * x * (1.0 + (SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x)).tanh())
            }
            Activation::Gelu => 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)),
        }
    }
}

/// The error function, absolute error below 1.5e-7 (Abramowitz and Stegun, 7.1.26).
fn erf(x: f32) -> f32 {
    const A: [f64; 5] = [0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429];
    let magnitude = f64::from(x.abs());
    let t = 1.0 / (1.0 + 0.3275911 * magnitude);
    let poly = A.iter().rev().fold(0.0, |acc, a| (acc + a) * t);
    (1.0 - poly * (-magnitude * magnitude).exp()).copysign(f64::from(x)) as f32
}

/// An operation with its inputs. T is the tokens of the step, R the wanted outputs; either may stand for the rows.
#[derive(Clone, Debug)]
pub enum Op {
    /// Rows of a table, times a factor: ids `[T]` to `[T, cols]`.
    Embed {
        /// `[vocab, cols]`
        table: WeightId,
        /// The factor (Gemma: the root of the width).
        scale: f32,
    },
    /// `x W^T + b`: `[rows, cols of W]` to `[rows, rows of W]`. The weight's type is a property of the weight.
    Linear {
        /// Input.
        x: ValueId,
        /// `[out, in]`
        weight: WeightId,
        /// `[out]`
        bias: Option<WeightId>,
    },
    /// Root mean square norm (Zhang and Sennrich 2019, arXiv:1910.07467) over each run of `group` elements:
    /// `x / rms(x) * (weight + offset)`.
    RmsNorm {
        /// Input; its width is a multiple of `group`.
        x: ValueId,
        /// `[group]`; ones where absent.
        weight: Option<WeightId>,
        /// Elements normed together: the width of the row, or of one head.
        group: usize,
        /// Added to the mean square.
        eps: f32,
        /// Added to the weight: 1 for Gemma in Hugging Face files, else 0.
        offset: f32,
    },
    /// Rotary position embedding (Su et al. 2021, arXiv:2104.09864) of each head, by the token's position.
    Rope {
        /// Input; its width is a multiple of `head_dim`.
        x: ValueId,
        /// Elements a head.
        head_dim: usize,
        /// Frequencies and the way elements are paired.
        table: Arc<RopeTable>,
    },
    /// Stores keys and values of this step's tokens in the cache.
    KvWrite {
        /// Where.
        cache: CacheId,
        /// `[T, kv_heads * head_dim]`
        k: ValueId,
        /// `[T, kv_heads * head_dim]`
        v: ValueId,
    },
    /// Causal attention of each token over its own sequence in the cache, this step's tokens included.
    /// Query heads share KV heads in equal groups (Ainslie et al. 2023, arXiv:2305.13245).
    Attention {
        /// Keys and values; written earlier in the graph.
        cache: CacheId,
        /// `[T, heads * head_dim]`
        q: ValueId,
        /// Factor on the scores.
        scale: f32,
        /// `cap * tanh(score / cap)` before the softmax (Gemma 2).
        softcap: Option<f32>,
    },
    /// Elementwise sum.
    Add {
        /// Left.
        a: ValueId,
        /// Right, of the same shape.
        b: ValueId,
    },
    /// Elementwise product.
    Mul {
        /// Left.
        a: ValueId,
        /// Right, of the same shape.
        b: ValueId,
    },
    /// An activation function.
    Activate {
        /// Input.
        x: ValueId,
        /// Which.
        kind: Activation,
    },
    /// A factor.
    Scale {
        /// Input.
        x: ValueId,
        /// The factor.
        factor: f32,
    },
    /// `cap * tanh(x / cap)`.
    SoftCap {
        /// Input.
        x: ValueId,
        /// The bound.
        cap: f32,
    },
    /// The rows whose logits are wanted: `[T, width]` to `[R, width]`.
    SelectOutputs {
        /// Input.
        x: ValueId,
    },
}

impl Op {
    /// The operation's name.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Embed { .. } => "embed",
            Op::Linear { .. } => "linear",
            Op::RmsNorm { .. } => "rms_norm",
            Op::Rope { .. } => "rope",
            Op::KvWrite { .. } => "kv_write",
            Op::Attention { .. } => "attention",
            Op::Add { .. } => "add",
            Op::Mul { .. } => "mul",
            Op::Activate { .. } => "activate",
            Op::Scale { .. } => "scale",
            Op::SoftCap { .. } => "soft_cap",
            Op::SelectOutputs { .. } => "select_outputs",
        }
    }

    /// The values it reads.
    pub fn inputs(&self) -> Vec<ValueId> {
        match *self {
            Op::Embed { .. } => vec![],
            Op::KvWrite { k, v, .. } => vec![k, v],
            Op::Add { a, b } | Op::Mul { a, b } => vec![a, b],
            Op::Attention { q, .. } => vec![q],
            Op::Linear { x, .. }
            | Op::RmsNorm { x, .. }
            | Op::Rope { x, .. }
            | Op::Activate { x, .. }
            | Op::Scale { x, .. }
            | Op::SoftCap { x, .. }
            | Op::SelectOutputs { x } => vec![x],
        }
    }

    /// The weights it reads.
    pub fn weights(&self) -> Vec<WeightId> {
        match *self {
            Op::Embed { table, .. } => vec![table],
            Op::Linear { weight, bias, .. } => std::iter::once(weight).chain(bias).collect(),
            Op::RmsNorm { weight, .. } => weight.into_iter().collect(),
            _ => vec![],
        }
    }

    /// The KV cache it touches.
    pub fn cache(&self) -> Option<CacheId> {
        match *self {
            Op::KvWrite { cache, .. } | Op::Attention { cache, .. } => Some(cache),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_at_known_points() {
        // Values from the definitions, evaluated with 50 digits.
        for (kind, x, want) in [
            (Activation::Silu, 1.0, 0.731_058_6),
            (Activation::Silu, -20.0, -4.122_307e-8),
            (Activation::Gelu, 1.0, 0.841_344_7),
            (Activation::Gelu, -0.5, -0.154_268_77),
            (Activation::GeluTanh, 1.0, 0.841_192),
            (Activation::GeluTanh, -3.0, -0.003_637_392),
        ] {
            let got: f32 = kind.apply(x);
            assert!((got - want).abs() < 2e-6, "{kind:?}({x}) = {got}, want {want}");
        }
    }
}
