//! Data types, block layouts, aligned buffers and the one memory map.
//!
//! This is the ground floor: every other crate stands on it and it stands on none of them. It knows how a
//! weight lies in memory, never what the weight means.
//!
//! - [`DType`] names every element and block type that public model files use, with its geometry.
//! - [`Bytes`] is a cheap, shareable slice of either a mapped file or an owned buffer: weights travel as `Bytes`
//!   and are never copied on the way from the file to the device.
//! - [`AlignedBuf`] is owned, zeroed memory aligned for the widest vectors and for pages.
//! - [`blocks`] decodes blocks to `f32`: plain and obvious, the oracle for every kernel.
//! - [`encode`] packs `f32` into blocks, by search for the least error.
//!
//! ```
//! use tensor::{Bytes, DType};
//! assert_eq!(DType::Q4_0.row_bytes(64), Some(36));
//! let mut out = [0.0f32; 2];
//! tensor::blocks::dequantize(DType::F32, &1.5f32.to_le_bytes().repeat(2), &mut out).unwrap();
//! assert_eq!(out, [1.5, 1.5]);
//! assert_eq!(Bytes::from(vec![1u8, 2, 3]).slice(1..3).unwrap().as_ref(), &[2, 3]);
//! ```

mod aligned;
pub mod blocks;
mod bytes;
mod dtype;
pub mod encode;

pub use aligned::AlignedBuf;
pub use bytes::{Bytes, MapError};
pub use dtype::DType;
