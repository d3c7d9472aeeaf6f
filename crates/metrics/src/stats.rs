//! Statistics over scores. A statistic that is not defined for the given values is `None`, never NaN.

/// Arithmetic mean; `None` without values.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Sample standard deviation `sqrt(sum (x - mean)^2 / (n - 1))`; `None` for fewer than two values.
pub fn std(values: &[f64]) -> Option<f64> {
    let mean = mean(values).filter(|_| values.len() > 1)?;
    let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
    Some((squares / (values.len() - 1) as f64).sqrt())
}

/// Middle value, or the mean of the two middle ones; `None` as for [`quartiles`].
pub fn median(values: &[f64]) -> Option<f64> {
    quartiles(values).map(|[_, median, _]| median)
}

/// Lower quartile, median and upper quartile, linearly interpolated between the neighbours of position `q (n - 1)` of the
/// sorted values. `None` without values, and when a value is not finite.
pub fn quartiles(values: &[f64]) -> Option<[f64; 3]> {
    if !values.iter().all(|x| x.is_finite()) {
        return None;
    }
    quantiles(values, [0.25, 0.5, 0.75])
}

/// The values at these shares of the sorted ones, interpolated as in [`quartiles`]; `None` without values.
pub fn quantiles<const N: usize>(values: &[f64], shares: [f64; N]) -> Option<[f64; N]> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    Some(shares.map(|q| {
        let at = q * last as f64;
        let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
        low + (high - low) * at.fract()
    }))
}

/// Ranks from 1 for the largest value; equal values share the mean of their ranks. `None` when a
/// value is NaN, which has no rank.
pub fn ranks(values: &[f64]) -> Option<Vec<f64>> {
    if values.iter().any(|x| x.is_nan()) {
        return None;
    }
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|i, j| values[*j].total_cmp(&values[*i]));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    for equal in order.chunk_by(|i, j| values[*i] == values[*j]) {
        for i in equal {
            ranks[*i] = before as f64 + (equal.len() + 1) as f64 / 2.0;
        }
        before += equal.len();
    }
    Some(ranks)
}

/// Spearman's rho, in [-1, 1]: the Pearson correlation of the average [`ranks`]. `None` when there
/// are fewer than two pairs, one side is constant or a value is NaN.
///
/// # Panics
///
/// When the lengths differ.
pub fn spearman(a: &[f64], b: &[f64]) -> Option<f64> {
    assert_eq!(a.len(), b.len(), "values come in pairs");
    let (a, b) = (ranks(a)?, ranks(b)?);
    let (mean_a, mean_b) = (mean(&a)?, mean(&b)?);
    let (mut both, mut only_a, mut only_b) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(&b) {
        let (x, y) = (x - mean_a, y - mean_b);
        both += x * y;
        only_a += x * x;
        only_b += y * y;
    }
    correlation(both, only_a, only_b)
}

/// Kendall's tau-b, in [-1, 1]: concordant minus discordant pairs of pairs, over the geometric mean of the numbers of pairs
/// that are not tied on either side. `None` as for [`spearman`]. The time grows with the square of the length.
///
/// # Panics
///
/// When the lengths differ.
pub fn kendall(a: &[f64], b: &[f64]) -> Option<f64> {
    assert_eq!(a.len(), b.len(), "values come in pairs");
    if a.iter().chain(b).any(|x| x.is_nan()) {
        return None;
    }
    let sign = |x: f64, y: f64| f64::from(i8::from(x > y) - i8::from(x < y));
    let (mut both, mut only_a, mut only_b) = (0.0, 0.0, 0.0);
    for i in 0..a.len() {
        for j in i + 1..a.len() {
            let (x, y) = (sign(a[i], a[j]), sign(b[i], b[j]));
            both += x * y;
            only_a += x * x;
            only_b += y * y;
        }
    }
    correlation(both, only_a, only_b)
}

/// `both / sqrt(only_a only_b)`, clamped because rounding may exceed [-1, 1].
fn correlation(both: f64, only_a: f64, only_b: f64) -> Option<f64> {
    let scale = (only_a * only_b).sqrt();
    (scale > 0.0).then(|| (both / scale).clamp(-1.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn close(a: Option<f64>, b: f64) {
        assert!(a.is_some_and(|a| (a - b).abs() < 1e-12), "{a:?}, {b}");
    }

    #[test]
    fn moments_and_quartiles_by_hand() {
        assert_eq!(mean(&[1.0, 2.0, 6.0]), Some(3.0));
        assert_eq!(std(&[1.0, 3.0]), Some(2f64.sqrt()));
        assert_eq!(quartiles(&[4.0, 1.0, 2.0, 3.0, 5.0]), Some([2.0, 3.0, 4.0]));
        assert_eq!(quartiles(&[4.0, 1.0]), Some([1.75, 2.5, 3.25]));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
    }

    #[test]
    fn the_undefined_is_none() {
        assert_eq!((mean(&[]), median(&[]), quartiles(&[])), (None, None, None));
        assert_eq!((std(&[]), std(&[1.0])), (None, None));
        assert_eq!(quartiles(&[1.0, f64::NAN]), None);
        assert_eq!(ranks(&[1.0, f64::NAN]), None);
        for (a, b) in [
            ([].as_slice(), [].as_slice()),
            (&[1.0], &[2.0]),
            (&[1.0, 2.0], &[3.0, 3.0]),
            (&[1.0, 2.0], &[3.0, f64::NAN]),
        ] {
            assert_eq!((spearman(a, b), kendall(a, b)), (None, None), "{a:?} {b:?}");
        }
    }

    #[test]
    fn rank_statistics_by_hand() {
        assert_eq!(ranks(&[5.0, 7.0, 5.0, 1.0]).unwrap(), [2.5, 1.0, 2.5, 4.0]);
        assert_eq!(ranks(&[0.0, -0.0]).unwrap(), [1.5, 1.5]);
        let (a, b) = ([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0]);
        close(spearman(&a, &b), 0.8);
        close(kendall(&a, &b), 4.0 / 6.0);
        // tau-b with a tie: 2 concordant pairs, scale sqrt(3 x 2)
        close(
            kendall(&[1.0, 2.0, 3.0], &[1.0, 1.0, 2.0]),
            2.0 / 6f64.sqrt(),
        );
    }

    /// `scipy.stats.spearmanr` and `kendalltau` (1.17.1), ties on both sides.
    #[test]
    fn rank_statistics_are_those_of_scipy() {
        let a = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0, 5.0, 3.0];
        let b = [2.0, 7.0, 1.0, 8.0, 2.0, 8.0, 1.0, 8.0, 2.0, 8.0];
        close(spearman(&a, &b), 0.13471506281091267);
        close(kendall(&a, &b), 0.13041013273932525);
    }

    proptest! {
        #[test]
        fn correlations_see_order_alone(values in proptest::collection::vec(-5.0..5.0f64, 2..20)) {
            let up: Vec<f64> = values.iter().map(|x| x.exp()).collect();
            let down: Vec<f64> = values.iter().map(|x| -x).collect();
            close(spearman(&values, &up), 1.0);
            close(kendall(&values, &up), 1.0);
            close(spearman(&values, &down), -1.0);
            close(kendall(&values, &down), -1.0);
        }

        #[test]
        fn ties_keep_the_sum_of_ranks_and_the_bounds(
            pairs in proptest::collection::vec((0u8..4, 0u8..4), 2..20),
        ) {
            let (a, b): (Vec<f64>, Vec<f64>) =
                pairs.iter().map(|(x, y)| (f64::from(*x), f64::from(*y))).unzip();
            let n = a.len() as f64;
            prop_assert_eq!(ranks(&a).unwrap().iter().sum::<f64>(), n * (n + 1.0) / 2.0);
            prop_assert_eq!(spearman(&a, &b), spearman(&b, &a));
            prop_assert_eq!(kendall(&a, &b), kendall(&b, &a));
            for r in [spearman(&a, &b), kendall(&a, &b)].into_iter().flatten() {
                prop_assert!((-1.0..=1.0).contains(&r));
            }
        }

        #[test]
        fn quartiles_lie_in_order(values in proptest::collection::vec(-5.0..5.0f64, 1..20)) {
            let [low, middle, high] = quartiles(&values).unwrap();
            let smallest = values.iter().copied().fold(f64::INFINITY, f64::min);
            let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            prop_assert!(smallest <= low && low <= middle && middle <= high && high <= largest);
        }
    }
}
