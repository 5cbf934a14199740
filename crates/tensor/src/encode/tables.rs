//! Levels that are not evenly spaced: IQ4 and E2M1.

#![forbid(unsafe_code)]

use super::{
    fit::Levels,
    tile::{byte, clamp, round},
};
use crate::blocks::IQ4_VALUES;

/// The sixteen values of IQ4_NL and IQ4_XS.
pub(super) struct Iq4;

/// For every half step from -128 the code of the nearest value: values are whole numbers, so the borders between them
/// fall on half steps.
static IQ4_CODES: [u8; 512] = {
    let mut codes = [0; 512];
    let mut at = 0;
    while at < 512 {
        // The middle of the half step, times four.
        let v = 2 * (at as i32 - 256) + 1;
        let mut code = 0;
        while code < 15 && v > 2 * (IQ4_VALUES[code] as i32 + IQ4_VALUES[code + 1] as i32) {
            code += 1;
        }
        codes[at] = code as u8;
        at += 1;
    }
    codes
};

/// The values by half step.
static IQ4_NEAREST: [f32; 512] = {
    let mut values = [0.0; 512];
    let mut at = 0;
    while at < 512 {
        values[at] = IQ4_VALUES[IQ4_CODES[at] as usize];
        at += 1;
    }
    values
};

impl Iq4 {
    /// Half steps from -128.
    #[inline(always)]
    fn at(v: f32) -> usize {
        // Whole steps at or below: half a step less, to nearest.
        let steps = round(clamp(v + v + 255.5, 0.0, 511.0));
        (steps + 8_388_608.0).to_bits() as usize & 511
    }

    /// The code of the value nearest to `v`.
    #[inline(always)]
    pub(super) fn code(v: f32) -> u8 {
        IQ4_CODES[Iq4::at(v)]
    }
}

impl Levels for Iq4 {
    const EXTREME: f32 = -127.0;

    #[inline(always)]
    fn nearest(x: f32, inverse_scale: f32) -> f32 {
        IQ4_NEAREST[Iq4::at(x * inverse_scale)]
    }
}

/// The values of a 4-bit float with two bits of exponent and one of mantissa, doubled: 0, 1, 2, 3, 4, 6, 8, 12.
pub(super) struct E2m1;

impl E2m1 {
    /// Sign in bit 3, magnitude below.
    #[inline(always)]
    pub(super) fn code(v: f32) -> u8 {
        let level = E2m1::level(v);
        let magnitude = level.abs();
        let code = if magnitude <= 4.0 { magnitude } else { clamp(magnitude / 2.0 + 2.0, 5.0, 7.0) };
        byte(code) | if level < 0.0 { 8 } else { 0 }
    }
}

impl Levels for E2m1 {
    const EXTREME: f32 = 12.0;

    #[inline(always)]
    fn nearest(x: f32, inverse_scale: f32) -> f32 {
        E2m1::level(x * inverse_scale)
    }
}

impl E2m1 {
    #[inline(always)]
    fn level(v: f32) -> f32 {
        let magnitude = v.abs();
        let step = if magnitude <= 4.0 { 1.0 } else { if magnitude <= 8.0 { 2.0 } else { 4.0 } };
        let level = clamp(round(magnitude / step) * step, 0.0, 12.0);
        if v < 0.0 { -level } else { level }
    }
}
