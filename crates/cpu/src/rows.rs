//! Operations that map a row to a row.

use graph::{Activation, RopePairs, RopeTable};
use tensor::blocks::dequantize;

use crate::isa::for_isa;

for_isa! {
    /// [`plain::rms_norm`]
    fn rms_norm(x: &[f32], weight: &[f32], group: usize, eps: f32, out: &mut [f32]) = plain::rms_norm;
    /// [`plain::rope`]
    fn rope(x: &[f32], head_dim: usize, pairs: RopePairs, angles: &[f32], out: &mut [f32]) = plain::rope;
    /// `out = a + b`
    fn add(a: &[f32], b: &[f32], out: &mut [f32]) = plain::add;
    /// `out = a * b`
    fn mul(a: &[f32], b: &[f32], out: &mut [f32]) = plain::mul;
    /// `out = x * factor`
    fn scale(x: &[f32], factor: f32, out: &mut [f32]) = plain::scale;
    /// `out = cap * tanh(x / cap)`
    fn soft_cap(x: &[f32], cap: f32, out: &mut [f32]) = plain::soft_cap;
    /// An activation function of each element.
    fn activate(kind: Activation, x: &[f32], out: &mut [f32]) = plain::activate;
}

/// Cosine and sine of every frequency at one position: `out[..n]` and `out[n..]`.
pub(crate) fn angles(table: &RopeTable, position: u32, out: &mut [f32]) {
    let (cos, sin) = out.split_at_mut(table.inv_freq.len());
    for (i, (cos, sin)) in cos.iter_mut().zip(sin).enumerate() {
        (*cos, *sin) = table.cos_sin(i, position);
    }
}

/// A row of the embedding table, decoded from the file's own bytes.
pub(crate) fn embed(table: &graph::Weight, id: u32, factor: f32, out: &mut [f32]) {
    dequantize(table.dtype, table.row(id as usize), out).expect("type and length were checked with the graph");
    out.iter_mut().for_each(|x| *x *= factor);
}

/// The bodies: plain loops, compiled for each instruction set.
mod plain {
    use graph::RopePairs;

    use crate::math;

    /// The root mean square norm of each run of `group` elements, times `weight` (empty: ones).
    #[inline(always)]
    pub(crate) fn rms_norm(x: &[f32], weight: &[f32], group: usize, eps: f32, out: &mut [f32]) {
        for (x, out) in x.chunks_exact(group).zip(out.chunks_exact_mut(group)) {
            let mut partial = [0.0f32; 16];
            let (lines, rest) = x.as_chunks::<16>();
            for line in lines {
                for (sum, x) in partial.iter_mut().zip(line) {
                    *sum += x * x;
                }
            }
            let squares = partial.iter().sum::<f32>() + rest.iter().map(|x| x * x).sum::<f32>();
            let inverse = 1.0 / (squares / group as f32 + eps).sqrt();
            if weight.is_empty() {
                out.iter_mut().zip(x).for_each(|(out, x)| *out = x * inverse);
            } else {
                out.iter_mut().zip(x).zip(weight).for_each(|((out, x), w)| *out = x * inverse * w);
            }
        }
    }

    /// Turns every head of a row by the angles of its position.
    #[inline(always)]
    pub(crate) fn rope(x: &[f32], head_dim: usize, pairs: RopePairs, angles: &[f32], out: &mut [f32]) {
        let n = angles.len() / 2;
        let (cos, sin) = angles.split_at(n);
        for (x, out) in x.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)) {
            match pairs {
                RopePairs::Halves => {
                    let (x1, x2) = x[..2 * n].split_at(n);
                    let (out1, out2) = out[..2 * n].split_at_mut(n);
                    for i in 0..n {
                        out1[i] = x1[i] * cos[i] - x2[i] * sin[i];
                        out2[i] = x1[i] * sin[i] + x2[i] * cos[i];
                    }
                }
                RopePairs::Neighbours => {
                    for i in 0..n {
                        out[2 * i] = x[2 * i] * cos[i] - x[2 * i + 1] * sin[i];
                        out[2 * i + 1] = x[2 * i] * sin[i] + x[2 * i + 1] * cos[i];
                    }
                }
            }
            out[2 * n..].copy_from_slice(&x[2 * n..]);
        }
    }

    #[inline(always)]
    pub(crate) fn add(a: &[f32], b: &[f32], out: &mut [f32]) {
        out.iter_mut().zip(a.iter().zip(b)).for_each(|(out, (a, b))| *out = a + b);
    }

    #[inline(always)]
    pub(crate) fn mul(a: &[f32], b: &[f32], out: &mut [f32]) {
        out.iter_mut().zip(a.iter().zip(b)).for_each(|(out, (a, b))| *out = a * b);
    }

    #[inline(always)]
    pub(crate) fn activate(kind: graph::Activation, x: &[f32], out: &mut [f32]) {
        out.copy_from_slice(x);
        math::activate(kind, out);
    }

    #[inline(always)]
    pub(crate) fn scale(x: &[f32], factor: f32, out: &mut [f32]) {
        out.iter_mut().zip(x).for_each(|(out, x)| *out = x * factor);
    }

    #[inline(always)]
    pub(crate) fn soft_cap(x: &[f32], cap: f32, out: &mut [f32]) {
        out.iter_mut().zip(x).for_each(|(out, x)| *out = cap * math::tanh(x / cap));
    }
}
