//! Medians and ratios of runs.

/// Returns the middle value, or the mean of the two in the middle. Returns NaN if there are no values.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => values[length / 2],
        length => f64::midpoint(values[length / 2 - 1], values[length / 2]),
    }
}

/// Returns one value as a multiple of another, if both are finite and the base is positive.
pub fn ratio(value: f64, base: f64) -> Option<f64> {
    (value.is_finite() && base.is_finite() && base > 0.0).then_some(value / base)
}

/// Returns the smallest and the largest value, or `None` if there are no values.
pub fn range(values: impl IntoIterator<Item = f64>) -> Option<(f64, f64)> {
    values.into_iter().fold(None, |range, value| match range {
        None => Some((value, value)),
        Some((low, high)) => Some((value.min(low), value.max(high))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_odd_and_of_an_even_number() {
        assert!((median([3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median([4.0, 1.0, 3.0, 2.0]) - 2.5).abs() < 1e-9);
        assert!((median([7.0]) - 7.0).abs() < 1e-9);
        assert!(median([]).is_nan());
    }

    #[test]
    fn one_run_that_went_astray_does_not_move_the_median_far() {
        assert!((median([100.0, 101.0, 5000.0]) - 101.0).abs() < 1e-9);
    }

    #[test]
    fn there_is_no_ratio_to_nothing() {
        assert_eq!(ratio(3.0, 2.0), Some(1.5));
        assert_eq!(ratio(3.0, 0.0), None);
        assert_eq!(ratio(f64::NAN, 1.0), None);
        assert_eq!(ratio(1.0, f64::NAN), None);
    }

    #[test]
    fn the_range_has_both_ends() {
        assert_eq!(range([2.0, 1.0, 3.0]), Some((1.0, 3.0)));
        assert_eq!(range([]), None);
    }
}
