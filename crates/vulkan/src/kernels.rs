//! What kernels are given: push constants and specialization constants, laid out as in `shaders/`.

use bytemuck::{Pod, Zeroable};
use graph::{Activation, KvType};

use crate::{pipeline::PUSH_BYTES, shaders::Shader, tuning::Variant};

/// A kernel ready to record: everything but the pipeline itself.
#[derive(Clone, Debug)]
pub(crate) struct Dispatch {
    pub(crate) shader: Shader,
    /// (constant, bits)
    pub(crate) constants: Vec<(u32, u32)>,
    pub(crate) push: Vec<u8>,
    pub(crate) groups: [u32; 3],
    /// Addresses it reads that a kernel of the same program may have written.
    pub(crate) reads: Vec<std::ops::Range<u64>>,
    /// Addresses it writes.
    pub(crate) writes: Vec<std::ops::Range<u64>>,
    /// What it is, for profiles.
    pub(crate) label: String,
    /// Estimated operations and bytes, by which long lists are cut into submits (`pace`).
    pub(crate) work: u64,
    pub(crate) bytes: u64,
    /// The kernel as tuning knows it, and the variant that was taken, where there are several.
    pub(crate) choice: Option<(String, Variant)>,
}

impl Dispatch {
    /// A dispatch with push constants of a plain structure.
    pub(crate) fn new<P: Pod>(shader: Shader, constants: Vec<(u32, u32)>, push: &P, groups: [u32; 3]) -> Dispatch {
        const { assert!(size_of::<P>() <= PUSH_BYTES) };
        Dispatch {
            shader,
            constants,
            push: bytemuck::bytes_of(push).to_vec(),
            groups,
            reads: Vec::new(),
            writes: Vec::new(),
            label: shader.name().to_owned(),
            work: 0,
            bytes: 0,
            choice: None,
        }
    }
}

/// The activation's number in `shaders/activation.glsl`.
pub(crate) fn activation(kind: Activation) -> u32 {
    match kind {
        Activation::Silu => 0,
        Activation::GeluTanh => 1,
        Activation::Gelu => 2,
    }
}

/// `product.glsl`.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
pub(crate) struct Product {
    pub(crate) weight: [u64; 3],
    pub(crate) result: [u64; 3],
    pub(crate) bias: [u64; 3],
    pub(crate) x: u64,
    pub(crate) scales: u64,
    pub(crate) residual: u64,
    pub(crate) rows: [u32; 3],
    pub(crate) cols: u32,
    pub(crate) count: u32,
    pub(crate) padding: u32,
}

/// What becomes of a sum (`product.glsl`).
pub(crate) mod epilogue {
    pub(crate) const STORE: u32 = 0;
    pub(crate) const RESIDUAL: u32 = 1;
    pub(crate) const GATED: u32 = 2;
    pub(crate) const GATED_BYTES: u32 = 3;
}

/// `prepare.comp`.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
pub(crate) struct Prepare {
    pub(crate) x: u64,
    pub(crate) y: u64,
    pub(crate) w1: u64,
    pub(crate) w2: u64,
    pub(crate) sum: u64,
    pub(crate) floats: u64,
    pub(crate) quants: u64,
    pub(crate) scales: u64,
    pub(crate) selected: u64,
    pub(crate) width: u32,
    pub(crate) eps1: f32,
    pub(crate) eps2: f32,
    pub(crate) rows: u32,
}

/// Forms of a product's input (`prepare.comp`).
pub(crate) mod form {
    pub(crate) const FLOATS: u32 = 1;
    pub(crate) const BYTES: u32 = 2;
    pub(crate) const HALVES: u32 = 4;
    pub(crate) const FRAGMENTS: u32 = 8;
}

/// Elements of the KV cache (`cache.glsl`).
pub(crate) fn element(kv: KvType) -> u32 {
    match kv {
        KvType::F32 => 0,
        KvType::F16 => 1,
        KvType::Q8 => 2,
    }
}

/// `heads.comp`.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
pub(crate) struct Heads {
    pub(crate) source: [u64; 3],
    pub(crate) weight: [u64; 3],
    pub(crate) target: [u64; 3],
    pub(crate) frequencies: u64,
    pub(crate) positions: u64,
    pub(crate) places: u64,
    pub(crate) heads: [u32; 3],
    pub(crate) eps: f32,
    pub(crate) magnitude: f32,
    pub(crate) padding: u32,
}

/// `attention.comp`.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
pub(crate) struct Attention {
    pub(crate) q: u64,
    pub(crate) keys: u64,
    pub(crate) values: u64,
    pub(crate) result: u64,
    pub(crate) tiles: u64,
    pub(crate) tables: u64,
    pub(crate) partial: u64,
    pub(crate) heads: u32,
    pub(crate) kv_heads: u32,
    pub(crate) window: u32,
    pub(crate) splits: u32,
    pub(crate) scale: f32,
    pub(crate) cap: f32,
}

/// `attend.comp`.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
pub(crate) struct Attend {
    pub(crate) source: [u64; 3],
    pub(crate) weight: [u64; 2],
    pub(crate) frequencies: u64,
    pub(crate) positions: u64,
    pub(crate) keys: u64,
    pub(crate) values: u64,
    pub(crate) tiles: u64,
    pub(crate) tables: u64,
    pub(crate) partial: u64,
    pub(crate) result: u64,
    pub(crate) scales: u64,
    pub(crate) kv_heads: u32,
    pub(crate) window: u32,
    pub(crate) splits: u32,
    pub(crate) padding: u32,
}

/// `merge.comp`.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
pub(crate) struct Merge {
    pub(crate) partial: u64,
    pub(crate) result: u64,
    pub(crate) splits: u32,
    pub(crate) padding: u32,
}

/// `elementwise.comp`.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
pub(crate) struct Elementwise {
    pub(crate) a: u64,
    pub(crate) b: u64,
    pub(crate) result: u64,
    pub(crate) count: u32,
    pub(crate) width: u32,
    pub(crate) factor: f32,
    pub(crate) padding: u32,
}

/// Operations of `elementwise.comp`.
pub(crate) mod elementwise {
    pub(crate) const ADD: u32 = 0;
    pub(crate) const MUL: u32 = 1;
    pub(crate) const ACTIVATE: u32 = 2;
    pub(crate) const SCALE: u32 = 3;
    pub(crate) const SOFT_CAP: u32 = 4;
    pub(crate) const SELECT: u32 = 5;
    pub(crate) const GATED: u32 = 6;
}

/// `fragments.comp`.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
pub(crate) struct Fragments {
    pub(crate) result: u64,
}

/// `embed.comp`.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
pub(crate) struct Embed {
    pub(crate) weight: u64,
    pub(crate) ids: u64,
    pub(crate) result: u64,
    pub(crate) rows: u32,
    pub(crate) cols: u32,
    pub(crate) factor: f32,
    pub(crate) count: u32,
}

/// `top.comp`.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
pub(crate) struct Top {
    pub(crate) source: u64,
    pub(crate) result: u64,
    pub(crate) width: u32,
    pub(crate) padding: u32,
}

/// `stream.comp`.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
pub(crate) struct Stream {
    pub(crate) source: u64,
    pub(crate) result: u64,
    pub(crate) count: u32,
    pub(crate) padding: u32,
}
