//! The operations of a compiled stage, with addresses where the graph has names.

use graph::{Activation, KvType, Rows};

use crate::pack::Format;

/// A value's place: `[rows, width]` of `f32` at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Matrix {
    pub(crate) address: u64,
    pub(crate) width: u32,
    pub(crate) rows: Rows,
}

/// A norm with its weight on the device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct NormAt {
    pub(crate) weight: u64,
    pub(crate) eps: f32,
}

/// A product with its weight on the device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LinearAt {
    pub(crate) weight: u64,
    pub(crate) format: Format,
    pub(crate) bias: Option<u64>,
    pub(crate) out: Matrix,
}

/// What becomes of products.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum AfterAt {
    Nothing,
    Gated { kind: Activation, out: Matrix },
    Residual { residual: Matrix, out: Matrix },
}

/// Products of one input.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ProductAt {
    pub(crate) x: Matrix,
    pub(crate) addend: Option<(Matrix, Option<NormAt>)>,
    pub(crate) sum: Option<Matrix>,
    /// Whether `x` and the addend have all rows, and the input only those that are wanted.
    pub(crate) selects: bool,
    pub(crate) norm: Option<NormAt>,
    pub(crate) input: Matrix,
    pub(crate) input_is_read: bool,
    pub(crate) linears: Vec<LinearAt>,
    pub(crate) after: AfterAt,
}

/// A part of heads: where from, its norm, whether it turns, where to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct HeadPartAt {
    pub(crate) source: Matrix,
    pub(crate) norm: Option<u64>,
    pub(crate) turns: bool,
    pub(crate) target: u64,
    /// Bytes of the cache where it goes there.
    pub(crate) cache_bytes: Option<u64>,
}

/// A rope table on the device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RopeAt {
    pub(crate) frequencies: u64,
    pub(crate) pairs: u32,
    pub(crate) magnitude: f32,
    pub(crate) neighbours: bool,
}

/// Heads between their products and attention.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HeadsAt {
    pub(crate) parts: Vec<HeadPartAt>,
    pub(crate) head_dim: u32,
    pub(crate) rope: Option<RopeAt>,
    pub(crate) eps: f32,
    /// Index of the cache's group; 0 where there is none.
    pub(crate) group: usize,
    /// Elements of the cache.
    pub(crate) kv: KvType,
}

/// Attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct AttentionAt {
    pub(crate) q: Matrix,
    pub(crate) out: Matrix,
    pub(crate) keys: u64,
    pub(crate) values: u64,
    pub(crate) cache_bytes: u64,
    pub(crate) head_dim: u32,
    pub(crate) kv_heads: u32,
    pub(crate) window: Option<u32>,
    pub(crate) scale: f32,
    pub(crate) softcap: Option<f32>,
    pub(crate) kv: KvType,
    /// Index of its list of tiles.
    pub(crate) list: usize,
}

impl AttentionAt {
    /// Bytes of the keys and values of so many tokens.
    pub(crate) fn seen_bytes(&self, tokens: u32) -> u64 {
        let head = self.kv.head_bytes(self.head_dim as usize) as u64;
        2 * head * u64::from(tokens) * u64::from(self.kv_heads)
    }
}

/// An operation of a stage.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operation {
    Product(ProductAt),
    Heads(HeadsAt),
    Attention(AttentionAt),
    /// Heads, and attention of their queries.
    Attend(HeadsAt, AttentionAt),
    /// A norm over runs of `group` elements.
    Norm {
        x: Matrix,
        norm: NormAt,
        group: u32,
        out: Matrix,
    },
    /// By element: the operation's and the activation's number, and a factor.
    Element {
        op: u32,
        kind: u32,
        factor: f32,
        a: Matrix,
        b: Option<Matrix>,
        out: Matrix,
    },
    /// Rows of a weight that products read as well, times a factor.
    Embed {
        weight: u64,
        format: Format,
        rows: u32,
        factor: f32,
        out: Matrix,
    },
    /// The wanted rows.
    Select {
        x: Matrix,
        out: Matrix,
    },
}

impl Operation {
    /// Shows the address of every value to `visit`.
    pub(crate) fn visit(&mut self, visit: &dyn Fn(&mut u64)) {
        let mut matrices: Vec<&mut Matrix> = Vec::new();
        match self {
            Operation::Product(product) => {
                matrices.extend([&mut product.x, &mut product.input]);
                matrices.extend(product.addend.as_mut().map(|(y, _)| y));
                matrices.extend(product.sum.as_mut());
                matrices.extend(product.linears.iter_mut().map(|linear| &mut linear.out));
                match &mut product.after {
                    AfterAt::Nothing => {}
                    AfterAt::Gated { out, .. } => matrices.push(out),
                    AfterAt::Residual { residual, out } => matrices.extend([residual, out]),
                }
            }
            Operation::Heads(heads) => matrices.extend(heads.parts.iter_mut().map(|part| &mut part.source)),
            Operation::Attend(heads, attention) => {
                matrices.extend(heads.parts.iter_mut().map(|part| &mut part.source));
                matrices.extend([&mut attention.q, &mut attention.out]);
            }
            Operation::Attention(attention) => matrices.extend([&mut attention.q, &mut attention.out]),
            Operation::Norm { x, out, .. } | Operation::Select { x, out } => matrices.extend([x, out]),
            Operation::Embed { out, .. } => matrices.push(out),
            Operation::Element { a, b, out, .. } => {
                matrices.extend([a, out]);
                matrices.extend(b.as_mut());
            }
        }
        matrices.into_iter().for_each(|matrix| visit(&mut matrix.address));
    }
}
