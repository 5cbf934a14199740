//! Instruction sets as values, and the one place that enters code compiled for them.

/// The instruction set that an encoder runs with. The bytes are the same whichever it is: where bodies fuse a product
/// and a sum they say so (`mul_add`, which rounds once on every processor), and they sum in an order that is written
/// down, so that only their speed differs.
#[derive(Clone, Copy, Debug)]
pub(super) enum Isa {
    Avx512(Avx512),
    Avx2(Avx2),
    Portable,
}

/// AVX-512 with byte and word, double and quad word, and vector length extensions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx512(());

/// AVX2 with FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx2(());

impl Isa {
    /// The best this processor has.
    pub(super) fn detect() -> Isa {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx2 && avx512 {
                return Isa::Avx512(Avx512(()));
            }
            if avx2 {
                return Isa::Avx2(Avx2(()));
            }
        }
        Isa::Portable
    }

    /// Every instruction set this processor has, the portable one among them.
    #[cfg(test)]
    pub(super) fn all() -> Vec<Isa> {
        match Isa::detect() {
            best @ Isa::Avx512(_) => vec![best, Isa::Avx2(Avx2(())), Isa::Portable],
            best @ Isa::Avx2(_) => vec![best, Isa::Portable],
            Isa::Portable => vec![Isa::Portable],
        }
    }
}

/// Defines functions that take an [`Isa`] first and run an `#[inline(always)]` body compiled for it, so that the
/// compiler vectorises the body's plain loops for that instruction set.
macro_rules! for_isa {
    ($($(#[$meta:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) -> $out:ty = $body:path;)*) => {$(
        $(#[$meta])*
        fn $name(isa: $crate::encode::isa::Isa, $($arg: $ty),*) -> $out {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            fn avx512($($arg: $ty),*) -> $out {
                $body($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2($($arg: $ty),*) -> $out {
                $body($($arg),*)
            }
            match isa {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the value in the variant is made only where its features were detected.
                $crate::encode::isa::Isa::Avx512(_) => unsafe { avx512($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above; a processor with AVX-512 has AVX2.
                $crate::encode::isa::Isa::Avx2(_) => unsafe { avx2($($arg),*) },
                _ => $body($($arg),*),
            }
        }
    )*};
}
pub(super) use for_isa;
