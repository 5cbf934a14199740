//! Comparators.

/// The largest absolute value.
pub fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most, value| most.max(value.abs()))
}

/// The largest absolute error as a share of the largest absolute value wanted. Infinite where anything is NaN.
///
/// # Panics
/// Where the lengths differ.
pub fn max_error(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len(), "lengths");
    let error = got.iter().zip(want).fold(0.0f32, |most, (got, want)| match (got - want).abs() {
        error if error.is_nan() => f32::INFINITY,
        error => most.max(error),
    });
    error / largest(want).max(f32::MIN_POSITIVE)
}

/// Panics where [`max_error`] exceeds `bound`.
///
/// # Panics
/// That is its purpose.
pub fn assert_close(got: &[f32], want: &[f32], bound: f32, what: &str) {
    let error = max_error(got, want);
    assert!(error <= bound, "{what}: error {error} of the largest value, bound {bound}");
}

/// The cosine of the angle between two vectors.
///
/// # Panics
/// Where the lengths differ.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "lengths");
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The index of the largest value, the first of equals. NaN is never the largest.
pub fn argmax(values: &[f32]) -> usize {
    let mut best = 0;
    for (index, value) in values.iter().enumerate() {
        if *value > values[best] || values[best].is_nan() {
            best = index;
        }
    }
    best
}

/// Checks a greedy choice whose logits may be off by `slack` in all: the wanted id must have the largest logit, or
/// one that lies no more than `slack` below it.
///
/// # Panics
/// Where it lies further below.
pub fn assert_greedy(logits: &[f32], want: u32, slack: f32, what: &str) {
    let best = argmax(logits);
    let gap = logits[best] - logits[want as usize];
    assert!(gap <= slack, "{what}: chose {best}, want {want}, {gap} below; {slack} allowed");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_relative_to_the_largest_value() {
        assert_eq!(max_error(&[1.0, -4.0], &[1.0, -4.0]), 0.0);
        assert_eq!(max_error(&[2.0, -4.0], &[1.0, -4.0]), 0.25);
        assert_eq!(max_error(&[f32::NAN, 0.0], &[1.0, 1.0]), f32::INFINITY);
    }

    #[test]
    fn cosines() {
        assert!((cosine(&[1.0, 2.0], &[2.0, 4.0]) - 1.0).abs() < 1e-12);
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 1.0]), 0.0);
    }

    #[test]
    fn the_largest_is_the_first_of_equals_and_no_nan() {
        for (values, want) in [(&[1.0, 3.0, 3.0][..], 1), (&[f32::NAN, 1.0], 1), (&[1.0, f32::NAN], 0), (&[-1.0], 0)] {
            assert_eq!(argmax(values), want, "{values:?}");
        }
    }

    #[test]
    #[should_panic(expected = "chose 1, want 0")]
    fn a_wrong_choice_is_found() {
        assert_greedy(&[1.0, 2.0], 0, 0.5, "step");
    }
}
