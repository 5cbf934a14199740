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

    /// Runs `f` compiled for this instruction set: what inlines into it is vectorised for it.
    #[inline]
    pub(crate) fn run<R>(self, f: impl FnOnce() -> R) -> R {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
            fn inner<R>(f: impl FnOnce() -> R) -> R {
                f()
            }
            // SAFETY: `self` exists only where `detect` saw these features.
            unsafe { inner(f) }
        }
        #[cfg(not(target_arch = "x86_64"))]
        f()
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

    /// Runs `f` compiled for this instruction set.
    #[inline]
    pub(crate) fn run<R>(self, f: impl FnOnce() -> R) -> R {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx2,fma,f16c")]
            fn inner<R>(f: impl FnOnce() -> R) -> R {
                f()
            }
            // SAFETY: `self` exists only where `detect` saw these features.
            unsafe { inner(f) }
        }
        #[cfg(not(target_arch = "x86_64"))]
        f()
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

    /// Runs `f` compiled for this instruction set.
    #[inline]
    pub(crate) fn run<R>(self, f: impl FnOnce() -> R) -> R {
        match self {
            Isa::Avx512(isa) => isa.run(f),
            Isa::Avx2(isa) => isa.run(f),
            Isa::Portable => f(),
        }
    }
}
