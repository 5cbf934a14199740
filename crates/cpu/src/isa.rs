//! Instruction sets as values: holding one proves that this processor has it.

/// AVX-512 with the byte and word, vector length and VNNI extensions (Zen 4, Ice Lake and later).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512(());

/// AVX2 with FMA and F16C (Haswell, Zen and later).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

/// The instruction set that kernels are chosen by.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Isa {
    Avx512(Avx512),
    Avx2(Avx2),
    Portable,
}

impl Avx512 {
    pub(crate) fn detect() -> Option<Avx512> {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            return Some(Avx512(()));
        }
        None
    }
}

impl Avx2 {
    pub(crate) fn detect() -> Option<Avx2> {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            return Some(Avx2(()));
        }
        None
    }
}

impl Isa {
    /// The best this processor has.
    pub(crate) fn detect() -> Isa {
        Isa::named("avx512").or_else(|| Isa::named("avx2")).unwrap_or(Isa::Portable)
    }

    /// The instruction set of this name, where this processor has it.
    pub(crate) fn named(name: &str) -> Option<Isa> {
        match name {
            "avx512" => Avx512::detect().map(Isa::Avx512),
            "avx2" => Avx2::detect().map(Isa::Avx2),
            "portable" => Some(Isa::Portable),
            _ => None,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Isa::Avx512(_) => "avx512",
            Isa::Avx2(_) => "avx2",
            Isa::Portable => "portable",
        }
    }
}

/// Defines functions that take an [`Isa`] first and run an `#[inline(always)]` body compiled for it: the compiler then
/// vectorises the body's plain loops for that instruction set. (A closure passed to a function with target features
/// would do the same, but only where the compiler chooses to inline it.)
macro_rules! for_isa {
    ($(
        $(#[$meta:meta])*
        fn $name:ident $([$($generics:tt)*] [$($names:tt)*])? ($($arg:ident: $ty:ty),* $(,)?) $(-> $out:ty)? = $body:path;
    )*) => {$(
        $(#[$meta])*
        #[inline]
        pub(crate) fn $name $(<$($generics)*>)? (isa: $crate::isa::Isa, $($arg: $ty),*) $(-> $out)? {
            use $body as body;
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
            fn avx512 $(<$($generics)*>)? ($($arg: $ty),*) $(-> $out)? {
                body $(::<$($names)*>)? ($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2 $(<$($generics)*>)? ($($arg: $ty),*) $(-> $out)? {
                body $(::<$($names)*>)? ($($arg),*)
            }
            match isa {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the value in the variant exists only where its features were detected.
                $crate::isa::Isa::Avx512(_) => unsafe { avx512 $(::<$($names)*>)? ($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                $crate::isa::Isa::Avx2(_) => unsafe { avx2 $(::<$($names)*>)? ($($arg),*) },
                _ => body $(::<$($names)*>)? ($($arg),*),
            }
        }
    )*};
}
pub(crate) use for_isa;
