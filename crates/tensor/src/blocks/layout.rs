//! Reading the fields of a block.

/// Declares the fields of a block in their order, each with its bytes, and `of`, which splits a block into them.
/// That the fields fill the block is checked at compile time.
macro_rules! layout {
    ($name:ident [$bytes:literal] { $($field:ident: $len:literal),+ $(,)? }) => {
        struct $name<'a> {
            $($field: &'a [u8; $len]),+
        }

        impl<'a> $name<'a> {
            #[inline(always)]
            fn of(block: &'a [u8; $bytes]) -> $name<'a> {
                const { assert!($bytes == 0 $(+ $len)+, "the fields fill the block") };
                let rest: &[u8] = block;
                $(let ($field, rest) = rest.split_first_chunk().expect("the fields fill the block");)+
                debug_assert!(rest.is_empty());
                $name { $($field),+ }
            }
        }
    };
}

pub(super) use layout;

/// A half-precision scale.
#[inline(always)]
pub(super) fn f16(bytes: &[u8; 2]) -> f32 {
    half::f16::from_le_bytes(*bytes).to_f32()
}

/// The low half of a byte for `index` even, the high half for `index` odd.
#[inline(always)]
pub(super) fn nibble(byte: u8, index: usize) -> u8 {
    (byte >> (4 * (index % 2))) & 15
}
