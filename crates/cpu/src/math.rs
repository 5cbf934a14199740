//! Functions of one `f32`, free of branches and calls so that loops over them vectorise.

use graph::Activation;

/// `e^x`, relative error below 4e-7 (Cephes' polynomial after reduction by powers of two). Beyond the range of normal
/// numbers the result is held at its ends: 1.2e-38 below `x = -87.33`, 2.4e38 above `x = 88.37`. NaN stays NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer in the low bits
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.33, 88.37);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5e-1;
    let value = p * r * r + r + 1.0;
    let power = (shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127)) << 23;
    value * f32::from_bits(power)
}

/// The largest of 32 numbers; any of them, or NaN, where one is NaN.
#[inline(always)]
pub(crate) fn largest(x: &[f32; 32]) -> f32 {
    // Not `f32::max`, whose care for NaN takes two instructions more.
    in_halves(x, |a, b| if a > b { a } else { b })
}

/// The sum of 32 numbers, in an order that never changes: halves are added to each other.
#[inline(always)]
pub(crate) fn sum(x: &[f32; 32]) -> f32 {
    in_halves(x, |a, b| a + b)
}

/// A chain over 32 numbers would take as long as all else that is done with them.
#[inline(always)]
fn in_halves(x: &[f32; 32], join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut x = *x;
    let mut half = 16;
    while half > 0 {
        for i in 0..half {
            x[i] = join(x[i], x[i + half]);
        }
        half /= 2;
    }
    x[0]
}

/// `tanh(x)`, absolute error below 5e-7.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// Applies an activation function to each element.
#[inline(always)]
pub(crate) fn activate(kind: Activation, x: &mut [f32]) {
    match kind {
        Activation::Silu => x.iter_mut().for_each(|x| *x /= 1.0 + exp(-*x)),
        Activation::GeluTanh => {
            for x in x {
                *x *= 0.5 * (1.0 + tanh(0.797_884_6 * (*x + 0.044_715 * *x * *x * *x)));
            }
        }
        Activation::Gelu => x.iter_mut().for_each(|x| *x = kind.apply(*x)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_to_the_library_over_the_whole_range() {
        for i in -88_000..88_000 {
            let x = i as f32 * 1e-3;
            let want = f64::from(x).exp();
            // The ends of the range, where the result is held, add their own error.
            assert!((f64::from(exp(x)) - want).abs() <= 4e-7 * want + 1.2e-38, "exp({x})");
            assert!((tanh(x) - x.tanh()).abs() <= 5e-7, "tanh({x})");
        }
        for (x, end) in [(-1e30, 1.2e-38), (f32::NEG_INFINITY, 1.2e-38), (1e30, 2.4e38), (f32::INFINITY, 2.4e38)] {
            assert!((exp(x) / end - 1.0).abs() < 0.03, "exp({x}) = {}", exp(x));
        }
        assert!(exp(f32::NAN).is_nan() && tanh(f32::NAN).is_nan());
    }

    #[test]
    fn reductions() {
        let mut x: [f32; 32] = std::array::from_fn(|i| ((i * 13 + 5) % 32) as f32 - 40.0);
        assert_eq!((largest(&x), sum(&x)), (-9.0, (0..32).sum::<i32>() as f32 - 40.0 * 32.0));
        for i in 0..32 {
            let mut y = x;
            y[i] = 7.5;
            assert_eq!(largest(&y), 7.5);
            y[i] = f32::NAN;
            assert!(sum(&y).is_nan());
        }
        x.fill(f32::NEG_INFINITY);
        assert_eq!(largest(&x), f32::NEG_INFINITY);
    }

    #[test]
    fn activations_equal_the_definitions() {
        let x: Vec<f32> = (-400..400).map(|i| i as f32 * 0.05).collect();
        for kind in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
            let mut out = x.clone();
            activate(kind, &mut out);
            for (x, out) in x.iter().zip(&out) {
                assert!((out - kind.apply(*x)).abs() <= 4e-6, "{kind:?}({x}) = {out}");
            }
        }
    }
}
